//! SIGUSR2: a new process takes over, and nobody notices.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use postern_tests::{Agent, Cluster, Lab, User, run, wait};
use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

struct World {
    cluster: Cluster,
    agent: Agent,
    alice: User,
    witness: run::Background,
}

fn world() -> Result<World> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let agent = cluster.agent("web-1").start()?;
    let alice = cluster.user("alice", &[&agent.login])?;
    let witness = alice.ssh(&agent).arg("cat").background(Stdio::piped())?;
    let mut w = World {
        cluster,
        agent,
        alice,
        witness,
    };
    w.untouched()?;
    Ok(w)
}

impl World {
    fn untouched(&mut self) -> Result<()> {
        let child = self.witness.child();
        child.stdin.as_mut().context("stdin")?.write_all(b"ping")?;
        let mut back = [0u8; 4];
        let out = child.stdout.as_mut().context("stdout")?;
        out.read_exact(&mut back)
            .context("the session that was open has ended")?;
        ensure!(&back == b"ping");
        Ok(())
    }

    /// Ends the session that ran all the time; its process ends with it.
    fn last_session_ends(&mut self, mut old: Child) -> Result<()> {
        ensure!(
            old.try_wait()?.is_none(),
            "the old process left its session"
        );
        drop(self.witness.child().stdin.take());
        let status = run::wait(&mut old, wait::LONG)?.context("the old process stays")?;
        ensure!(status.success(), "{status}");
        Ok(())
    }
}

/// New sessions, one after the other, while `what` is done; none may fail. How many there were, with what `what` gave.
fn while_sessions_open(
    alice: &User,
    (login, resource): (&str, &str),
    what: impl FnOnce() -> Result<Child>,
) -> Result<(Child, u32)> {
    let (stop, opened) = (AtomicBool::new(false), AtomicU32::new(0));
    let sessions = || -> Result<()> {
        while !stop.load(Relaxed) {
            let ran = alice.ssh_as(login, resource).arg("echo fine").run()?;
            let fine = ran.status.success() && ran.out().trim() == "fine";
            opened.fetch_add(1, Relaxed);
            ensure!(fine, "a session failed: {}", ran.told());
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let runs = [scope.spawn(sessions), scope.spawn(sessions)];
        let more = |than: u32| {
            wait::holds("more sessions", wait::LONG, || {
                opened.load(Relaxed) >= than + 6 || runs.iter().any(|r| r.is_finished())
            })
        };
        let began = more(0);
        let done = what();
        let went_on = more(opened.load(Relaxed));
        stop.store(true, Relaxed);
        for run in runs {
            run.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        }
        began.and(went_on)?;
        Ok((done?, opened.load(Relaxed)))
    })
}

#[test]
fn an_agent_is_taken_over_under_its_sessions() -> Result<()> {
    let mut w = world()?;
    let before = w.agent.service("ssh")?;
    let (login, resource) = (w.agent.login.clone(), w.agent.resource.clone());
    let (old, opened) = while_sessions_open(&w.alice, (&login, &resource), || w.agent.hand_over())?;
    println!("{opened} sessions opened meanwhile");
    w.agent.ready()?;
    w.untouched()?;
    let after = w.agent.service("ssh")?;
    ensure!(after["generation"] == before["generation"], "{after}");
    w.agent
        .wait_log("handed over; the open sessions go on here", wait::LONG)?;
    w.last_session_ends(old)?;
    // What the old one recorded last is in Auth's hands.
    w.cluster.audited("session.end", |e| {
        e["user"] == "alice" && e["bytes_out"].as_u64() == Some(8)
    })?;
    ensure!(w.alice.ssh(&w.agent).arg("echo on").ok()? == "on");
    // And an edit is applied by the new one.
    let config = std::fs::read_to_string(w.agent.config_path())?;
    w.agent
        .write_config(&config.replace("env = \"test\"", "env = \"prod\""))?;
    w.agent
        .wait_log("configuration: ~ service ssh: labels", wait::LONG)
}

#[test]
fn a_cluster_is_taken_over_under_the_sessions_that_pass_through_it() -> Result<()> {
    let mut w = world()?;
    let (login, resource) = (w.agent.login.clone(), w.agent.resource.clone());
    let (old, opened) =
        while_sessions_open(&w.alice, (&login, &resource), || w.cluster.auth.hand_over())?;
    println!("{opened} sessions opened meanwhile");
    w.cluster.auth.ready()?;
    w.untouched()?;
    w.cluster.admin(&["users", "ls"])?;
    let bob = w.cluster.user("bob", &[&w.agent.login.clone()])?;
    bob.ssh(&w.agent).arg("true").ok()?;
    w.untouched()?;
    w.last_session_ends(old)?;
    // Every session is on record, once.
    wait::until("all sessions to be on record", wait::LONG, || {
        let starts = w.cluster.audit()?;
        let starts = starts
            .iter()
            .filter(|e| e["event"] == "session.start" && e["user"] == "alice");
        let count = u32::try_from(starts.count())?;
        ensure!(count <= opened + 1, "{count} of {opened}");
        Ok((count == opened + 1).then_some(()))
    })
}

#[test]
fn a_process_that_can_not_take_over_leaves_everything_as_it_was() -> Result<()> {
    let mut w = world()?;
    let pid = w.agent.pid()?;
    let config = std::fs::read_to_string(w.agent.config_path())?;
    std::fs::write(w.agent.config_path(), format!("{config}\n[nonsense]\n"))?;
    w.agent.signal(Signal::SIGUSR2)?;
    w.agent
        .wait_log("nothing was handed over, this process goes on", wait::LONG)?;
    w.agent.wait_log("unknown key \"nonsense\"", wait::LONG)?;
    w.untouched()?;
    w.alice.ssh(&w.agent).arg("true").ok()?;
    ensure!(w.agent.is_running() && w.agent.pid()? == pid);
    Ok(())
}

#[test]
fn a_process_that_fails_with_everything_in_its_hands_is_taken_back_from() -> Result<()> {
    let mut w = world()?;
    let pid = w.cluster.auth.pid()?;
    // Valid, and only found out when it is tried.
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let config = std::fs::read_to_string(w.cluster.auth.config_path())?;
    let broken = format!("{config}\n[diag]\nlisten = \"{}\"\n", taken.local_addr()?);
    std::fs::write(w.cluster.auth.config_path(), broken)?;
    w.cluster.auth.signal(Signal::SIGUSR2)?;
    w.cluster
        .auth
        .wait_log("this one begins again, its sessions go on", wait::LONG)?;
    w.untouched()?;
    w.cluster.auth.ready()?;
    ensure!(w.cluster.auth.is_running() && w.cluster.auth.pid()? == pid);
    w.agent.ready()?;
    wait::holds("sessions again", wait::LONG, || {
        let ran = w.alice.ssh(&w.agent).arg("true").run();
        ran.is_ok_and(|ran| ran.status.success())
    })?;
    w.cluster.admin(&["users", "ls"])?;
    w.untouched()
}

#[test]
fn the_systemd_unit_is_valid() -> Result<()> {
    let unit = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../deploy/systemd/posternd.service"
    );
    let lab = Lab::new()?;
    let text = std::fs::read_to_string(unit)?;
    // The programs that it names are not installed here.
    let here = lab.file(
        "posternd.service",
        text.replace("/usr/bin/posternd", "/bin/true"),
    )?;
    let verified = std::process::Command::new("systemd-analyze")
        .arg("verify")
        .arg(&here)
        .output();
    let verified = match verified {
        Ok(verified) => verified,
        Err(e) => {
            eprintln!("skipped: systemd-analyze is not there ({e})");
            return Ok(());
        }
    };
    let said = String::from_utf8_lossy(&verified.stderr);
    let ours: Vec<&str> = said
        .lines()
        .filter(|l| l.contains("posternd.service"))
        .collect();
    ensure!(verified.status.success() && ours.is_empty(), "{said}");
    ensure!(
        text.contains("ExecReload=/bin/kill -USR2 $MAINPID") && text.contains("NotifyAccess=all")
    );
    Ok(())
}
