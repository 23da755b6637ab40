//! One direction of a connection: a buffer that is filled from one side and emptied into the other.
//!
//! The buffer has three parts: bytes on their way out, bytes that nobody has decided about yet (only where a plugin is asked),
//! and room. Bytes that a plugin lets pass are never moved inside the host. It starts small and grows with use, because most
//! connections of an agent are idle.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const FIRST: usize = 2 << 10;
pub(crate) const LARGEST: usize = 64 << 10;
/// Reads in a row that fill less than an eighth of a grown buffer before it shrinks again.
const SMALL_READS: u32 = 64;
/// Rounds of reading and writing before other tasks get their turn (streams of tokio keep their own count too).
const ROUNDS: usize = 32;

/// Where an error came from.
pub(crate) enum FlowError {
    Read(io::Error),
    Write(io::Error),
}

#[derive(Default)]
pub(crate) struct Flow {
    buf: Vec<u8>,
    /// `buf[start..pass]` is on its way out, `buf[pass..end]` undecided.
    start: usize,
    pass: usize,
    end: usize,
    /// Bytes that go out before `buf[start..pass]`: what the plugin wrote itself.
    out: Vec<u8>,
    out_done: usize,
    small_reads: u32,
    unflushed: bool,
    /// The source has sent its last byte.
    pub(crate) eof: bool,
    /// Nothing will be added any more: once all is written, the sink is told.
    pub(crate) ended: bool,
    /// The sink has been told.
    shut: bool,
    /// Nobody is asked about these bytes.
    pub(crate) native: bool,
    /// Undecided bytes have arrived, or may be looked at anew.
    pub(crate) fresh: bool,
    /// Bytes written to the sink.
    pub(crate) written: u64,
}

impl Flow {
    pub(crate) fn native() -> Self {
        Flow {
            native: true,
            ..Flow::default()
        }
    }

    /// Bytes that wait for the sink.
    pub(crate) fn backlog(&self) -> usize {
        self.out.len() - self.out_done + self.pass - self.start
    }

    /// Bytes that nobody has decided about.
    pub(crate) fn undecided(&self) -> &[u8] {
        &self.buf[self.pass..self.end]
    }

    /// No room for more undecided bytes.
    pub(crate) fn full(&self) -> bool {
        self.end - self.pass >= LARGEST
    }

    /// Lets `n` undecided bytes pass. False if there are fewer.
    pub(crate) fn pass(&mut self, n: usize) -> bool {
        if n > self.end - self.pass {
            return false;
        }
        self.pass += n;
        true
    }

    /// Drops `n` undecided bytes. False if there are fewer.
    pub(crate) fn skip(&mut self, n: usize) -> bool {
        if n > self.end - self.pass {
            return false;
        }
        if self.start == self.pass {
            self.start += n;
            self.pass += n;
        } else {
            // Bytes before them are still on their way out: close the gap.
            self.buf.copy_within(self.pass + n..self.end, self.pass);
            self.end -= n;
        }
        true
    }

    /// All that waits for the sink is out, and flushed.
    pub(crate) fn written_out(&self) -> bool {
        self.backlog() == 0 && (!self.unflushed || self.shut)
    }

    /// What comes next is another source's; undecided bytes of the one before are dropped.
    pub(crate) fn new_source(&mut self) {
        self.skip_all();
        self.fresh = false;
        self.eof = false;
        self.ended = false;
    }

    /// Drops all undecided bytes.
    pub(crate) fn skip_all(&mut self) {
        self.end = self.pass;
    }

    /// Sends bytes that did not come from the source.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.out_done == self.out.len() {
            self.out.clear();
            self.out_done = 0;
        }
        if self.start < self.pass {
            // What was let pass before goes first.
            self.out.extend_from_slice(&self.buf[self.start..self.pass]);
            self.start = self.pass;
        }
        self.out.extend_from_slice(bytes);
    }

    /// From here on nobody is asked.
    pub(crate) fn go_native(&mut self) {
        self.native = true;
        self.fresh = false;
        self.pass = self.end;
        self.ended |= self.eof;
    }

    /// All done: the source has ended, everything is written, the sink is told.
    pub(crate) fn finished(&self) -> bool {
        self.shut
    }

    /// Moves what can be moved. Ready when undecided bytes, or the end of the source, have just arrived. Without a source or a
    /// sink, that half is left out.
    pub(crate) fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        mut source: Option<&mut R>,
        mut sink: Option<&mut W>,
    ) -> Poll<Result<(), FlowError>>
    where
        R: AsyncRead + Unpin + ?Sized,
        W: AsyncWrite + Unpin + ?Sized,
    {
        for _ in 0..ROUNDS {
            if let Some(sink) = sink.as_deref_mut() {
                match self.poll_write(cx, sink).map_err(FlowError::Write)? {
                    Poll::Ready(()) => {}
                    Poll::Pending => {
                        // While the sink is slow, fill what room there is: the next write is the larger for it.
                        return match source.as_deref_mut() {
                            Some(source) => self.poll_fill(cx, source),
                            None => Poll::Pending,
                        };
                    }
                }
                if self.ended {
                    if !self.shut {
                        ready!(Pin::new(sink).poll_shutdown(cx)).map_err(FlowError::Write)?;
                        self.shut = true;
                    }
                    return Poll::Pending;
                }
            } else if self.backlog() > 0 {
                return Poll::Pending;
            }
            if self.eof || self.full() {
                return if self.unflushed {
                    self.poll_flush(cx, sink)
                } else {
                    Poll::Pending
                };
            }
            let Some(source) = source.as_deref_mut() else {
                return Poll::Pending;
            };
            match self.poll_read(cx, source) {
                Poll::Ready(Ok(0)) => {
                    self.eof = true;
                    if !self.native {
                        return Poll::Ready(Ok(()));
                    }
                    self.ended = true;
                }
                Poll::Ready(Ok(_)) if self.native => self.pass = self.end,
                Poll::Ready(Ok(_)) => {
                    self.fresh = true;
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Err(e)) => return Poll::Ready(Err(FlowError::Read(e))),
                Poll::Pending => return self.poll_flush(cx, sink),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads behind bytes that are still on their way out, where nobody has to be asked about them. Never ready.
    fn poll_fill<R: AsyncRead + Unpin + ?Sized>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut R,
    ) -> Poll<Result<(), FlowError>> {
        while self.native && !self.eof && self.end < self.buf.len() {
            let mut room = ReadBuf::new(&mut self.buf[self.end..]);
            ready!(Pin::new(&mut *source).poll_read(cx, &mut room)).map_err(FlowError::Read)?;
            let n = room.filled().len();
            self.end += n;
            self.pass = self.end;
            self.eof = n == 0;
            self.ended |= self.eof;
        }
        Poll::Pending
    }

    /// Nothing more to write for now: a sink that buffers (TLS) must let go of it. Never ready: there is nothing to look at.
    fn poll_flush<W: AsyncWrite + Unpin + ?Sized>(
        &mut self,
        cx: &mut Context<'_>,
        sink: Option<&mut W>,
    ) -> Poll<Result<(), FlowError>> {
        if let (true, Some(sink)) = (self.unflushed, sink) {
            ready!(Pin::new(sink).poll_flush(cx)).map_err(FlowError::Write)?;
            self.unflushed = false;
        }
        Poll::Pending
    }

    /// Ready when nothing is left to write.
    fn poll_write<W: AsyncWrite + Unpin + ?Sized>(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut W,
    ) -> Poll<io::Result<()>> {
        while self.out_done < self.out.len() {
            let n = ready!(Pin::new(&mut *sink).poll_write(cx, &self.out[self.out_done..]))?;
            self.out_done += wrote(n)?;
            self.written += n as u64;
            self.unflushed = true;
        }
        if self.out_done > 0 {
            // Rarely used after a protocol's start: give it back.
            self.out = Vec::new();
            self.out_done = 0;
        }
        while self.start < self.pass {
            let n = ready!(Pin::new(&mut *sink).poll_write(cx, &self.buf[self.start..self.pass]))?;
            self.start += wrote(n)?;
            self.written += n as u64;
            self.unflushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once, behind what is there. Only called when nothing is on its way out and there is room.
    fn poll_read<R: AsyncRead + Unpin + ?Sized>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut R,
    ) -> Poll<io::Result<usize>> {
        self.make_room();
        let mut room = ReadBuf::new(&mut self.buf[self.end..]);
        ready!(Pin::new(source).poll_read(cx, &mut room))?;
        let n = room.filled().len();
        let filled_up = room.remaining() == 0;
        self.end += n;
        if filled_up && self.buf.len() < LARGEST {
            let larger = (self.buf.len() * 2).min(LARGEST);
            self.buf.resize(larger, 0);
        }
        self.small_reads = if n < self.buf.len() / 8 {
            self.small_reads + 1
        } else {
            0
        };
        Poll::Ready(Ok(n))
    }

    fn make_room(&mut self) {
        if self.pass == self.end {
            (self.start, self.pass, self.end) = (0, 0, 0);
            if self.small_reads > SMALL_READS && self.buf.len() > FIRST {
                self.buf = Vec::new();
                self.small_reads = 0;
            }
        } else if self.start == self.pass && self.pass > 0 {
            self.buf.copy_within(self.pass..self.end, 0);
            self.end -= self.pass;
            (self.start, self.pass) = (0, 0);
        }
        if self.buf.is_empty() {
            self.buf = vec![0; FIRST];
        }
        if self.end == self.buf.len() {
            let larger = (self.buf.len() * 2).min(LARGEST);
            self.buf.resize(larger, 0);
        }
    }
}

fn wrote(n: usize) -> io::Result<usize> {
    if n == 0 {
        return Err(io::Error::new(
            io::ErrorKind::WriteZero,
            "the connection takes no more bytes",
        ));
    }
    Ok(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(bytes: &[u8]) -> Flow {
        Flow {
            buf: bytes.to_vec(),
            end: bytes.len(),
            ..Flow::default()
        }
    }

    /// What the sink gets.
    async fn drained(mut f: Flow) -> Vec<u8> {
        let mut sink = Vec::new();
        std::future::poll_fn(|cx| f.poll_write(cx, &mut sink))
            .await
            .unwrap();
        sink
    }

    #[tokio::test]
    async fn order_is_the_order_of_the_steps() {
        let mut f = filled(b"abcdef");
        assert!(f.pass(2));
        f.push(b"1");
        assert!(f.skip(1));
        assert!(f.pass(1));
        f.push(b"2");
        assert!(f.pass(1));
        assert_eq!(f.undecided(), b"f");
        assert_eq!(f.backlog(), 6);
        assert_eq!(drained(f).await, b"ab1d2e");
    }

    #[tokio::test]
    async fn skipping_behind_what_passes_closes_the_gap() {
        let mut f = filled(b"abcdef");
        assert!(f.pass(2) && f.skip(2) && f.pass(1));
        assert_eq!(f.undecided(), b"f");
        assert_eq!(drained(f).await, b"abe");
    }

    #[test]
    fn no_more_than_there_is() {
        let mut f = filled(b"ab");
        assert!(!f.pass(3) && !f.skip(3) && !f.pass(usize::MAX) && f.pass(2) && !f.pass(1));
    }
}
