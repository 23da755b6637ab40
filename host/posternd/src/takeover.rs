//! A new process takes over from the one that runs (SIGUSR2, `systemctl reload`): it gets the listening sockets and
//! the data directory, and the old one keeps nothing but its live sessions.
//!
//! The two talk over a Unix socket that the new one has as its standard input. A word is one byte:
//!
//! 1. new → old, [`CHECKED`]: the configuration is valid;
//! 2. old → new, [`YOURS`]: nothing of what only one process may do is done here any more. The sockets come along;
//! 3. new → old, [`SERVING`]: connections are accepted;
//! 4. new → old, [`READY`]: every service is up, or has had its time.
//!
//! Where the new process fails before the second word, the old one goes on as if nothing had been; where it fails before
//! the third, the old one begins again with the configuration that was in force, and its sessions go on.

use crate::daemon::{Daemon, Listeners, Remains};
use anyhow::{Context, bail, ensure};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

const CHECKED: u8 = b'c';
const YOURS: u8 = b'y';
const SERVING: u8 = b's';
const READY: u8 = b'r';
/// Beside [`YOURS`]: which sockets come along, in this order.
const WITH_AUTH: u8 = 1;
const WITH_PROXY: u8 = 2;
/// For the new process to read and check its configuration.
const CHECKING: Duration = Duration::from_secs(60);
/// From the sockets to accepting connections.
const STARTING: Duration = Duration::from_secs(60);
/// For its services to come up, before the old tunnels go all the same.
const COMING_UP: Duration = Duration::from_secs(60);

/// The old process's side, before anything is given away.
pub struct Successor {
    socket: UnixStream,
    child: Child,
}

impl Successor {
    /// Starts the program that is now at `program` and waits until it has checked its configuration. Errors: it
    /// can't, or won't; nothing has changed here.
    pub async fn start(program: &Path, config: &Path) -> anyhow::Result<Self> {
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        let child = Command::new(program)
            .args(["start", "--take-over", "-c"])
            .arg(config)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut successor = Successor {
            socket: UnixStream::from_std(ours)?,
            child,
        };
        match timeout(CHECKING, hear(&mut successor.socket)).await {
            Ok(Ok(CHECKED)) => Ok(successor),
            Ok(_) => {
                let ended = successor.child.wait().await;
                let status = ended.map_or_else(|e| e.to_string(), |s| s.to_string());
                bail!("the new process gave up ({status}); its log says why")
            }
            Err(_) => {
                successor.child.start_kill().ok();
                bail!("the new process was not ready within {CHECKING:?} and was ended")
            }
        }
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Gives everything away. Errors: the new process failed with it in its hands; it is for the caller to begin again.
    pub async fn take(mut self, daemon: Daemon) -> Result<Remains, Box<TakeBack>> {
        let (remains, listeners) = daemon.hand_over().await;
        let handed = async {
            give(&self.socket, &listeners).await?;
            let word = timeout(STARTING, hear(&mut self.socket)).await;
            ensure!(matches!(word, Ok(Ok(SERVING))), "it did not begin to serve");
            anyhow::Ok(())
        };
        if let Err(why) = handed.await {
            // Whatever it does still: two must not do the same.
            let _ = self.child.kill().await;
            return Err(Box::new(TakeBack {
                remains,
                listeners,
                why,
            }));
        }
        drop(listeners);
        remains.send_agents_over().await;
        // Until its tunnels are up ours carry what comes.
        let _ = timeout(COMING_UP, hear(&mut self.socket)).await;
        tracing::info!(
            pid = self.child.id(),
            "handed over; the open sessions go on here"
        );
        Ok(remains)
    }
}

/// What is left to begin again with.
pub struct TakeBack {
    pub remains: Remains,
    pub listeners: Listeners,
    pub why: anyhow::Error,
}

/// The new process's side.
pub struct Predecessor(UnixStream);

impl Predecessor {
    /// The socket that is this process's standard input.
    pub fn at_stdin() -> anyhow::Result<Self> {
        let stdin = std::io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .context("--take-over")?;
        let socket = StdStream::from(stdin);
        socket
            .peer_addr()
            .context("--take-over is for posternd itself: send SIGUSR2 to the one that runs")?;
        socket.set_nonblocking(true)?;
        Ok(Predecessor(UnixStream::from_std(socket)?))
    }

    /// Says that all is well here, and waits to be given the sockets.
    pub async fn take(&mut self) -> anyhow::Result<Listeners> {
        self.0.write_all(&[CHECKED]).await?;
        let received = self
            .0
            .async_io(Interest::READABLE, || receive(&self.0))
            .await;
        received.context("the process before us gave nothing away")
    }

    pub async fn serving(&mut self) -> std::io::Result<()> {
        self.0.write_all(&[SERVING]).await
    }

    /// Says so once every service is up.
    pub async fn ready(mut self, daemon_ready: impl Fn() -> bool) {
        let up = async {
            while !daemon_ready() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = timeout(COMING_UP, up).await;
        let _ = self.0.write_all(&[READY]).await;
    }
}

async fn hear(socket: &mut UnixStream) -> std::io::Result<u8> {
    socket.read_u8().await
}

async fn give(socket: &UnixStream, listeners: &Listeners) -> std::io::Result<()> {
    let sockets = [(&listeners.auth, WITH_AUTH), (&listeners.proxy, WITH_PROXY)];
    let mut with = 0;
    let mut fds = Vec::new();
    for (fd, bit) in sockets {
        if let Some(fd) = fd {
            fds.push(fd.as_fd());
            with |= bit;
        }
    }
    socket
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(&fds));
            }
            let words = [YOURS, with];
            sendmsg(
                socket,
                &[IoSlice::new(&words)],
                &mut control,
                SendFlags::empty(),
            )?;
            Ok(())
        })
        .await
}

fn receive(socket: &UnixStream) -> std::io::Result<Listeners> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut words = [0; 2];
    let got = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut words)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if got.bytes != 2 || words[0] != YOURS {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let mut fds = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten();
    let mut next = |bit| (words[1] & bit != 0).then(|| fds.next()).flatten();
    Ok(Listeners {
        auth: next(WITH_AUTH),
        proxy: next(WITH_PROXY),
    })
}

/// The program as it was started: an upgrade puts the new one in its place.
pub fn program() -> std::io::Result<PathBuf> {
    std::env::current_exe()
}
