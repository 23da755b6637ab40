//! Tunnels that are lost, renewed, shared, drained and cut.

use super::lab::*;
use crate::{Incoming, OpenError, TunnelClientOptions, TunnelState};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

#[tokio::test]
async fn a_silent_proxy_is_found_dead_and_so_is_a_silent_agent() {
    let lab = Lab::start().await;
    let relay = Relay::start(lab.addr).await;
    let opts = TunnelClientOptions {
        proxy_addr: relay.addr.to_string(),
        ..lab.options()
    };
    let mut agent = lab.agent_with(opts, lab.credentials("a", "svc", &["x"]), &["x"]);
    agent.up().await;
    let mut at_proxy = lab.open("x").await;
    let Incoming { mut stream, .. } = agent.incoming.recv().await.unwrap();
    relay.frozen.send_replace(true);
    let why = agent.failure().await;
    assert!(why.contains("silent"), "{why}");
    eventually(|| lab.registry().agents().is_empty()).await;
    // Its streams went the same way; nobody waits for TCP to notice.
    let mut rest = Vec::new();
    timeout(Duration::from_secs(5), at_proxy.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap_err();
    timeout(Duration::from_secs(5), stream.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap_err();
}

#[tokio::test]
async fn a_tunnel_comes_back_after_the_proxy_was_killed() {
    let mut lab = Lab::start().await;
    let agent = lab.agent("a", &["x"]);
    agent.up().await;
    let echo = agent.echo();
    for _ in 0..3 {
        let mut stream = lab.open("x").await;
        echoes(&mut stream, b"hello").await;
        lab.kill_and_restart().await;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap_err();
        lab.routed("x", 1).await;
    }
    eventually(|| matches!(echo.client.state(), TunnelState::Up { .. })).await;
}

#[tokio::test]
async fn two_agents_share_a_resource_and_one_dies() {
    let lab = Lab::start().await;
    let mut a = lab.agent("a", &["x"]);
    let mut b = lab.agent("b", &["x"]);
    lab.routed("x", 2).await;
    // They take turns.
    let (first, second) = (lab.open("x").await, lab.open("x").await);
    let (at_a, at_b) = (
        a.incoming.recv().await.unwrap(),
        b.incoming.recv().await.unwrap(),
    );
    drop((first, second, at_a, at_b));
    drop(a);
    let _echo = b.echo();
    for _ in 0..10 {
        let mut stream = lab.open("x").await;
        echoes(&mut stream, b"served").await;
    }
    lab.routed("x", 1).await;
}

#[tokio::test]
async fn one_of_two_agents_falls_silent_and_streams_go_to_the_other() {
    let lab = Lab::start().await;
    let relay = Relay::start(lab.addr).await;
    let opts = TunnelClientOptions {
        proxy_addr: relay.addr.to_string(),
        ..lab.options()
    };
    let a = lab.agent_with(opts, lab.credentials("a", "svc", &["x"]), &["x"]);
    let b = lab.agent("b", &["x"]);
    lab.routed("x", 2).await;
    let _echo = b.echo();
    relay.frozen.send_replace(true);
    // Suspect after one and a half heartbeats, dead only later.
    tokio::time::sleep(timing().heartbeat * 2).await;
    for _ in 0..4 {
        let mut stream = lab.open("x").await;
        timeout(Duration::from_secs(5), echoes(&mut stream, b"served"))
            .await
            .unwrap();
    }
    drop(a);
}

#[tokio::test]
async fn drain_lets_live_streams_finish_and_takes_no_new_ones() {
    let lab = Lab::start().await;
    let mut agent = lab.agent("a", &["x"]);
    agent.up().await;
    let mut at_proxy = lab.open("x").await;
    let Incoming { mut stream, .. } = agent.incoming.recv().await.unwrap();
    let client = agent.client;
    let draining = tokio::spawn(async move {
        client.drain().await;
        client
    });
    lab.routed("x", 0).await;
    let e = lab
        .registry()
        .open(&id("x"), header("x"))
        .await
        .unwrap_err();
    assert!(matches!(e, OpenError::NoAgent(_)), "{e}");
    assert!(!draining.is_finished());
    at_proxy.write_all(b"last words").await.unwrap();
    at_proxy.shutdown().await.unwrap();
    let mut heard = String::new();
    stream.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "last words");
    stream.write_all(b"farewell").await.unwrap();
    stream.shutdown().await.unwrap();
    heard.clear();
    at_proxy.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "farewell");
    drop((stream, at_proxy));
    let client = timeout(Duration::from_secs(15), draining)
        .await
        .expect("drained")
        .unwrap();
    assert!(matches!(client.state(), TunnelState::Draining));
}

#[tokio::test]
async fn a_goodbye_sends_the_agent_elsewhere_and_streams_live_on() {
    let lab = Lab::start().await;
    let agent = lab.agent("a", &["x"]);
    agent.up().await;
    let echo = agent.echo();
    let mut stream = lab.open("x").await;
    echoes(&mut stream, b"before").await;
    lab.server.drain().await;
    // It comes back at once, to the same proxy here, which sends it away.
    let mut state = echo.client.watch();
    let away = state.wait_for(|s| matches!(s, TunnelState::Connecting { last_error: Some(e), .. } if e.contains("shutting down")));
    let away = timeout(Duration::from_millis(500), away).await.is_ok();
    echoes(&mut stream, b"after").await;
    // The old connection stays until there is a new one, so the state may also still be up.
    assert!(away || matches!(echo.client.state(), TunnelState::Up { .. }));
}

#[tokio::test]
async fn renewed_credentials_take_over_without_a_gap() {
    let lab = Lab::start().await;
    let agent = lab.agent("a", &["x"]);
    agent.up().await;
    let echo = agent.echo();
    let mut held = lab.open("x").await;
    echoes(&mut held, b"old").await;
    let before = lab.registry().agents()[0].since;
    // The new certificate names one resource more, and only then may it be announced.
    echo.announce.send_replace(announcement(&["x", "y"]));
    assert_eq!(lab.registry().lookup(&id("y")), None);
    echo.credentials
        .send_replace(lab.credentials("a", "svc", &["x", "y"]));
    while lab.registry().lookup(&id("y")).is_none() {
        assert!(lab.registry().lookup(&id("x")).is_some(), "a gap");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(lab.registry().agents().iter().all(|a| a.since > before));
    echoes(&mut held, b"the old stream lives").await;
    let mut fresh = lab.open("y").await;
    echoes(&mut fresh, b"new").await;
}

#[tokio::test]
async fn a_lock_cuts_the_tunnel_and_all_its_streams() {
    let lab = Lab::start().await;
    let agent = lab.agent("a", &["x"]);
    agent.up().await;
    let echo = agent.echo();
    let other = lab.agent("b", &["y"]);
    other.up().await;
    let _other = other.echo();
    // One stream of an earlier control connection, one of the present one.
    let mut early = lab.open("x").await;
    echoes(&mut early, b"one").await;
    let since = lab.registry().agents().iter().map(|a| a.since).max();
    echo.credentials
        .send_replace(lab.credentials("a", "svc", &["x"]));
    eventually(|| lab.registry().agents().iter().map(|a| a.since).max() > since).await;
    let mut late = lab.open("x").await;
    echoes(&mut late, b"two").await;
    let mut elsewhere = lab.open("y").await;
    lab.locked.lock().unwrap().insert(host_id("a"));
    lab.registry().disconnect(&host_id("a"), None);
    for mut stream in [early, late] {
        let mut rest = Vec::new();
        timeout(Duration::from_secs(5), stream.read_to_end(&mut rest))
            .await
            .unwrap()
            .unwrap_err();
    }
    lab.routed("x", 0).await;
    let mut state = echo.client.watch();
    let locked = state.wait_for(|s| matches!(s, TunnelState::Connecting { last_error: Some(e), .. } if e.contains("locked")));
    timeout(Duration::from_secs(5), locked)
        .await
        .unwrap()
        .unwrap();
    echoes(&mut elsewhere, b"others go on").await;
}

#[tokio::test]
async fn idle_connections_are_asked_for_a_sign_of_life_and_give_it() {
    let lab = Lab::start().await;
    let mut opts = lab.options();
    opts.timing.idle_ping = Duration::from_millis(20);
    let agent = lab.agent_with(opts, lab.credentials("a", "svc", &["x"]), &["x"]);
    agent.up().await;
    let _echo = agent.echo();
    eventually(|| lab.registry().agents()[0].idle == 1).await;
    let connections = lab.accepted.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(lab.accepted.load(Ordering::Relaxed), connections);
    let mut stream = lab.open("x").await;
    echoes(&mut stream, b"still good").await;
}

#[tokio::test]
async fn the_same_service_over_and_over_is_limited() {
    let lab = Lab::start().await;
    // As a copied disk would do: each takes over from the one before.
    let copies: Vec<_> = (0..12).map(|_| lab.agent("a", &["x"])).collect();
    for _ in 0..50 {
        assert!(lab.registry().agents().len() <= 1);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(copies);
    eventually(|| lab.registry().agents().is_empty()).await;
}

#[tokio::test]
async fn dropping_the_client_closes_everything() {
    let lab = Lab::start().await;
    let agent = lab.agent("a", &["x"]);
    agent.up().await;
    let mut stream = lab.open("x").await;
    drop(agent);
    let mut rest = Vec::new();
    timeout(Duration::from_secs(5), stream.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap_err();
    eventually(|| lab.registry().agents().is_empty()).await;
}
