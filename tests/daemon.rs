//! The daemon by itself: what it refuses to start with, what it survives, what it tells.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use postern_tests::{
    Cluster, Daemon, Lab, Place, Run, bin, cluster::ClusterSpec, free_port, is_root, skip_unless,
    wait,
};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

fn config(auth: u16, proxy: u16) -> String {
    format!(
        "version = 1\ncluster = \"demo\"\ndata_dir = \"{{data_dir}}\"\n[auth]\nlisten = \"127.0.0.1:{auth}\"\n[proxy]\nlisten = \"127.0.0.1:{proxy}\"\npublic_addr = \"127.0.0.1:{proxy}\"\n"
    )
}

/// Starts it, expects it to end with an error, and gives what it said.
fn must_fail(
    lab: &Arc<Lab>,
    name: &str,
    config: &str,
    prepare: impl FnOnce(&Daemon) -> Result<()>,
) -> Result<String> {
    let mut daemon = Daemon::prepare(lab, name, Place::here(), config)?;
    prepare(&daemon)?;
    daemon.launch()?;
    let status = daemon.ended(Duration::from_secs(15))?;
    ensure!(
        !status.success(),
        "it should have ended with an error: {}",
        daemon.log()
    );
    Ok(daemon.log())
}

#[test]
fn a_port_in_use_is_named() -> Result<()> {
    let lab = Lab::new()?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port();
    for (name, config) in [
        ("auth", config(port, free_port()?)),
        ("proxy", config(free_port()?, port)),
    ] {
        let said = must_fail(&lab, name, &config, |_| Ok(()))?;
        ensure!(
            said.contains(&format!("127.0.0.1:{port}")) && said.contains("in use"),
            "{name}: {said}"
        );
    }
    Ok(())
}

#[test]
fn a_data_directory_that_others_can_enter_is_refused() -> Result<()> {
    let lab = Lab::new()?;
    let said = must_fail(&lab, "loose", &config(free_port()?, free_port()?), |d| {
        std::fs::create_dir(d.data_dir())?;
        Ok(std::fs::set_permissions(
            d.data_dir(),
            std::fs::Permissions::from_mode(0o755),
        )?)
    })?;
    ensure!(said.contains("0755") || said.contains("755"), "{said}");
    ensure!(
        said.contains("chmod") || said.contains("0700"),
        "it should say what to do: {said}"
    );
    Ok(())
}

#[test]
fn a_secret_that_others_can_read_is_refused() -> Result<()> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let mut agent = cluster.agent("web-1").start()?;
    agent.stop(wait::LONG)?;
    let key = agent.data_dir().join("host.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644))?;
    agent.launch()?;
    let status = agent.ended(Duration::from_secs(15))?;
    ensure!(
        !status.success() && agent.log().contains("host.key"),
        "{}",
        agent.log_tail(10)
    );
    Ok(())
}

#[test]
fn two_daemons_do_not_share_a_data_directory() -> Result<()> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let mut second = Daemon::prepare(&lab, "second", Place::here(), "")?;
    let text = config(free_port()?, free_port()?)
        .replace("{data_dir}", &cluster.data_dir().display().to_string());
    second.write_config(&text)?;
    second.launch()?;
    ensure!(!second.ended(Duration::from_secs(15))?.success());
    ensure!(
        second.log().contains("another posternd"),
        "{}",
        second.log()
    );
    Ok(())
}

/// Each state file of an agent, cut in half as a crash in the middle of a write would (if writes were not atomic).
#[test]
fn half_written_state_is_named_or_made_again_but_never_taken() -> Result<()> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let mut agent = cluster.agent("web-1").start()?;
    let alice = cluster.user("alice", &[&agent.login])?;
    alice.ssh(&agent).arg("true").ok()?;
    agent.stop(wait::LONG)?;
    let whole = lab.join("whole");
    copy(&agent.data_dir(), &whole)?;
    let mut files = Vec::new();
    walk(&whole, &mut files)?;
    ensure!(files.len() > 3, "{files:?}");
    for file in files {
        let relative = file.strip_prefix(&whole)?.to_path_buf();
        let length = file.metadata()?.len();
        if length < 2 || relative.extension().is_some_and(|e| e == "lock") {
            continue;
        }
        std::fs::remove_dir_all(agent.data_dir())?;
        copy(&whole, &agent.data_dir())?;
        File::truncate(&agent.data_dir().join(&relative), length / 2)?;
        agent.launch()?;
        let outcome = wait::until(
            &format!("{} cut in half to be dealt with", relative.display()),
            wait::LONG,
            || {
                if !agent.is_running() {
                    return Ok(Some("refused"));
                }
                let service = agent.service("ssh").ok();
                Ok(match service.as_ref().and_then(|s| s["state"].as_str()) {
                    Some("up") => Some("healed"),
                    Some("join-failed") => Some("told"),
                    _ => None,
                })
            },
        )?;
        eprintln!("{}: {outcome}", relative.display());
        match outcome {
            "healed" => {
                alice
                    .ssh(&agent)
                    .arg("true")
                    .ok()
                    .with_context(|| format!("{} cut", relative.display()))?;
                agent.stop(wait::LONG)?;
            }
            "told" => drop(agent.stop(wait::LONG)?),
            _ => {
                let status = agent.ended(Duration::from_secs(5))?;
                ensure!(!status.success(), "{}: ended with 0", relative.display());
                let name = relative
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                ensure!(
                    agent.log_tail(5).contains(&name),
                    "it should name {name}: {}",
                    agent.log_tail(5)
                );
                ensure!(
                    !agent.log_tail(50).contains("panicked"),
                    "{}",
                    agent.log_tail(50)
                );
            }
        }
    }
    Ok(())
}

struct File;

impl File {
    fn truncate(path: &Path, length: u64) -> Result<()> {
        Ok(std::fs::File::options()
            .write(true)
            .open(path)?
            .set_len(length)?)
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    Run::new(Command::new("cp"))
        .arg("-a")
        .arg(from)
        .arg(to)
        .ok()
        .map(drop)
}

fn walk(dir: &Path, files: &mut Vec<std::path::PathBuf>) -> Result<()> {
    for path in std::fs::read_dir(dir)?.flatten().map(|e| e.path()) {
        if path.is_dir() {
            walk(&path, files)?;
        } else if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

/// The agent's disk is full: sessions are not served unrecorded, and come back when there is room.
#[test]
fn a_full_disk_is_told_and_got_over() -> Result<()> {
    skip_unless!(is_root(), "mounting a small file system needs root");
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let dir = lab.join("agent-web-1/data");
    std::fs::create_dir_all(&dir)?;
    Run::new(Command::new("mount"))
        .args(["-t", "tmpfs", "-o", "size=8m,mode=0700", "postern-test"])
        .arg(&dir)
        .ok()?;
    let _unmount = Unmount(dir.clone());
    let mut agent = cluster.agent("web-1").start()?;
    let alice = cluster.user("alice", &[&agent.login])?;
    alice.ssh(&agent).arg("true").ok()?;
    let filler = dir.join("filler");
    let full = Run::new(Command::new("dd"))
        .args(["if=/dev/zero", "bs=64k"])
        .arg(format!("of={}", filler.display()))
        .run()?;
    ensure!(!full.status.success(), "the disk should be full now");
    let ran = alice.ssh(&agent).arg("echo served").run()?;
    ensure!(
        agent.is_running(),
        "a full disk must not end the agent: {}",
        agent.log_tail(20)
    );
    if !ran.status.success() {
        agent.wait_log("space", wait::LONG)?;
    }
    std::fs::remove_file(&filler)?;
    wait::until("sessions to be served again", wait::LONG, || {
        Ok(alice
            .ssh(&agent)
            .arg("true")
            .run()?
            .status
            .success()
            .then_some(()))
    })?;
    // Whatever was served is in the log.
    let ids = |name: &str| {
        cluster
            .audit()
            .map(|a| a.iter().filter(|e| e["event"] == name).count())
    };
    wait::until("every session's end to be stored", wait::LONG, || {
        Ok((ids("session.start")? == ids("session.end")?).then_some(()))
    })
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn auths_disk_full_refuses_and_recovers() -> Result<()> {
    skip_unless!(is_root(), "mounting a small file system needs root");
    let lab = Lab::new()?;
    let dir = lab.join("auth/data");
    std::fs::create_dir_all(&dir)?;
    Run::new(Command::new("mount"))
        .args(["-t", "tmpfs", "-o", "size=16m,mode=0700", "postern-test"])
        .arg(&dir)
        .ok()?;
    let _unmount = Unmount(dir.clone());
    let mut cluster = ClusterSpec::new(&lab).split().start()?;
    let filler = dir.join("filler");
    Run::new(Command::new("dd"))
        .args(["if=/dev/zero", "bs=4k"])
        .arg(format!("of={}", filler.display()))
        .run()?;
    let refused = cluster
        .admin_run()?
        .args(["users", "create", "bob", "--roles", "access"])
        .run()?;
    if !refused.status.success() {
        ensure!(refused.err().contains("full"), "{}", refused.told());
    }
    ensure!(cluster.auth.is_running());
    std::fs::remove_file(&filler)?;
    cluster.admin(&["users", "create", "carol", "--roles", "access"])?;
    Ok(())
}

#[test]
fn check_says_where_and_what() -> Result<()> {
    let lab = Lab::new()?;
    let check = |text: &str| -> Result<postern_tests::Ran> {
        let file = lab.file("c.toml", text)?;
        Run::new(Command::new(bin("posternd")?))
            .arg("check")
            .arg(file)
            .run()
    };
    let good = config(3025, 443).replace("{data_dir}", "/tmp/x");
    ensure!(check(&good)?.status.success(), "{}", check(&good)?.told());
    let typo = good.replace("public_addr", "public_adr");
    check(&typo)?.refused("public_addr")?;
    check(&typo)?.refused("c.toml:")?;
    check("version = 1\ncluster = \"demo\"\n[auth\n")?.refused("c.toml:3")?;
    check(&good.replace("version = 1", "version = 9"))?.refused("version")?;
    check(&good.replace("cluster = \"demo\"", "cluster = \"Not A Name\""))?.refused("cluster")?;
    Ok(())
}

#[test]
fn status_health_and_metrics_are_told() -> Result<()> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let agent = cluster.agent("web-1").start()?;
    let alice = cluster.user("alice", &[&agent.login])?;
    alice.ssh(&agent).arg("true").ok()?;
    ensure!(
        agent.get("/healthz")?.0 == 200
            && agent.get("/readyz")?.0 == 200
            && agent.get("/nothing")?.0 == 404
    );
    let table = Run::new(Command::new(bin("posternd")?))
        .args(["status", "-c"])
        .arg(agent.config_path())
        .ok()?;
    for word in ["ssh", "up", "web-1", "ready"] {
        ensure!(table.contains(word), "no {word:?} in:\n{table}");
    }
    for daemon in [&cluster.auth, &*agent] {
        let (_, metrics) = daemon.get("/metrics")?;
        ensure!(metrics.contains("postern_"), "{metrics}");
        for label in ["alice", "web-1"] {
            ensure!(
                !metrics.contains(label),
                "metrics must not name users or resources: {label}\n{metrics}"
            );
        }
    }
    let socket = std::fs::metadata(agent.data_dir().join("posternd.sock"))?
        .permissions()
        .mode()
        & 0o777;
    ensure!(socket == 0o600, "{socket:o}");
    // No secret of any kind in the logs.
    for daemon in [&cluster.auth, &*agent] {
        let log = daemon.log();
        ensure!(
            !log.contains("PRIVATE KEY") && !log.contains(&alice.password),
            "a secret in the log of {}",
            daemon.name
        );
    }
    Ok(())
}

#[test]
fn sigterm_waits_for_sessions_and_takes_no_new_ones() -> Result<()> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let mut agent = cluster.agent("web-1").start()?;
    let alice = cluster.user("alice", &[&agent.login])?;
    let mut session = alice
        .ssh(&agent)
        .arg("read x; echo got-$x")
        .background(Stdio::piped())?;
    wait::holds("the session to be there", wait::LONG, || {
        agent.service("ssh").is_ok_and(|s| s["sessions"] == 1)
    })?;
    agent.signal(Signal::SIGTERM)?;
    wait::until("new sessions to be refused", wait::LONG, || {
        Ok((!alice.ssh(&agent).arg("true").run()?.status.success()).then_some(()))
    })?;
    ensure!(
        agent.is_running() && session.is_running(),
        "the open session must go on"
    );
    use std::io::{Read, Write};
    let child = session.child();
    child.stdin.take().context("stdin")?.write_all(b"it\n")?;
    let mut out = String::new();
    child
        .stdout
        .take()
        .context("stdout")?
        .read_to_string(&mut out)?;
    ensure!(out == "got-it\n", "{out:?}");
    ensure!(
        agent.ended(Duration::from_secs(10))?.success(),
        "{}",
        agent.log_tail(10)
    );
    cluster
        .audited("session.end", |e| e["user"] == "alice")
        .map(drop)
}

#[test]
fn dev_is_a_whole_cluster() -> Result<()> {
    let lab = Lab::new()?;
    let dir = lab.join("dev");
    let mut dev = Run::new(Command::new(bin("posternd")?))
        .args(["dev", "--dir"])
        .arg(&dir)
        .background(Stdio::piped())?;
    let mut out = dev.child().stdout.take().context("stdout")?;
    let (send, lines) = std::sync::mpsc::sync_channel(16);
    std::thread::spawn(move || {
        use std::io::Read;
        let mut seen = String::new();
        let mut buffer = [0u8; 4096];
        while let Ok(n @ 1..) = out.read(&mut buffer) {
            seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
            if send.send(seen.clone()).is_err() {
                break;
            }
        }
    });
    let mut said = String::new();
    wait::until(
        "posternd dev to say what to try",
        Duration::from_secs(60),
        || {
            while let Ok(more) = lines.try_recv() {
                said = more;
            }
            Ok(said.contains("postern ssh").then_some(()))
        },
    )?;
    let line = said
        .lines()
        .find(|l| l.trim().starts_with("postern ssh"))
        .context("postern ssh")?;
    let target = line.split_whitespace().nth(2).context("target")?;
    let home = said
        .split("POSTERN_HOME=")
        .nth(1)
        .and_then(|s| s.split_whitespace().next())
        .context("POSTERN_HOME")?;
    let ran = Run::new(Command::new(bin("postern")?))
        .env("POSTERN_HOME", home)
        .args(["ssh", target, "--", "echo", "hello from dev"]);
    ensure!(ran.ok()? == "hello from dev");
    Ok(())
}
