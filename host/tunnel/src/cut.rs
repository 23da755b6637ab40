//! A connection that can be cut from outside, whatever is stuck above it, and that remembers when it was last
//! heard. russh owns the connection once a session runs; this is how locks, dead peers and drains reach it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// When a connection last delivered a byte; cheap to share.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    base: Instant,
    millis: Arc<AtomicU64>,
}

impl Heard {
    pub fn now() -> Self {
        Heard {
            base: Instant::now(),
            millis: Arc::default(),
        }
    }

    pub fn touch(&self) {
        self.millis
            .store(self.base.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    pub fn ago(&self) -> Duration {
        let at = Duration::from_millis(self.millis.load(Ordering::Relaxed));
        self.base.elapsed().saturating_sub(at)
    }
}

/// `io`, until `token` is cancelled; then every operation fails.
pub(crate) struct Cut<IO> {
    io: IO,
    token: CancellationToken,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
    heard: Heard,
}

impl<IO> Cut<IO> {
    pub fn new(io: IO, token: CancellationToken, heard: Heard) -> Self {
        let cancelled = Box::pin(token.clone().cancelled_owned());
        Cut {
            io,
            token,
            cancelled,
            heard,
        }
    }

    fn check<T>(&self) -> Option<Poll<io::Result<T>>> {
        self.token
            .is_cancelled()
            .then(|| Poll::Ready(Err(severed())))
    }

    /// `inner` is pending: also wake up when the token is cancelled.
    fn or_cancelled<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        self.cancelled.as_mut().poll(cx).map(|()| Err(severed()))
    }
}

fn severed() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was cut")
}

impl<IO: AsyncRead + Unpin> AsyncRead for Cut<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(cut) = self.check() {
            return cut;
        }
        match Pin::new(&mut self.io).poll_read(cx, buf) {
            Poll::Pending => self.or_cancelled(cx),
            ready => {
                self.heard.touch();
                ready
            }
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Cut<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(cut) = self.check() {
            return cut;
        }
        match Pin::new(&mut self.io).poll_write(cx, buf) {
            Poll::Pending => self.or_cancelled(cx),
            ready => ready,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.io).poll_flush(cx) {
            Poll::Pending => self.or_cancelled(cx),
            ready => ready,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.io).poll_shutdown(cx) {
            Poll::Pending => self.or_cancelled(cx),
            ready => ready,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_cut_wakes_a_reader_and_refuses_a_writer() {
        let (a, _b) = tokio::io::duplex(16);
        let token = CancellationToken::new();
        let mut cut = Cut::new(a, token.clone(), Heard::now());
        cut.write_all(b"x").await.unwrap();
        let cutter = tokio::spawn(async move { token.cancel() });
        let e = cut.read_u8().await.unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::ConnectionAborted);
        assert!(cut.write_all(b"y").await.is_err());
        cutter.await.unwrap();
    }
}
