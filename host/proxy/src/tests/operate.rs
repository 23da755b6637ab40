//! Starting, restarting, draining, and doing without Auth.

use super::lab::*;
use crate::{JoinSource, ProxyError, ProxyServer};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn the_proxy_works_on_without_auth_also_after_a_restart() {
    let mut lab = Lab::start().await;
    let echo = lab.agent("a", "tcp", &[("orders", false)]).await.echo();
    let (alice, mallory) = (lab.user("alice", 0).await, lab.user("mallory", 0).await);
    lab.lock("user:mallory").await;
    loop {
        let (reply, _) = lab.session(&mallory, "tcp", "orders").await;
        if reply.code == "locked" {
            break;
        }
    }
    lab.stop_auth().await;
    let (reply, mut stream) = lab.session(&alice, "tcp", "orders").await;
    assert!(reply.ok, "{reply:?}");
    echoes(&mut stream, b"without Auth").await;
    lab.restart_proxy().await;
    assert_eq!(lab.proxy().readiness(), Vec::<String>::new());
    echo.agent.up().await;
    loop {
        let (reply, mut stream) = lab.session(&alice, "tcp", "orders").await;
        if reply.ok {
            echoes(&mut stream, b"without Auth, from disk").await;
            break;
        }
        assert!(
            ["no-agent", "unknown-resource"].contains(&reply.code.as_str()),
            "{reply:?}"
        );
    }
    // Locks come from disk, too.
    let (reply, _) = lab.session(&mallory, "tcp", "orders").await;
    assert_eq!(reply.code, "locked");
}

#[tokio::test]
async fn drain_waits_for_sessions_and_takes_no_new_connections() {
    let lab = Lab::start().await;
    let _echo = lab.agent("a", "tcp", &[("orders", false)]).await.echo();
    let alice = lab.user("alice", 0).await;
    let (_, mut stream) = lab.session(&alice, "tcp", "orders").await;
    echoes(&mut stream, b"before").await;
    let draining = lab.proxy().drain(PATIENCE);
    tokio::pin!(draining);
    tokio::select! {
        () = &mut draining => panic!("drained with a live session"),
        () = tokio::time::sleep(Duration::from_millis(300)) => {}
    }
    assert!(tokio::net::TcpStream::connect(lab.addr()).await.is_err());
    assert_eq!(lab.proxy().readiness(), ["the proxy is draining"]);
    echoes(&mut stream, b"during").await;
    drop(stream);
    tokio::time::timeout(PATIENCE, draining).await.unwrap();
}

#[tokio::test]
async fn what_keeps_it_from_starting_is_said() {
    let lab = Lab::start().await;
    let e = ProxyServer::start(lab.opts.clone(), CancellationToken::new())
        .await
        .err()
        .unwrap();
    assert!(matches!(e, ProxyError::Listen { .. }), "{e}");
    assert!(e.to_string().contains(&lab.opts.listen), "{e}");
    let mut opts = lab.opts.clone();
    opts.public_addr = "gate.example.com".into();
    let e = ProxyServer::start(opts, CancellationToken::new())
        .await
        .err()
        .unwrap();
    assert!(matches!(e, ProxyError::PublicAddr(_)), "{e}");
}

#[tokio::test]
async fn a_refused_token_is_a_reason_for_not_being_ready() {
    let lab = Lab::start().await;
    let mut opts = lab.opts.clone();
    opts.listen = "127.0.0.1:0".into();
    opts.data_dir = lab.dir.path().join("another-host");
    opts.join = JoinSource::Local {
        token: "pt_00000000_0000000000000000000000000000000000000000".into(),
        trust: lab.trust.clone(),
    };
    let stop = CancellationToken::new();
    let proxy = ProxyServer::start(opts, stop.clone()).await.unwrap();
    let reasons = proxy.readiness();
    assert_eq!(reasons.len(), 1);
    assert!(
        reasons[0].starts_with("the proxy has not joined: ") && reasons[0].contains("token"),
        "{reasons:?}"
    );
    stop.cancel();
    proxy.stopped().await;
}
