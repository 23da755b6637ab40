//! The main job: an agent in a network that lets nothing in, users and proxy in another; only what the agent dials out
//! connects the two.

use anyhow::{Result, ensure};
use postern_tests::cluster::ClusterSpec;
use postern_tests::{Closed, Lab, Place, Run, skip_unless};
use std::time::Duration;

fn reach(transport: &str) -> Result<()> {
    let possible = Closed::possible();
    skip_unless!(possible.is_ok(), possible.err().unwrap_or_default());
    let nets = Closed::new()?;
    let lab = Lab::new()?;
    let outside = Place::here().net(&nets.outside);
    let cluster = ClusterSpec::new(&lab)
        .place(outside.clone(), &nets.outside_addr)
        .start()?;
    let agent = cluster
        .agent("web-1")
        .place(Place::here().net(&nets.inside));
    let mut agent = agent
        .agent_lines(&format!("transport = \"{transport}\""))
        .start()?;
    let alice = cluster.user("alice", &[&agent.login])?;

    // Nothing from outside gets in, not even an answer that it does not.
    let knock = format!("exec 3<>/dev/tcp/{}/22", nets.inside_addr);
    let knock = outside
        .run(std::path::Path::new("timeout"))
        .args(["2", "bash", "-c", &knock])
        .run()?;
    ensure!(
        !knock.status.success(),
        "the closed network let something in"
    );
    ensure!(
        listeners(&agent)?.is_empty(),
        "the agent listens: {:?}",
        listeners(&agent)?
    );

    // And yet: ssh, both ways, with the addresses of the inside.
    let out = alice
        .ssh(&agent)
        .arg("cat; ip -br addr show veth0")
        .stdin("through the tunnel\n")
        .ok()?;
    ensure!(
        out.contains("through the tunnel") && out.contains(&nets.inside_addr),
        "{out}"
    );
    let rsync = Run::new(alice.place().command(std::path::Path::new("scp")))
        .env("POSTERN_HOME", &alice.home);
    let file = lab.file("f", vec![7u8; 5_000_000])?;
    rsync
        .arg("-F")
        .arg(alice.ssh_config())
        .arg(&file)
        .arg(format!("{}@{}:f", agent.login, agent.host()))
        .ok()?;
    let rtt = agent.service("ssh")?["tunnel_rtt_ms"].as_f64();
    ensure!(
        rtt.is_some_and(|ms| ms < 1000.0),
        "the heartbeat should tell a round-trip time: {rtt:?}"
    );

    // The wire is pulled: noticed within 15 s on the agent's side, and mended by itself when it is back.
    nets.inside
        .sh("iptables -I OUTPUT 1 -o veth0 -j DROP; iptables -I INPUT 1 -i veth0 -j DROP")?;
    agent.service_state("ssh", "connecting", Duration::from_secs(16))?;
    let refused = alice.ssh(&agent).arg("true").run()?;
    refused.refused("web-1")?;
    nets.inside
        .sh("iptables -D OUTPUT 1; iptables -D INPUT 1")?;
    agent.ready_within(Duration::from_secs(20))?;
    alice.ssh(&agent).arg("true").ok()?;
    Ok(())
}

/// TCP ports that the agent's network listens on.
fn listeners(agent: &postern_tests::Agent) -> Result<Vec<String>> {
    let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", agent.pid()?))?;
    let listening = table
        .lines()
        .filter(|l| l.split_whitespace().nth(3) == Some("0A"));
    Ok(listening
        .map(|l| l.split_whitespace().nth(1).unwrap_or_default().to_string())
        .collect())
}

#[test]
fn an_agent_that_can_only_dial_out_is_reached() -> Result<()> {
    reach("auto")
}

#[test]
fn and_where_only_tls_gets_out() -> Result<()> {
    reach("tls")
}
