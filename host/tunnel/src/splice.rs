//! Copies between two streams, both ways at once, keeping half-closes. Buffers start small, because most
//! connections are quiet, and grow with use.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const SMALL: usize = 8 * 1024;
const LARGE: usize = 64 * 1024;
/// Full reads in a row after which a buffer grows.
const GROW_AFTER: u8 = 2;

/// Bytes copied so far; kept outside of [`splice`], so that they are known also when it fails or is dropped.
#[derive(Debug, Default)]
pub struct Spliced {
    /// From the first stream to the second.
    pub up: AtomicU64,
    /// From the second stream to the first.
    pub down: AtomicU64,
}

/// Copies `a` to `b` and `b` to `a` until both directions have ended, or one fails. The end of one direction is
/// passed on as a half-close while the other goes on.
pub async fn splice<A, B>(a: &mut A, b: &mut B, count: &Spliced) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut up = OneWay::new();
    let mut down = OneWay::new();
    std::future::poll_fn(|cx| {
        // Neither direction may wait for the other: both sides full would be a deadlock.
        let up = up.poll(cx, a, b, &count.up)?;
        let down = down.poll(cx, b, a, &count.down)?;
        match (up, down) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    })
    .await
}

enum State {
    Copying,
    Ending,
    Ended,
}

struct OneWay {
    buf: Vec<u8>,
    start: usize,
    end: usize,
    full_reads: u8,
    dirty: bool,
    state: State,
}

impl OneWay {
    fn new() -> Self {
        // Allocated with the first byte.
        OneWay {
            buf: Vec::new(),
            start: 0,
            end: 0,
            full_reads: 0,
            dirty: false,
            state: State::Copying,
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        count: &AtomicU64,
    ) -> Poll<io::Result<()>> {
        loop {
            match self.state {
                State::Ended => return Poll::Ready(Ok(())),
                State::Ending => {
                    match ready!(Pin::new(&mut *to).poll_shutdown(cx)) {
                        // The receiver has gone already, and with it the direction.
                        Err(e) if e.kind() == io::ErrorKind::NotConnected => {}
                        done => done?,
                    }
                    self.state = State::Ended;
                }
                State::Copying => {
                    while self.start < self.end {
                        let rest = &self.buf[self.start..self.end];
                        let n = ready!(Pin::new(&mut *to).poll_write(cx, rest))?;
                        if n == 0 {
                            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                        }
                        self.start += n;
                        self.dirty = true;
                        count.fetch_add(n as u64, Ordering::Relaxed);
                    }
                    match self.poll_fill(cx, from) {
                        Poll::Ready(Ok(0)) => self.state = State::Ending,
                        Poll::Ready(Ok(_)) => {}
                        Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                        Poll::Pending => {
                            if self.dirty {
                                ready!(Pin::new(&mut *to).poll_flush(cx))?;
                                self.dirty = false;
                            }
                            return Poll::Pending;
                        }
                    }
                }
            }
        }
    }

    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
    ) -> Poll<io::Result<usize>> {
        if self.buf.is_empty() {
            self.buf = vec![0; SMALL];
        }
        if self.full_reads >= GROW_AFTER && self.buf.len() < LARGE {
            self.buf = vec![0; (self.buf.len() * 2).min(LARGE)];
            self.full_reads = 0;
        }
        let mut buf = ReadBuf::new(&mut self.buf);
        ready!(Pin::new(from).poll_read(cx, &mut buf))?;
        let n = buf.filled().len();
        self.full_reads = if n == self.buf.len() {
            self.full_reads.saturating_add(1)
        } else {
            0
        };
        (self.start, self.end) = (0, n);
        Poll::Ready(Ok(n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn each_direction_ends_by_itself() {
        let (mut client, mut a) = duplex(1024);
        let (mut b, mut server) = duplex(1024);
        let task = tokio::spawn(async move {
            let count = Spliced::default();
            splice(&mut a, &mut b, &count).await.unwrap();
            (count.up.into_inner(), count.down.into_inner())
        });
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut asked = String::new();
        server.read_to_string(&mut asked).await.unwrap();
        assert_eq!(asked, "question");
        server.write_all(b"a long answer").await.unwrap();
        server.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "a long answer");
        assert_eq!(task.await.unwrap(), (8, 13));
    }

    #[tokio::test]
    async fn both_sides_full_is_no_deadlock_and_buffers_grow() {
        let (mut client, mut a) = duplex(64 * 1024);
        let (mut b, mut server) = duplex(64 * 1024);
        let task = tokio::spawn(async move {
            let count = Spliced::default();
            splice(&mut a, &mut b, &count).await
        });
        let block = vec![7u8; 1 << 20];
        let echo = async {
            let mut got = vec![0; 1 << 20];
            server.read_exact(&mut got).await.unwrap();
            server.write_all(&got).await.unwrap();
            server.shutdown().await.unwrap();
        };
        let talk = async {
            client.write_all(&block).await.unwrap();
            client.shutdown().await.unwrap();
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, block);
        };
        tokio::join!(echo, talk);
        task.await.unwrap().unwrap();
    }
}
