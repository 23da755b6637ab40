//! SSH as people use it: the real client against an agent that no network path reaches but its own tunnel.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use postern_tests::{
    Agent, Cluster, EXPIRED_LOGIN, Lab, Run, User, free_port, is_root, skip_unless, wait,
};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A cluster, an agent, and somebody who may use it.
fn setup() -> Result<(Cluster, Agent, User)> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let agent = cluster.agent("web-1").start()?;
    let user = cluster.user("alice", &[&agent.login])?;
    Ok((cluster, agent, user))
}

#[test]
fn a_command_runs_as_the_login_and_its_end_is_told() -> Result<()> {
    let (cluster, agent, alice) = setup()?;
    let who = alice
        .ssh(&agent)
        .arg("id -un; echo $HOME; pwd; echo to-stderr >&2")
        .run()?;
    let home = cluster.lab.home()?.display().to_string();
    ensure!(
        who.out() == format!("{}\n{home}\n{home}", agent.login),
        "{}",
        who.told()
    );
    ensure!(
        who.err().contains("to-stderr") && !who.out().contains("to-stderr"),
        "{}",
        who.told()
    );
    for status in [0, 1, 7, 255] {
        let ran = alice.ssh(&agent).arg(format!("exit {status}")).run()?;
        ensure!(ran.code() == Some(status), "{}", ran.told());
    }
    if is_root() {
        // Everything that login(1) would set: primary and further groups, and nothing of the agent's.
        let groups = alice
            .ssh(&agent)
            .arg("id -Gn; id -u; grep -E '^(CapEff|NoNewPrivs)' /proc/self/status")
            .ok()?;
        ensure!(
            groups.contains("lab-extra") && !groups.contains("root"),
            "{groups}"
        );
        ensure!(
            groups.contains("61001") && groups.contains("CapEff:\t0000000000000000"),
            "{groups}"
        );
    }
    // Nothing of the agent's is inherited: no descriptors but the three, no environment of its own.
    let inherited = alice
        .ssh(&agent)
        .arg("ls /proc/self/fd | tr '\\n' ' '; env | grep ^POSTERN | grep -vc ^POSTERN_SESSION=; true")
        .ok()?;
    ensure!(
        inherited == "0 1 2 3 0",
        "descriptors or environment leak into the session: {inherited:?}"
    );
    let start = cluster.audited("session.start", |e| e["user"] == "alice")?;
    ensure!(
        start["version"].is_u64() && start["uid"].is_string() && start["cluster"] == "demo",
        "{start}"
    );
    cluster.audited("exec", |e| e.to_string().contains("exit 7"))?;
    cluster.audited("session.end", |e| e["user"] == "alice")?;
    Ok(())
}

#[test]
fn a_signal_ends_it_as_a_signal() -> Result<()> {
    let (_cluster, agent, alice) = setup()?;
    let ran = alice.ssh(&agent).arg("kill -9 $$").run()?;
    ensure!(
        ran.code() == Some(255),
        "OpenSSH tells a death by signal as 255: {}",
        ran.told()
    );
    // The client's own end reaches the far side: nothing is left running there.
    let mark = format!("31{}", std::process::id());
    let mut sleeping = alice
        .ssh(&agent)
        .arg(format!("echo up; exec sleep {mark}"))
        .background(Stdio::piped())?;
    let mut byte = [0u8; 2];
    sleeping
        .child()
        .stdout
        .as_mut()
        .context("stdout")?
        .read_exact(&mut byte)?;
    ensure!(running(&mark)?, "the session's process should run");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(sleeping.pid())?),
        Signal::SIGKILL,
    )?;
    wait::until(
        "the session's process to end with its client",
        wait::LONG,
        || Ok((!running(&mark)?).then_some(())),
    )
}

fn running(mark: &str) -> Result<bool> {
    Ok(Run::new(Command::new("pgrep"))
        .args(["-f", &format!("^sleep {mark}$")])
        .run()?
        .status
        .success())
}

#[test]
fn input_ends_before_output_does() -> Result<()> {
    let (_cluster, agent, alice) = setup()?;
    let sum = alice
        .ssh(&agent)
        .arg("cat | wc -c; sleep 0.2; echo still here")
        .stdin(vec![b'x'; 3_000_000])
        .ok()?;
    ensure!(sum == "3000000\nstill here", "{sum}");
    // And the other way: the far side closes its output first, and still reads.
    let out = alice
        .ssh(&agent)
        .arg("echo first; exec >&-; cat >/dev/null; exit 5")
        .stdin(vec![b'y'; 300_000])
        .run()?;
    ensure!(
        out.out() == "first" && out.code() == Some(5),
        "{}",
        out.told()
    );
    Ok(())
}

#[test]
fn environment_only_as_far_as_accepted() -> Result<()> {
    let (_cluster, agent, alice) = setup()?;
    let env = alice.ssh(&agent);
    let mut command = env.into_command();
    command
        .args(["-o", "SetEnv=LC_TEST=yes LD_PRELOAD=/evil.so POSTERN_X=1"])
        .arg("env");
    let out = Run::new(command).run()?;
    // ssh takes options after the host, up to the command.
    let out = out.ok()?;
    ensure!(out.contains("LC_TEST=yes"), "{out}");
    ensure!(
        !out.contains("LD_PRELOAD") && !out.contains("POSTERN_X"),
        "{out}"
    );
    for must in [
        "USER=",
        "LOGNAME=",
        "HOME=",
        "SHELL=",
        "PATH=",
        "SSH_CONNECTION=",
    ] {
        ensure!(out.contains(must), "no {must} in {out}");
    }
    Ok(())
}

#[test]
fn a_login_shell_reads_commands() -> Result<()> {
    let (_cluster, agent, alice) = setup()?;
    let ran = alice
        .ssh(&agent)
        .stdin("echo \"$0 $((40 + 2))\"\nexit 3\n")
        .run()?;
    ensure!(
        ran.out().ends_with(" 42") && ran.out().starts_with('-') && ran.code() == Some(3),
        "{}",
        ran.told()
    );
    Ok(())
}

#[test]
fn a_terminal_follows_the_window() -> Result<()> {
    let (cluster, agent, alice) = setup()?;
    let loose = alice
        .ssh(&agent)
        .arg("test -t 0 && echo terminal || echo none")
        .ok()?;
    ensure!(loose == "none", "{loose}");
    // `script` gives the client a terminal, whose size a second process changes while the session runs.
    let remote = "tty >/dev/null && echo has-tty; stty size; echo ready; \
                  for i in $(seq 100); do case \"$(stty size)\" in \"40 120\") echo resized; exit 4;; esac; sleep 0.1; done";
    let remote = cluster.lab.file("remote.sh", remote)?;
    let ssh = words(alice.ssh(&agent).arg("-tt").into_command());
    let local = format!(
        "stty rows 33 cols 101; t=$(tty); (sleep 1.5; stty rows 40 cols 120 <$t) & {ssh} \"$(cat {})\"",
        remote.display()
    );
    let local = cluster.lab.file("local.sh", local)?;
    let script = Run::new(Command::new("script"))
        .args(["-qefc", &format!("sh {}", local.display()), "/dev/null"])
        .env("POSTERN_HOME", &alice.home)
        .run()?;
    let out = script.out().replace('\r', "");
    for expected in ["has-tty", "33 101", "resized"] {
        ensure!(
            out.contains(expected),
            "no {expected:?} in: {}",
            script.told()
        );
    }
    ensure!(script.code() == Some(4), "{}", script.told());
    Ok(())
}

/// A command as words of a shell; ours have no quotes in them.
fn words(c: Command) -> String {
    let mut words = vec![c.get_program().to_string_lossy().into_owned()];
    words.extend(c.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}

#[test]
fn a_local_port_is_forwarded_to_the_far_side() -> Result<()> {
    let (cluster, agent, alice) = setup()?;
    let echo = TcpListener::bind("127.0.0.1:0")?;
    let far = echo.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in echo.incoming().flatten() {
            std::thread::spawn(move || {
                let (mut r, mut w) = (stream.try_clone()?, stream);
                std::io::copy(&mut r, &mut w)?;
                w.write_all(b"after the end")?;
                w.shutdown(std::net::Shutdown::Both)
            });
        }
    });
    let near = free_port()?;
    let forward = format!("{near}:127.0.0.1:{far}");
    let options = ["-o", "ExitOnForwardFailure=yes"];
    let host = format!("{}@{}", agent.login, agent.host());
    let _ssh = alice
        .openssh("ssh")
        .args(["-N", "-L", &forward])
        .args(options)
        .arg(host)
        .background(Stdio::null())?;
    wait::holds("ssh to listen", wait::LONG, || {
        TcpStream::connect(("127.0.0.1", near)).is_ok()
    })?;
    let sent: Vec<u8> = (0..2_000_000u32).map(|i| (i % 251) as u8).collect();
    let stream = TcpStream::connect(("127.0.0.1", near))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut writer = stream.try_clone()?;
    let to_send = sent.clone();
    let writing = std::thread::spawn(move || -> std::io::Result<()> {
        writer.write_all(&to_send)?;
        writer.shutdown(std::net::Shutdown::Write)
    });
    let mut got = Vec::new();
    (&stream).read_to_end(&mut got)?;
    writing.join().map_err(|_| anyhow::anyhow!("writer"))??;
    ensure!(
        got.len() == sent.len() + 13 && got.starts_with(&sent) && got.ends_with(b"after the end"),
        "{} bytes came back",
        got.len()
    );
    cluster.audited("port.forward", |e| e["user"] == "alice")?;
    Ok(())
}

#[test]
fn forwarding_is_refused_where_a_role_or_the_service_says_so() -> Result<()> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let agent = cluster.agent("web-1").start()?;
    cluster.role(&serde_json::json!({"name": "shell-only", "allow": {"ssh": {"labels": {"*": ["*"]}, "logins": ["{{internal.logins}}"]}}, "options": {"port_forwarding": false, "max_session_ttl_secs": 3600}}))?;
    let bob = cluster.user_with("bob", &["shell-only"], &[&agent.login])?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let far = listener.local_addr()?.port();
    // `-W` asks for the one channel and fails when it is refused.
    let host = format!("{}@{}", agent.login, agent.host());
    let refused = bob
        .openssh("ssh")
        .args(["-W", &format!("127.0.0.1:{far}")])
        .arg(&host)
        .run()?;
    refused.refused("prohibited")?;
    bob.ssh(&agent).arg("true").ok()?;
    Ok(())
}

#[test]
fn logins_that_may_not_log_in() -> Result<()> {
    let lab = Lab::new()?;
    skip_unless!(is_root(), "logins of its own need root");
    let cluster = Cluster::start(&lab)?;
    let agent = cluster.agent("web-1").start()?;
    let alice = cluster.user(
        "alice",
        &[&agent.login, "root", "no-such-login", EXPIRED_LOGIN],
    )?;
    for (login, why) in [
        ("root", "allow_same_user"),
        ("no-such-login", "no-such-login"),
        (EXPIRED_LOGIN, "expired"),
    ] {
        let ran = alice.ssh_as(login, "web-1").arg("true").run()?;
        ensure!(ran.code() != Some(0), "{login}: {}", ran.told());
        // Refused before its session or while it was being made: either way as a failure, with the reason.
        let told = |e: &serde_json::Value| {
            (e["event"] == "session.rejected" || e["success"] == false)
                && e.to_string().contains(why)
        };
        wait::until("the refusal to be audited", Duration::from_secs(10), || {
            Ok(cluster.audit()?.iter().any(told).then_some(()))
        })
        .with_context(|| {
            format!(
                "why {login} was refused should be audited; the client said: {}",
                ran.told()
            )
        })?;
    }
    alice.ssh(&agent).arg("true").ok()?;
    Ok(())
}

#[test]
fn twenty_sessions_at_once() -> Result<()> {
    let (_cluster, agent, alice) = setup()?;
    let sessions: Vec<_> = (0..20)
        .map(|i| {
            let run = alice
                .ssh(&agent)
                .arg(format!("read x; echo {i}-$x"))
                .stdin(format!("{}\n", i * i));
            std::thread::spawn(move || run.ok())
        })
        .collect();
    for (i, session) in sessions.into_iter().enumerate() {
        let out = session.join().map_err(|_| anyhow::anyhow!("thread"))??;
        ensure!(out == format!("{i}-{}", i * i), "{out}");
    }
    wait::holds("no sessions to be left", wait::LONG, || {
        agent.service("ssh").is_ok_and(|s| s["sessions"] == 0)
    })
}

#[test]
fn one_connection_carries_many_sessions() -> Result<()> {
    let (_cluster, agent, alice) = setup()?;
    let control = alice.home.join("cm");
    let path = format!("ControlPath={}", control.display());
    let host = format!("{}@{}", agent.login, agent.host());
    let _master = alice
        .openssh("ssh")
        .args(["-M", "-N", "-o", &path])
        .arg(&host)
        .background(Stdio::null())?;
    wait::holds("the master's socket", wait::LONG, || control.exists())?;
    for i in 0..5 {
        let out = alice
            .openssh("ssh")
            .args(["-o", &path])
            .arg(&host)
            .arg(format!("echo {i}; exit {i}"))
            .run()?;
        ensure!(
            out.out() == i.to_string() && out.code() == Some(i),
            "{}",
            out.told()
        );
    }
    Ok(())
}

#[test]
fn postern_ssh_and_ls() -> Result<()> {
    let (_cluster, agent, alice) = setup()?;
    let ls = alice.postern()?.args(["ls", "ssh", "env=test"]).ok()?;
    ensure!(ls.contains("web-1"), "{ls}");
    let none = alice
        .postern()?
        .args(["--json", "ls", "ssh", "env=nowhere"])
        .ok()?;
    ensure!(!none.contains("web-1"), "{none}");
    let out = alice
        .postern()?
        .args([
            "ssh",
            &format!("{}@web-1", agent.login),
            "--",
            "echo",
            "by postern",
        ])
        .ok()?;
    ensure!(out == "by postern", "{out}");
    let status = alice.postern()?.args(["--json", "status"]).ok()?;
    ensure!(status.contains("alice"), "{status}");
    Ok(())
}
