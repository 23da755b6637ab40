//! One stream through the tunnel: a channel of an SSH connection as `AsyncRead + AsyncWrite`.
//!
//! russh's own `ChannelStream` drops what comes after an end-of-file and cannot half-close; this one is built on
//! the split halves. Buffering is bounded: one chunk in flight per direction here, and russh's channel buffer
//! (see `ssh::BUFFERED_MESSAGES`) below.

use bytes::{Buf, Bytes};
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, client, server};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, ReusableBoxFuture, WaitForCancellationFutureOwned};

/// Copied out of one `poll_write`: one SSH packet, so that a chunk is one message in russh's queue.
const CHUNK: usize = 32 * 1024;

/// Either end's sending half; russh has a message type for each.
#[derive(Clone)]
pub(crate) enum Sending {
    Client(Arc<ChannelWriteHalf<client::Msg>>),
    Server(Arc<ChannelWriteHalf<server::Msg>>),
}

impl Sending {
    async fn data(self, data: Bytes) -> Result<(), russh::Error> {
        match self {
            Sending::Client(w) => w.data_bytes(data).await,
            Sending::Server(w) => w.data_bytes(data).await,
        }
    }

    async fn eof(self) -> Result<(), russh::Error> {
        match self {
            Sending::Client(w) => w.eof().await,
            Sending::Server(w) => w.eof().await,
        }
    }

    pub async fn close(&self) {
        // An error means that the connection is gone, and the channel with it.
        let _ = match self {
            Sending::Client(w) => w.close().await,
            Sending::Server(w) => w.close().await,
        };
    }
}

/// Told to the task that owns the connection when a stream is dropped; it closes the channel.
pub(crate) struct Dropped {
    pub sending: Sending,
    /// Both directions had ended: nothing is lost.
    pub finished: bool,
}

type Next = (ChannelReadHalf, Option<ChannelMsg>);

#[derive(Clone, Copy, PartialEq)]
enum WriteState {
    /// Ready for more.
    Idle,
    /// Data is on its way into the session's queue.
    Busy,
    /// An end-of-file is.
    Closing,
    /// The end-of-file was sent.
    Closed,
}

/// A stream through the tunnel. `poll_shutdown` sends an end-of-file only (the other direction goes on);
/// dropping it closes it, which the other end sees as a reset unless both directions had ended.
///
/// A write is accepted into a buffer of one chunk (32 KB); flush before waiting for an answer, as with any
/// buffered writer.
pub struct TunnelStream {
    next: ReusableBoxFuture<'static, Next>,
    unread: Bytes,
    read_done: bool,
    /// By the peer's end-of-file.
    read_eof: bool,
    sending: Sending,
    write: ReusableBoxFuture<'static, Result<(), russh::Error>>,
    write_state: WriteState,
    /// The peer closed the channel, or the connection ended. Without it a writer would wait for a window
    /// adjustment that can't come.
    peer_closed: Pin<Box<WaitForCancellationFutureOwned>>,
    peer_gone: CancellationToken,
    connection: CancellationToken,
    on_drop: Option<oneshot::Sender<Dropped>>,
}

impl TunnelStream {
    pub(crate) fn new(
        reading: ChannelReadHalf,
        sending: Sending,
        peer_closed: CancellationToken,
        connection: CancellationToken,
    ) -> (Self, oneshot::Receiver<Dropped>) {
        let (on_drop, dropped) = oneshot::channel();
        let stream = TunnelStream {
            next: ReusableBoxFuture::new(next(reading)),
            unread: Bytes::new(),
            read_done: false,
            read_eof: false,
            write: ReusableBoxFuture::new(sending.clone().data(Bytes::new())),
            sending,
            write_state: WriteState::Idle,
            peer_closed: Box::pin(peer_closed.clone().cancelled_owned()),
            peer_gone: peer_closed,
            connection,
            on_drop: Some(on_drop),
        };
        (stream, dropped)
    }

    /// Done when the connection below was cut (lock, dead agent, shutdown), also while nobody reads or writes.
    pub fn severed(&self) -> impl Future<Output = ()> + Send + 'static {
        self.connection.clone().cancelled_owned()
    }

    /// Makes `unread` non-empty, or finds the end.
    fn poll_unread(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() && !self.read_done {
            let (reading, message) = ready!(self.next.poll(cx));
            match message {
                Some(ChannelMsg::Data { data }) => self.unread = data,
                Some(ChannelMsg::Eof) => {
                    self.read_done = true;
                    self.read_eof = true;
                }
                Some(ChannelMsg::Close) | None => {
                    self.read_done = true;
                    self.next.set(next(reading));
                    return Poll::Ready(Err(reset()));
                }
                Some(_) => {}
            }
            self.next.set(next(reading));
        }
        Poll::Ready(Ok(()))
    }

    /// Waits until the chunk in flight is in the session's queue.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if matches!(self.write_state, WriteState::Idle | WriteState::Closed) {
            return Poll::Ready(Ok(()));
        }
        let result = match self.write.poll(cx) {
            Poll::Ready(result) => result,
            Poll::Pending => {
                ready!(self.peer_closed.as_mut().poll(cx));
                self.write_state = WriteState::Closed;
                self.write.set(std::future::pending());
                return Poll::Ready(Err(broken()));
            }
        };
        self.write_state = match self.write_state {
            WriteState::Closing => WriteState::Closed,
            _ => WriteState::Idle,
        };
        if result.is_err() {
            self.write_state = WriteState::Closed;
            return Poll::Ready(Err(broken()));
        }
        Poll::Ready(Ok(()))
    }
}

async fn next(mut reading: ChannelReadHalf) -> Next {
    let message = reading.wait().await;
    (reading, message)
}

fn reset() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionReset,
        "the other end of the tunnel closed the stream",
    )
}

fn broken() -> io::Error {
    io::Error::new(
        io::ErrorKind::BrokenPipe,
        "the other end of the tunnel closed the stream",
    )
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_unread(cx))?;
        let n = buf.remaining().min(self.unread.len());
        buf.put_slice(&self.unread[..n]);
        self.unread.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncBufRead for TunnelStream {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        ready!(this.poll_unread(cx))?;
        Poll::Ready(Ok(&this.unread))
    }

    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        self.unread.advance(amount);
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_idle(cx))?;
        if self.write_state == WriteState::Closed || self.peer_gone.is_cancelled() {
            return Poll::Ready(Err(broken()));
        }
        let n = buf.len().min(CHUNK);
        if n == 0 {
            return Poll::Ready(Ok(0));
        }
        let sending = self.sending.clone();
        self.write
            .set(sending.data(Bytes::copy_from_slice(&buf[..n])));
        self.write_state = WriteState::Busy;
        // Start it now: a caller that writes once and then only reads must not wait for a flush in the usual case.
        match self.poll_idle(cx) {
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            _ => Poll::Ready(Ok(n)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_idle(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.write_state {
                WriteState::Closed => return Poll::Ready(Ok(())),
                WriteState::Idle => {
                    let sending = self.sending.clone();
                    self.write.set(sending.eof());
                    self.write_state = WriteState::Closing;
                }
                WriteState::Busy | WriteState::Closing => ready!(self.poll_idle(cx))?,
            }
        }
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        if let Some(on_drop) = self.on_drop.take() {
            let sending = self.sending.clone();
            let finished = self.read_eof && self.write_state == WriteState::Closed;
            let _ = on_drop.send(Dropped { sending, finished });
        }
    }
}

impl std::fmt::Debug for TunnelStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TunnelStream").finish_non_exhaustive()
    }
}
