//! The session child (design D10): this same program, started anew for one shell, command or subsystem.
//!
//! It comes up as the agent's uid, checks the account, becomes the login for good, makes the PTY or pipes *as* the login, hands
//! the agent's ends back over the socket that is its standard input, and executes the login's shell in its own place. So no process
//! of ours lingers in a session, and the agent is the shell's parent. Everything here runs before any runtime exists: no threads,
//! no logging; errors go to the agent as text for the user.

mod account;
mod privileges;
pub(crate) mod pty;
pub(crate) mod request;

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use request::{Reply, Request, Run};
use std::ffi::{CString, OsStr};
use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Entry of the re-executed process (`posternd session-child`): never returns. Call it first thing in `main`, before any runtime.
pub fn session_child_main() -> ! {
    let code = match std::io::stdin().as_fd().try_clone_to_owned() {
        Ok(fd) => serve(UnixStream::from(fd)),
        Err(_) => 125,
    };
    std::process::exit(code)
}

/// Only returns if there was no session; the agent gets the reason over `socket`.
fn serve(socket: UnixStream) -> i32 {
    let request = match read_request(&socket) {
        Ok(r) => r,
        // Somebody started this by hand, or the agent is gone: nobody to tell but the terminal.
        Err(why) => {
            eprintln!("session-child is started by posternd only: {why}");
            return 125;
        }
    };
    let why = match become_session(&request, &socket) {
        Err(why) => why,
        Ok(never) => match never {},
    };
    let _ = send(&socket, &Reply::Failed(why), &[]);
    126
}

/// u32 length (native byte order), then JSON.
fn read_request(mut socket: &UnixStream) -> Result<Request, String> {
    socket
        .set_read_timeout(Some(Duration::from_secs(10)))
        .map_err(|e| e.to_string())?;
    let mut len = [0; 4];
    socket.read_exact(&mut len).map_err(|e| e.to_string())?;
    let len = u32::from_ne_bytes(len) as usize;
    if len > request::MAX_BYTES {
        return Err(format!("a request of {len} bytes"));
    }
    let mut json = vec![0; len];
    socket.read_exact(&mut json).map_err(|e| e.to_string())?;
    serde_json::from_slice(&json).map_err(|e| e.to_string())
}

fn become_session(req: &Request, socket: &UnixStream) -> Result<std::convert::Infallible, String> {
    let login = &req.login;
    if nix::unistd::geteuid().is_root() {
        account::check(login, &req.nologin)?;
        privileges::prepare(login.uid);
    }
    privileges::become_login(login)?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    nix::unistd::setsid().map_err(|e| format!("cannot start a session (setsid): {e}"))?;

    let mut env = req.env.clone();
    match &req.pty {
        Some(want) => {
            let pty = pty::open(want)?;
            env.push(("SSH_TTY".into(), pty.name));
            send(socket, &Reply::Ready, &[&pty.master])?;
            attach(&pty.slave, &pty.slave, &pty.slave)?;
        }
        None => {
            let pipe = || {
                nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
                    .map_err(|e| format!("cannot make a pipe: {e}"))
            };
            let (stdin, to_stdin) = pipe()?;
            let (from_stdout, stdout) = pipe()?;
            let (from_stderr, stderr) = pipe()?;
            send(
                socket,
                &Reply::Ready,
                &[&to_stdin, &from_stdout, &from_stderr],
            )?;
            attach(&stdin, &stdout, &stderr)?;
        }
    }
    if let Err(e) = nix::unistd::chdir(Path::new(&login.home)) {
        eprintln!(
            "Could not chdir to home directory {}: {}\r",
            login.home,
            e.desc()
        );
        let _ = nix::unistd::chdir("/");
    }
    privileges::leave_nothing_behind();
    let (argv, env) = (argv(login, &req.run)?, environment(&env)?);
    let shell = cstring(&login.shell)?;
    let Err(e) = nix::unistd::execve(&shell, &argv, &env);
    Err(format!(
        "login {:?}: cannot run its shell {}: {}",
        login.name,
        login.shell,
        e.desc()
    ))
}

/// Standard input, output and error of what is executed next.
fn attach(stdin: &OwnedFd, stdout: &OwnedFd, stderr: &OwnedFd) -> Result<(), String> {
    dup2_stdin(stdin)
        .and_then(|()| dup2_stdout(stdout))
        .and_then(|()| dup2_stderr(stderr))
        .map_err(|e| format!("cannot attach standard input and output: {e}"))
}

/// `-bash` is a login shell; a command runs as OpenSSH runs it: `bash -c command`.
fn argv(login: &request::Login, run: &Run) -> Result<Vec<CString>, String> {
    let name = Path::new(&login.shell)
        .file_name()
        .unwrap_or(OsStr::new("sh"))
        .to_string_lossy();
    match run {
        Run::Shell => Ok(vec![cstring(&format!("-{name}"))?]),
        Run::Command(command) => Ok(vec![
            cstring(&name)?,
            cstring("-c")?,
            CString::new(command.as_bytes())
                .map_err(|_| "the command contains a NUL byte".to_owned())?,
        ]),
    }
}

fn environment(env: &[(String, String)]) -> Result<Vec<CString>, String> {
    env.iter()
        .map(|(k, v)| cstring(&format!("{k}={v}")))
        .collect()
}

fn cstring(s: &str) -> Result<CString, String> {
    CString::new(OsStr::new(s).as_bytes()).map_err(|_| format!("{s:?} contains a NUL byte"))
}

/// One line of JSON, with descriptors beside its first byte.
fn send(socket: &UnixStream, reply: &Reply, fds: &[&OwnedFd]) -> Result<(), String> {
    let mut line = serde_json::to_vec(reply).map_err(|e| e.to_string())?;
    line.push(b'\n');
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    // One small message on an empty socket buffer is sent whole.
    sendmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &[IoSlice::new(&line)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .map(drop)
    .map_err(|e| format!("the agent went away: {e}"))
}
