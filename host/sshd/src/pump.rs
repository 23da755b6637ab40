//! The bytes: from pipes, terminals and sockets to SSH channels and back.
//!
//! Outwards a buffer exists only while there is something to read, starts at 4 KB and grows to 64 KB with use; bytes go to russh as
//! they were read, without a copy. Pipes get 1 MB in the kernel once a stream proves to be bulk. Inwards, `flow` bounds what waits.

use crate::flow::Flow;
use bytes::{Buf, Bytes, BytesMut};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use russh::ChannelWriteHalf;
use russh::server::Msg;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::unix::pipe;

const SMALL: usize = 4 << 10;
const LARGE: usize = 64 << 10;
/// After so many bytes a pipe is worth a large buffer in the kernel …
const BULK: u64 = 512 << 10;
/// … of this size.
const BULK_PIPE: i32 = 1 << 20;

/// The master side of a PTY. One descriptor, both directions.
pub struct PtyMaster(AsyncFd<File>);

impl PtyMaster {
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        // SAFETY: `File` owns its descriptor, gives the same one every time, and nothing takes it out of here.
        let fd = unsafe { AsyncFd::register(File::from(fd)) }?;
        Ok(PtyMaster(fd))
    }

    pub fn file(&self) -> &File {
        self.0.get_ref()
    }
}

/// Where bytes for the client come from.
pub enum Source {
    Pipe(pipe::Receiver),
    Pty(Arc<PtyMaster>),
    Tcp(OwnedReadHalf),
}

impl Source {
    async fn readable(&self) -> io::Result<()> {
        match self {
            Source::Pipe(p) => p.readable().await,
            Source::Pty(m) => m.0.readable().await.map(|mut g| g.retain_ready()),
            Source::Tcp(s) => s.readable().await,
        }
    }

    /// Appends to `buf` at most what it has room for.
    fn try_read(&self, buf: &mut BytesMut) -> io::Result<usize> {
        match self {
            Source::Pipe(p) => p.try_read_buf(buf),
            Source::Tcp(s) => s.try_read_buf(buf),
            Source::Pty(m) => {
                let room = buf.capacity();
                buf.resize(room, 0);
                let n = m.0.try_io(Interest::READABLE, |mut f| f.read(buf));
                buf.truncate(*n.as_ref().unwrap_or(&0));
                match n {
                    // No process has the terminal open any more: that is a terminal's end of file.
                    Err(e) if e.raw_os_error() == Some(nix::libc::EIO) => Ok(0),
                    n => n,
                }
            }
        }
    }
}

/// Where bytes of the client go.
pub enum Sink {
    Pipe(pipe::Sender),
    Pty(Arc<PtyMaster>),
    Tcp(OwnedWriteHalf),
}

impl Sink {
    async fn writable(&self) -> io::Result<()> {
        match self {
            Sink::Pipe(p) => p.writable().await,
            Sink::Pty(m) => m.0.writable().await.map(|mut g| g.retain_ready()),
            Sink::Tcp(s) => s.writable().await,
        }
    }

    fn try_write(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Sink::Pipe(p) => p.try_write_vectored(bufs),
            Sink::Pty(m) => {
                let first = bufs.first().map_or(&[][..], |b| &b[..]);
                m.0.try_io(Interest::WRITABLE, |mut f| f.write(first))
            }
            Sink::Tcp(s) => s.try_write_vectored(bufs),
        }
    }

    /// End of file: for a terminal there is none (OpenSSH does the same: one types it).
    async fn finish(self) {
        if let Sink::Tcp(mut s) = self {
            let _ = s.shutdown().await;
        }
    }
}

fn enlarge(pipe: impl AsFd) {
    // Refused where the user's pipe budget is used up; the small pipe works too.
    let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(BULK_PIPE));
}

/// Sends all of `from` to the client: as standard error if `ext` is 1. Ends at end of file, on a read error, or when the channel is gone.
pub async fn outward(from: Source, to: &ChannelWriteHalf<Msg>, ext: Option<u32>, flow: &Flow) {
    let (mut want, mut total) = (SMALL, 0u64);
    let mut buf = BytesMut::new();
    loop {
        // No buffer while there is nothing to read: an idle session costs none.
        if from.readable().await.is_err() {
            return;
        }
        buf.reserve(want);
        let n = match from.try_read(&mut buf) {
            Ok(0) => return,
            Ok(n) => n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                continue;
            }
            Err(_) => return,
        };
        flow.sending();
        let bytes = buf.split().freeze();
        let sent = match ext {
            None => to.data_bytes(bytes).await,
            Some(ext) => to.extended_data_bytes(ext, bytes).await,
        };
        flow.sent(n);
        if sent.is_err() {
            return;
        }
        if n >= want {
            want = (want * 4).min(LARGE);
        } else if n < want / 4 {
            want = SMALL;
            buf = BytesMut::new();
        }
        let before = total;
        total += n as u64;
        if before < BULK
            && total >= BULK
            && let Source::Pipe(p) = &from
        {
            enlarge(p);
        }
    }
}

/// What the client has sent and the process has not read yet.
#[derive(Default)]
pub struct Inbox {
    queue: VecDeque<Bytes>,
    eof: bool,
}

impl Inbox {
    pub fn push(&mut self, data: Bytes) {
        self.queue.push_back(data);
    }

    pub fn end(&mut self) {
        self.eof = true;
    }

    /// Whether [`Inward::step`] has something to do.
    fn waiting(&self) -> bool {
        self.eof || !self.queue.is_empty()
    }
}

/// Feeds an inbox to a sink.
pub struct Inward {
    sink: Option<Sink>,
    total: u64,
}

impl Inward {
    pub fn new(sink: Sink) -> Self {
        Inward {
            sink: Some(sink),
            total: 0,
        }
    }

    /// Whether nothing more can be written.
    pub fn is_done(&self) -> bool {
        self.sink.is_none()
    }

    /// Does what can be done now; pending as long as there is nothing to do. Cancel safe.
    pub async fn step(&mut self, inbox: &mut Inbox, flow: &Flow) {
        if !inbox.waiting() {
            return std::future::pending().await;
        }
        let Some(sink) = &self.sink else {
            // Nobody reads any more; the client need not wait for that.
            let lost: usize = inbox.queue.drain(..).map(|b| b.len()).sum();
            inbox.eof = false;
            flow.written(lost);
            return;
        };
        if inbox.queue.is_empty() {
            inbox.eof = false;
            if let Some(sink) = self.sink.take() {
                sink.finish().await;
            }
            return;
        }
        if sink.writable().await.is_err() {
            self.sink = None;
            return;
        }
        let mut slices = [IoSlice::new(&[]); 32];
        let mut used = 0;
        for (slice, chunk) in slices.iter_mut().zip(&inbox.queue) {
            *slice = IoSlice::new(chunk);
            used += 1;
        }
        match sink.try_write(&slices[..used]) {
            Ok(n) => {
                advance(&mut inbox.queue, n);
                flow.written(n);
                let before = self.total;
                self.total += n as u64;
                if before < BULK
                    && self.total >= BULK
                    && let Sink::Pipe(p) = sink
                {
                    enlarge(p);
                }
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.sink = None,
        }
    }
}

fn advance(queue: &mut VecDeque<Bytes>, mut n: usize) {
    while n > 0 {
        let Some(first) = queue.front_mut() else {
            return;
        };
        if n < first.len() {
            first.advance(n);
            return;
        }
        n -= first.len();
        queue.pop_front();
    }
}
