//! Carrying the bytes of one session, and how it ended: somebody going away on our side is no
//! failure, a session that was cut on the way is one.

use crate::failure::Failure;
use crate::helper::{BUFFER, Io};
use postern_identity::ResourceId;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};

/// Copies both ways until both have ended. Each way ends by itself (half-close).
pub async fn carry(
    local: &mut (impl AsyncRead + AsyncWrite + Unpin),
    mut remote: Box<dyn Io>,
    id: &ResourceId,
) -> Result<(), Failure> {
    let mut local = Local {
        io: local,
        failed: false,
    };
    match copy_bidirectional_with_sizes(&mut local, &mut remote, BUFFER, BUFFER).await {
        Ok(_) => Ok(()),
        Err(e) => ended(id, &e, local.failed),
    }
}

/// `local`: it was our own side that failed.
fn ended(id: &ResourceId, e: &io::Error, local: bool) -> Result<(), Failure> {
    use io::ErrorKind as E;
    let resource = format!("{}.{}", id.name, id.kind);
    match e.kind() {
        // Whoever used us went away.
        E::BrokenPipe | E::ConnectionReset | E::NotConnected if local => Ok(()),
        _ if local => Err(Failure::new(format!(
            "cannot pass on what {resource} sends: {e}"
        ))),
        // SSH knows for itself whether its session was cut short.
        E::UnexpectedEof if id.kind == "ssh" => Ok(()),
        E::UnexpectedEof => Err(Failure::new(format!(
            "the session with {resource} was cut: what came may be incomplete"
        ))),
        _ => Err(Failure::new(format!(
            "the session with {resource} was cut: {e}"
        ))),
    }
}

/// Remembers that an error was this side's.
struct Local<'a, T> {
    io: &'a mut T,
    failed: bool,
}

impl<T> Local<'_, T> {
    fn note<R>(&mut self, polled: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        self.failed |= matches!(polled, Poll::Ready(Err(_)));
        polled
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Local<'_, T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut *self.io).poll_read(cx, buf);
        self.note(polled)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Local<'_, T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut *self.io).poll_write(cx, data);
        self.note(polled)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut *self.io).poll_flush(cx);
        self.note(polled)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut *self.io).poll_shutdown(cx);
        self.note(polled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(kind: &str) -> ResourceId {
        ResourceId {
            kind: kind.into(),
            name: "x".into(),
        }
    }

    #[test]
    fn how_a_session_ends() {
        let e = |kind: io::ErrorKind| io::Error::from(kind);
        assert_eq!(
            ended(&id("ssh"), &e(io::ErrorKind::UnexpectedEof), false),
            Ok(())
        );
        assert_eq!(
            ended(&id("tcp"), &e(io::ErrorKind::BrokenPipe), true),
            Ok(())
        );
        let cut = ended(&id("tcp"), &e(io::ErrorKind::UnexpectedEof), false).unwrap_err();
        assert_eq!(
            cut.to_string(),
            "the session with x.tcp was cut: what came may be incomplete"
        );
        let cut = ended(&id("tcp"), &e(io::ErrorKind::BrokenPipe), false).unwrap_err();
        assert_eq!(
            cut.to_string(),
            "the session with x.tcp was cut: broken pipe"
        );
        assert!(ended(&id("tcp"), &e(io::ErrorKind::StorageFull), true).is_err());
    }

    #[tokio::test]
    async fn each_way_ends_by_itself() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut program, mut local) = tokio::io::duplex(16);
        let (remote, mut agent) = tokio::io::duplex(16);
        let id = id("tcp");
        let carried = carry(&mut local, Box::new(remote), &id);
        let client = async {
            program.write_all(b"question").await.unwrap();
            program.shutdown().await.unwrap();
            let mut answer = String::new();
            program.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let server = async {
            let mut question = String::new();
            agent.read_to_string(&mut question).await.unwrap();
            agent
                .write_all(format!("answer to {question}, longer than the buffer").as_bytes())
                .await
                .unwrap();
            agent.shutdown().await.unwrap();
        };
        let (carried, answer, ()) = tokio::join!(carried, client, server);
        assert_eq!(
            (carried, answer.as_str()),
            (Ok(()), "answer to question, longer than the buffer")
        );
    }
}
