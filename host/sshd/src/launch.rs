//! Starting a session child and getting the agent's ends of its PTY or pipes back.

use crate::child::request::{MAX_BYTES, Reply, Request};
use crate::pump::{PtyMaster, Sink, Source};
use nix::cmsg_space;
use nix::sys::signal::{Signal, killpg};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use nix::unistd::Pid;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{UnixStream, unix::pipe};

/// A running shell or command, its parent being this process. Dropped before it ended, its process group gets SIGHUP.
pub struct Process {
    child: tokio::process::Child,
    group: Group,
}

/// The process group of a session, as long as its leader has not been reaped; 0 then.
pub struct Group(AtomicI32);

/// The agent's ends.
pub struct Stdio3 {
    pub stdin: Sink,
    pub stdout: Source,
    pub stderr: Option<Source>,
    /// The terminal, for its size.
    pub pty: Option<Arc<PtyMaster>>,
}

/// Starts the session child and waits until it has executed the shell. The error is for the user.
pub async fn launch(program: &Path, request: &Request) -> Result<(Process, Stdio3), String> {
    let json = serde_json::to_vec(request).map_err(|e| e.to_string())?;
    if json.len() > MAX_BYTES {
        return Err("the command or the environment is too long".into());
    }
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()
        .map_err(|e| format!("cannot start the session: socketpair: {e}"))?;
    let child = tokio::process::Command::new(program)
        .arg("session-child")
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()
        .map_err(|e| {
            format!(
                "cannot start the session child ({}): {e}",
                program.display()
            )
        })?;
    let group = Group(AtomicI32::new(child.id().map_or(0, u32::cast_signed)));
    let mut process = Process { child, group };

    // If this future is dropped here, the socket closes: the child gives up by itself before it executes anything.
    let handshake = tokio::time::timeout(Duration::from_secs(10), handshake(ours, &json));
    let outcome = match handshake.await {
        Ok(Ok(fds)) => descriptors(fds, request.pty.is_some()),
        Ok(Err(why)) => Err(why),
        Err(_) => Err("the session did not start within 10 seconds".to_owned()),
    };
    match outcome {
        Ok(stdio) => Ok((process, stdio)),
        Err(why) => {
            let _ = process.child.start_kill();
            let _ = process.parts().0.await;
            Err(why)
        }
    }
}

/// Request out; `Ready` with descriptors in; then silence means that the shell runs.
async fn handshake(
    socket: std::os::unix::net::UnixStream,
    json: &[u8],
) -> Result<Vec<OwnedFd>, String> {
    let failed = |e: std::io::Error| format!("the session child went away: {e}");
    socket.set_nonblocking(true).map_err(failed)?;
    let mut socket = UnixStream::from_std(socket).map_err(failed)?;
    let len = u32::try_from(json.len()).unwrap_or(u32::MAX);
    // What the child has to say explains more than that it would not listen.
    let wrote = match socket.write_all(&len.to_ne_bytes()).await {
        Ok(()) => socket.write_all(json).await,
        e => e,
    };
    let (mut text, mut fds) = (Vec::new(), Vec::new());
    loop {
        socket.readable().await.map_err(failed)?;
        match socket.try_io(Interest::READABLE, || {
            receive(socket.as_raw_fd(), &mut text, &mut fds)
        }) {
            Ok(0) => break,
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            // A reset: it ended without reading all we sent. What it said before counts.
            Err(_) => break,
        }
        if text.len() > 64 << 10 {
            return Err("the session child talks too much".into());
        }
    }
    let mut ready = false;
    for line in text.split(|&b| b == b'\n').filter(|l| !l.is_empty()) {
        match serde_json::from_slice(line).map_err(|e| format!("the session child: {e}"))? {
            Reply::Ready => ready = true,
            Reply::Failed(why) => return Err(why),
        }
    }
    match (ready, wrote) {
        (true, _) => Ok(fds),
        (false, Err(e)) => Err(failed(e)),
        (false, Ok(())) => Err("the session child ended without a word".into()),
    }
}

/// One recvmsg: text and descriptors are appended.
fn receive(socket: RawFd, text: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> std::io::Result<usize> {
    let mut buf = [0; 4096];
    let mut control = cmsg_space!([RawFd; 3]);
    let mut iov = [IoSliceMut::new(&mut buf)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let got = recvmsg::<UnixAddr>(socket, &mut iov, Some(&mut control), flags)?;
    for message in got.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = message {
            // SAFETY: the kernel has just made these descriptors for us; nobody else knows them.
            fds.extend(
                raw.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    let n = got.bytes;
    text.extend_from_slice(&buf[..n]);
    Ok(n)
}

fn descriptors(fds: Vec<OwnedFd>, pty: bool) -> Result<Stdio3, String> {
    let failed = |e: std::io::Error| format!("cannot use the session's descriptors: {e}");
    if pty {
        let [master] = <[OwnedFd; 1]>::try_from(fds)
            .map_err(|_| "the session child sent no terminal".to_owned())?;
        let master = Arc::new(PtyMaster::new(master).map_err(failed)?);
        return Ok(Stdio3 {
            stdin: Sink::Pty(master.clone()),
            stdout: Source::Pty(master.clone()),
            stderr: None,
            pty: Some(master),
        });
    }
    let [stdin, stdout, stderr] =
        <[OwnedFd; 3]>::try_from(fds).map_err(|_| "the session child sent no pipes".to_owned())?;
    Ok(Stdio3 {
        stdin: Sink::Pipe(pipe::Sender::from_owned_fd(stdin).map_err(failed)?),
        stdout: Source::Pipe(pipe::Receiver::from_owned_fd(stdout).map_err(failed)?),
        stderr: Some(Source::Pipe(
            pipe::Receiver::from_owned_fd(stderr).map_err(failed)?,
        )),
        pty: None,
    })
}

impl Process {
    /// Its end, and whom to signal meanwhile.
    pub fn parts(
        &mut self,
    ) -> (
        impl Future<Output = std::io::Result<ExitStatus>> + Send + '_,
        &Group,
    ) {
        let Process { child, group } = self;
        let group = &*group;
        let ended = async move {
            let status = child.wait().await;
            // Reaped: the number may soon be somebody else's.
            group.0.store(0, Relaxed);
            status
        };
        (ended, group)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.group.signal(Signal::SIGHUP);
    }
}

impl Group {
    /// To every process of the group.
    pub fn signal(&self, signal: Signal) {
        let group = self.0.load(Relaxed);
        if group > 0 {
            // Gone already: nothing to do.
            let _ = killpg(Pid::from_raw(group), signal);
        }
    }
}
