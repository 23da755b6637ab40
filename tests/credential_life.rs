//! Credentials over time (D3): renewed at half-life, in use while Auth is away, taken up again by a host that slept.
//! Certificates live a minute here, the shortest there is, so these tests are long; they mostly wait.

use anyhow::{Context, Result, ensure};
use postern_tests::{Agent, Cluster, ClusterSpec, Lab, wait};
use std::io::{Read, Write};
use std::process::Stdio;
use std::time::Duration;

/// More than half of a minute's life, with what a loaded machine takes.
const HALF_LIFE: Duration = Duration::from_secs(50);
/// Until a certificate of a minute has expired, with some to spare.
const EXPIRED: Duration = Duration::from_secs(75);

fn generation(agent: &Agent) -> Result<u64> {
    agent.service("ssh")?["generation"]
        .as_u64()
        .context("generation")
}

fn renewed_to(agent: &Agent, generation_then: u64) -> Result<()> {
    let what = format!("generation {generation_then}");
    wait::until(&what, HALF_LIFE, || {
        Ok((generation(agent)? >= generation_then).then_some(()))
    })
    .with_context(|| agent.log_tail(20))
}

#[test]
fn credentials_are_renewed_under_a_session_and_outlast_an_auth_that_is_away() -> Result<()> {
    let lab = Lab::new()?;
    let mut cluster = ClusterSpec::new(&lab)
        .split()
        .auth_lines("cert_ttl = \"1m\"")
        .start()?;
    let agent = cluster.agent("web-1").start()?;
    let alice = cluster.user("alice", &[&agent.login])?;
    let mut session = alice.ssh(&agent).arg("cat").background(Stdio::piped())?;
    let mut ping = || -> Result<()> {
        let child = session.child();
        child.stdin.as_mut().context("stdin")?.write_all(b"ping")?;
        let mut back = [0u8; 4];
        let out = child.stdout.as_mut().context("stdout")?;
        out.read_exact(&mut back).context("the session has ended")?;
        ensure!(&back == b"ping");
        Ok(())
    };
    ping()?;
    renewed_to(&agent, 2)?;
    ping()?;
    alice.ssh(&agent).arg("true").ok()?;
    // Auth goes: at the next half-life there is no answer, and what is held serves on.
    cluster.auth.kill9()?;
    wait::until("the renewal to fail", HALF_LIFE, || {
        let failed = agent.service("ssh")?["renewal_failed"].clone();
        Ok(failed.is_string().then_some(()))
    })?;
    ensure!(agent.service("ssh")?["state"] == "up");
    ping()?;
    alice.ssh(&agent).arg("true").ok()?;
    cluster.auth.launch()?;
    renewed_to(&agent, 3)?;
    wait::until("the failure to be over", wait::LONG, || {
        Ok(agent.service("ssh")?["renewal_failed"]
            .is_null()
            .then_some(()))
    })?;
    ping()
}

#[test]
fn a_host_that_slept_comes_back_within_the_window_and_not_after_it() -> Result<()> {
    let sleeper = |window: &str| -> Result<(Cluster, Agent)> {
        let lab = Lab::new()?;
        let lines = format!("cert_ttl = \"1m\"\n{window}");
        let cluster = ClusterSpec::new(&lab).auth_lines(&lines).start()?;
        let mut agent = cluster.agent("web-1").start()?;
        agent.kill9()?;
        Ok((cluster, agent))
    };
    let (_here, mut within) = sleeper("")?;
    let (beyond_cluster, mut beyond) = sleeper("rejoin_window = \"1s\"")?;
    // Nobody uses the token again: the host key is enough, or nothing is.
    for agent in [&within, &beyond] {
        let config = std::fs::read_to_string(agent.config_path())?;
        let without: Vec<&str> = config
            .lines()
            .filter(|l| !l.starts_with("join_params"))
            .collect();
        agent.write_config(&without.join("\n"))?;
    }
    let file = within.data_dir().join("services/ssh/credentials.json");
    let state: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(file)?)?;
    let expires = state["not_after_unix"].as_u64().context("not_after_unix")?;
    wait::holds("the certificates to expire", EXPIRED, || {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        now > expires + 3
    })?;
    within.launch()?;
    within.ready()?;
    ensure!(generation(&within)? == 2);
    beyond.launch()?;
    let why = beyond.service_state("ssh", "join-failed", wait::LONG)?;
    ensure!(why.contains("rejoin window"), "{why}");
    beyond_cluster
        .audited("agent.join.refused", |e| e["reason"] == "rejoin-window")
        .map(drop)
}
