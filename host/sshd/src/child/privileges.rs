//! Becoming the login, for good, and leaving nothing of the agent to what is executed.

use super::request::Login;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{
    Gid, Uid, geteuid, getresgid, getresuid, setgroups, setresgid, setresuid, setuid,
};

/// What only root can do for the session.
pub fn prepare(uid: u32) {
    // The kernel's audit trail names the login; not possible in most containers, and not fatal.
    let _ = std::fs::write("/proc/self/loginuid", uid.to_string());
}

pub fn become_login(login: &Login) -> Result<(), String> {
    let (uid, gid) = (Uid::from_raw(login.uid), Gid::from_raw(login.gid));
    let failed = |what: &str, e: nix::Error| {
        format!(
            "cannot become login {:?} ({what}): {}",
            login.name,
            e.desc()
        )
    };
    if geteuid().is_root() {
        let groups: Vec<Gid> = login.groups.iter().copied().map(Gid::from_raw).collect();
        setgroups(&groups).map_err(|e| failed("setgroups", e))?;
        setresgid(gid, gid, gid).map_err(|e| failed("setresgid", e))?;
        setresuid(uid, uid, uid).map_err(|e| failed("setresuid", e))?;
    } else if geteuid() != uid {
        return Err(format!(
            "login {:?} needs an agent that runs as root; this one runs as uid {} and can serve only that login",
            login.name,
            geteuid()
        ));
    }
    // Never run anything on a half-done change.
    let u = getresuid().map_err(|e| failed("getresuid", e))?;
    let g = getresgid().map_err(|e| failed("getresgid", e))?;
    let stuck = u.real == uid && u.effective == uid && u.saved == uid;
    let stuck = stuck && g.real == gid && g.effective == gid && g.saved == gid;
    if !stuck || (!uid.is_root() && setuid(Uid::from_raw(0)).is_ok()) {
        return Err(format!(
            "cannot become login {:?}: the change of uid did not stick",
            login.name
        ));
    }
    Ok(())
}

/// Signals, limits and descriptors as a fresh login has them.
pub fn leave_nothing_behind() {
    // SAFETY: single-threaded; SIG_DFL installs no code; signals that can't be changed are refused with an error we ignore.
    unsafe {
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
    // The agent raises this for its connections; programs that use select() break above 1024.
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft > 1024
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, 1024, hard);
    }
    // SAFETY: sets a flag on descriptors; none is closed before execve, so the socket to the agent still works if execve fails.
    let marked = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3u32,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if marked != 0 {
        // Kernel before 5.11. All of ours are close-on-exec anyway: this is the second line.
        for fd in 3..1024 {
            // SAFETY: as above; unknown descriptors give an error.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
}
