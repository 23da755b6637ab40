//! Standard input and output as one asynchronous stream, for `ProxyCommand`.
//!
//! What we were handed may be shared with other processes, so its blocking mode is never touched: a
//! pipe (OpenSSH's case) is opened anew through `/proc/self/fd`, non-blocking; anything else (a
//! terminal, a file, a socket) goes through a thread each way.
//!
//! `poll_shutdown` closes standard output, so that the reader sees the end while we still read.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixStream, unix::pipe};
use tokio::sync::oneshot;

/// Our standard input and output.
pub struct Stdio {
    input: Input,
    output: Output,
    /// A person types: when the other end is done, there is no point in waiting for them.
    interactive: bool,
    output_closed: bool,
    reader: Option<Waker>,
}

enum Input {
    Pipe(pipe::Receiver),
    Thread(UnixStream),
}

enum Output {
    Pipe(pipe::Sender),
    Thread(UnixStream, oneshot::Receiver<()>),
    Closed,
}

impl Stdio {
    /// Takes over standard input and output. Within a runtime.
    pub fn open() -> io::Result<Self> {
        use std::io::IsTerminal;
        let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
        Ok(Stdio {
            interactive: stdin.is_terminal(),
            input: Input::open(stdin.as_fd().try_clone_to_owned()?)?,
            output: Output::open(stdout.as_fd().try_clone_to_owned()?)?,
            output_closed: false,
            reader: None,
        })
    }

    /// Waits until what was written has really gone out.
    pub async fn finish(mut self) {
        if let Output::Thread(stream, done) = std::mem::replace(&mut self.output, Output::Closed) {
            drop(stream);
            let _ = done.await;
        }
    }
}

impl Input {
    fn open(fd: OwnedFd) -> io::Result<Self> {
        let mut file = File::from(fd);
        // Refused for what is no pipe, and after a change of user: a pipe belongs to whoever made it.
        if let Ok(pipe) = pipe::OpenOptions::new().open_receiver(path(&file)) {
            return Ok(Input::Pipe(pipe));
        }
        let (ours, mut theirs) = thread_pair()?;
        // Ends with the process: a read from a terminal cannot be called off.
        std::thread::Builder::new()
            .name("stdin".into())
            .spawn(move || {
                let _ = io::copy(&mut file, &mut theirs);
                let _ = theirs.shutdown(std::net::Shutdown::Write);
            })?;
        Ok(Input::Thread(ours))
    }
}

impl Output {
    fn open(fd: OwnedFd) -> io::Result<Self> {
        let mut file = File::from(fd);
        if let Ok(pipe) = pipe::OpenOptions::new().open_sender(path(&file)) {
            return Ok(Output::Pipe(pipe));
        }
        let (ours, mut theirs) = thread_pair()?;
        let (tell, done) = oneshot::channel();
        std::thread::Builder::new()
            .name("stdout".into())
            .spawn(move || {
                let _ = io::copy(&mut theirs, &mut file);
                // A socket stays open in other processes: say that no more comes.
                let _ =
                    nix::sys::socket::shutdown(file.as_raw_fd(), nix::sys::socket::Shutdown::Write);
                // The writer has to learn that nobody reads any more.
                let _ = theirs.shutdown(std::net::Shutdown::Both);
                let _ = tell.send(());
            })?;
        Ok(Output::Thread(ours, done))
    }
}

fn path(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn thread_pair() -> io::Result<(UnixStream, std::os::unix::net::UnixStream)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs))
}

impl AsyncRead for Stdio {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if me.interactive && me.output_closed {
            return Poll::Ready(Ok(()));
        }
        let polled = match &mut me.input {
            Input::Pipe(pipe) => Pin::new(pipe).poll_read(cx, buf),
            Input::Thread(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        if polled.is_pending() && me.interactive {
            me.reader = Some(cx.waker().clone());
        }
        polled
    }
}

impl AsyncWrite for Stdio {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().output {
            Output::Pipe(pipe) => Pin::new(pipe).poll_write(cx, data),
            Output::Thread(stream, _) => Pin::new(stream).poll_write(cx, data),
            Output::Closed => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        match &mut me.output {
            Output::Pipe(_) => me.output = Output::Closed,
            Output::Thread(stream, _) => ready!(Pin::new(stream).poll_shutdown(cx))?,
            Output::Closed => {}
        }
        // Standard output itself is the same pipe or file.
        nix::unistd::dup2_stdout(File::options().write(true).open("/dev/null")?)?;
        me.output_closed = true;
        if let Some(reader) = me.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(()))
    }
}
