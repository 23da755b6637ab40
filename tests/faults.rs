//! `kill -9` of each part under load: what must go on goes on, what must come back comes back in time, and the audit log
//! has every event exactly once.

use anyhow::{Context, Result, ensure};
use postern_tests::cluster::ClusterSpec;
use postern_tests::{Agent, Cluster, Lab, User, run, wait};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

struct World {
    cluster: Cluster,
    agent: Agent,
    alice: User,
}

fn world() -> Result<World> {
    let lab = Lab::new()?;
    let cluster = ClusterSpec::new(&lab).split().start()?;
    let agent = cluster.agent("web-1").start()?;
    let alice = cluster.user("alice", &[&agent.login])?;
    Ok(World {
        cluster,
        agent,
        alice,
    })
}

/// Sessions opened one after the other by two people, until told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    fn start(w: &World) -> Load {
        let (stop, served) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let threads = (0..2)
            .map(|_| {
                let (stop, served) = (stop.clone(), served.clone());
                let command = || w.alice.ssh(&w.agent);
                // Commands can't be cloned: make enough of them before, they are only descriptions.
                let mut runs: Vec<_> = (0..2000).map(|_| command()).collect();
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let Some(run) = runs.pop() else { return };
                        let mark = format!("served {}", served.load(Ordering::Relaxed));
                        if run
                            .arg(format!("echo {mark}"))
                            .run()
                            .is_ok_and(|r| r.status.success())
                        {
                            served.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        Load {
            stop,
            served,
            threads,
        }
    }

    fn count(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// Waits until it has served so many more.
    fn more(&self, n: u64, timeout: Duration) -> Result<()> {
        let goal = self.count() + n;
        wait::holds("the load to be served", timeout, || self.count() >= goal)
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let _ = thread.join();
        }
        self.served.load(Ordering::Relaxed)
    }
}

/// An echoing session that is open all the time.
fn witness(w: &World) -> Result<run::Background> {
    w.alice.ssh(&w.agent).arg("cat").background(Stdio::piped())
}

fn echoes(session: &mut run::Background) -> Result<()> {
    let child = session.child();
    child.stdin.as_mut().context("stdin")?.write_all(b"ping")?;
    let mut back = [0u8; 4];
    child
        .stdout
        .as_mut()
        .context("stdout")?
        .read_exact(&mut back)?;
    ensure!(&back == b"ping");
    Ok(())
}

/// Every uid once, and each session that someone was served has its start.
fn audit_is_whole(cluster: &Cluster, at_least_sessions: u64) -> Result<()> {
    let count = |events: &[serde_json::Value], name: &str| {
        events.iter().filter(|e| e["event"] == name).count() as u64
    };
    wait::until(
        "every served session to be in the audit log",
        wait::LONG,
        || Ok((count(&cluster.audit()?, "session.start") >= at_least_sessions).then_some(())),
    )?;
    let events = cluster.audit()?;
    let mut uids: BTreeMap<String, u32> = BTreeMap::new();
    for event in &events {
        *uids
            .entry(event["uid"].as_str().context("uid")?.to_string())
            .or_default() += 1;
    }
    let twice: Vec<_> = uids.iter().filter(|(_, n)| **n > 1).collect();
    ensure!(twice.is_empty(), "stored more than once: {twice:?}");
    eprintln!(
        "{} events, {} sessions started, {at_least_sessions} served",
        events.len(),
        count(&events, "session.start")
    );
    Ok(())
}

#[test]
fn the_proxy_dies_under_load() -> Result<()> {
    let mut w = world()?;
    let load = Load::start(&w);
    load.more(6, wait::LONG)?;
    for _ in 0..3 {
        let proxy = w.cluster.proxy.as_mut().context("proxy")?;
        proxy.kill9()?;
        // Long enough for several attempts to have failed: the backoff must not make the return late.
        std::thread::sleep(Duration::from_secs(4));
        proxy.launch()?;
        proxy.ready()?;
        let back = Instant::now();
        let (agent, alice) = (&w.agent, &w.alice);
        wait::until("the tunnel to be back", Duration::from_secs(20), || {
            let up = agent.service("ssh")?["state"] == "up";
            Ok((up && alice.ssh(agent).arg("true").run()?.status.success()).then_some(()))
        })?;
        eprintln!("the tunnel was back {:?} after the proxy", back.elapsed());
        ensure!(
            back.elapsed() < Duration::from_secs(5),
            "the tunnel was back only after {:?}",
            back.elapsed()
        );
        load.more(4, wait::LONG)?;
    }
    let served = load.end();
    audit_is_whole(&w.cluster, served)
}

#[test]
fn the_agent_dies_under_load() -> Result<()> {
    let mut w = world()?;
    let load = Load::start(&w);
    load.more(6, wait::LONG)?;
    for _ in 0..3 {
        w.agent.kill9()?;
        w.agent.launch()?;
        w.agent.ready_within(Duration::from_secs(15))?;
        load.more(4, wait::LONG)?;
    }
    // Everybody who was told "served" is in the log, although the agent died between.
    let served = load.end();
    audit_is_whole(&w.cluster, served)
}

#[test]
fn auth_dies_under_load_and_sessions_go_on() -> Result<()> {
    let mut w = world()?;
    let mut open = witness(&w)?;
    echoes(&mut open)?;
    let load = Load::start(&w);
    load.more(6, wait::LONG)?;
    for _ in 0..3 {
        w.cluster.auth.kill9()?;
        echoes(&mut open)?;
        // New ones too: roles and CAs are in the agent's cache (D11).
        load.more(6, wait::LONG)?;
        w.cluster.auth.launch()?;
        w.cluster.auth.ready()?;
        echoes(&mut open)?;
    }
    let served = load.end();
    audit_is_whole(&w.cluster, served + 1)?;
    // The agent restarted while Auth is away serves from its cache.
    w.cluster.auth.kill9()?;
    w.agent.stop(Duration::from_secs(40)).ok();
    if w.agent.is_running() {
        w.agent.kill9()?;
    }
    w.agent.launch()?;
    w.agent.ready()?;
    w.alice.ssh(&w.agent).arg("true").ok()?;
    w.cluster.auth.launch()?;
    w.cluster.auth.ready()?;
    audit_is_whole(&w.cluster, served + 2)
}

#[test]
fn a_session_ends_at_once_when_its_agent_dies() -> Result<()> {
    let mut w = world()?;
    let mut open = witness(&w)?;
    echoes(&mut open)?;
    w.agent.kill9()?;
    let status = open.wait(Duration::from_secs(15))?;
    ensure!(!status.success());
    // Who asks now is told, quickly.
    let started = Instant::now();
    let ran = w.alice.ssh(&w.agent).arg("true").run()?;
    ensure!(
        ran.code() == Some(255) && started.elapsed() < Duration::from_secs(20),
        "{}",
        ran.told()
    );
    ensure!(ran.err().contains("web-1"), "{}", ran.told());
    Ok(())
}
