//! The two frames that open a session on the proxy's helper path: u32 big-endian length (≤ 4096),
//! then JSON. What follows them is the session itself.

use postern_identity::ResourceId;
use serde::{Deserialize, Serialize};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest frame body, in bytes.
const MAX: usize = 4096;

#[derive(Serialize)]
struct Request<'a> {
    kind: &'a str,
    name: &'a str,
}

/// What the proxy answers. With `ok`, bytes flow after it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Reply {
    pub ok: bool,
    /// A stable word: `unknown-resource`, `no-agent`, `locked`, …
    #[serde(default)]
    pub code: String,
    #[serde(default)]
    pub message: String,
}

/// The frame that asks for a resource.
pub fn request(id: &ResourceId) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(&Request {
        kind: &id.kind,
        name: &id.name,
    })?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|n| *n as usize <= MAX)
        .ok_or_else(|| invalid("the name is too long"))?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend(body);
    Ok(frame)
}

/// Asks, and waits for the answer.
pub async fn exchange(
    io: &mut (impl AsyncRead + AsyncWrite + Unpin),
    id: &ResourceId,
) -> io::Result<Reply> {
    io.write_all(&request(id)?).await?;
    io.flush().await?;
    reply(io).await
}

/// Reads the proxy's answer, and not a byte more.
pub async fn reply(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Reply> {
    let length = io.read_u32().await? as usize;
    if length > MAX {
        return Err(invalid("it is not what a Postern proxy answers"));
    }
    let mut body = vec![0; length];
    io.read_exact(&mut body).await?;
    serde_json::from_slice(&body).map_err(|_| invalid("it is not what a Postern proxy answers"))
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> ResourceId {
        ResourceId {
            kind: "ssh".into(),
            name: "web-1".into(),
        }
    }

    #[test]
    fn the_request_is_length_and_json() {
        let frame = request(&id()).unwrap();
        assert_eq!(frame[..4], 29u32.to_be_bytes());
        assert_eq!(&frame[4..], br#"{"kind":"ssh","name":"web-1"}"#);
    }

    #[tokio::test]
    async fn a_reply_leaves_the_bytes_after_it() {
        let body = br#"{"ok":true}"#;
        let mut wire = (body.len() as u32).to_be_bytes().to_vec();
        wire.extend(body);
        wire.extend(b"SSH-2.0-");
        let mut rest = wire.as_slice();
        let got = reply(&mut rest).await.unwrap();
        assert_eq!(
            got,
            Reply {
                ok: true,
                code: String::new(),
                message: String::new()
            }
        );
        assert_eq!(rest, b"SSH-2.0-");
    }

    #[tokio::test]
    async fn an_oversized_or_foreign_reply_is_refused() {
        let mut http = b"HTTP/1.1 400 Bad Request\r\n".as_slice();
        assert_eq!(
            reply(&mut http).await.unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        let mut junk = b"\0\0\0\x04junk".as_slice();
        assert_eq!(
            reply(&mut junk).await.unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        let mut cut = b"\0\0\0\x10{".as_slice();
        assert_eq!(
            reply(&mut cut).await.unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }

    #[tokio::test]
    async fn asking_and_being_refused() {
        let (mut ours, mut theirs) = tokio::io::duplex(4096);
        let proxy = async {
            let mut length = [0; 4];
            theirs.read_exact(&mut length).await.unwrap();
            let mut body = vec![0; u32::from_be_bytes(length) as usize];
            theirs.read_exact(&mut body).await.unwrap();
            let answer = br#"{"ok":false,"code":"no-agent","message":"no agent serves it now"}"#;
            theirs.write_u32(answer.len() as u32).await.unwrap();
            theirs.write_all(answer).await.unwrap();
            body
        };
        let asked = id();
        let (got, body) = tokio::join!(exchange(&mut ours, &asked), proxy);
        assert_eq!(body, br#"{"kind":"ssh","name":"web-1"}"#);
        let got = got.unwrap();
        assert!(!got.ok);
        assert_eq!(
            (got.code.as_str(), got.message.as_str()),
            ("no-agent", "no agent serves it now")
        );
    }
}
