//! Those who do not say who they are.

use super::lab::*;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// What the peer says; then a byte a second of `drip`.
async fn cut_off_after(addr: std::net::SocketAddr, said: Vec<u8>, drip: Vec<u8>) -> Duration {
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    let started = Instant::now();
    tcp.write_all(&said).await.unwrap();
    let (mut r, mut w) = tcp.split();
    let dripping = async {
        for byte in drip {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if w.write_all(&[byte]).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let mut rest = Vec::new();
    tokio::select! {
        () = dripping => {}
        _ = r.read_to_end(&mut rest) => {}
    }
    started.elapsed()
}

#[tokio::test]
async fn nothing_garbage_and_a_byte_a_second_are_cut_off_and_reach_no_agent() {
    let lab = Lab::start().await;
    let mut agent = lab.agent("a", "kubernetes", &[("prod", true)]).await;
    let addr = lab.addr();
    let hello = {
        // A record header that promises 500 bytes, and a few of them.
        let mut hello = vec![0x16, 3, 1, 1, 0xf4, 1, 0, 1, 0xf0, 3, 3];
        hello.resize(60, 7);
        hello
    };
    let cases: Vec<(&str, Vec<u8>, Vec<u8>)> = vec![
        ("nothing", vec![], vec![]),
        (
            "garbage",
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            vec![],
        ),
        ("zeros", vec![0; 5000], vec![]),
        ("half a hello", hello[..30].to_vec(), vec![]),
        ("a hello by the byte", vec![], hello),
        (
            "ssh by the byte",
            vec![],
            b"SSH-2.0-slow_and_steady".to_vec(),
        ),
        ("ssh and nothing more", b"SSH-2.0-x\r\n".to_vec(), vec![]),
        (
            "ssh and a byte a second",
            b"SSH-2.0-x\r\n".to_vec(),
            vec![0; 60],
        ),
        (
            "postgres by the byte",
            vec![],
            vec![0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
        (
            "postgres and nothing more",
            vec![0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f],
            vec![],
        ),
    ];
    let mut running = JoinSet::new();
    for (what, said, drip) in cases {
        running.spawn(async move { (what, cut_off_after(addr, said, drip).await) });
    }
    while let Some(done) = running.join_next().await {
        let (what, after) = done.unwrap();
        assert!(after < Duration::from_millis(10_900), "{what}: {after:?}");
    }
    assert!(agent.incoming.try_recv().is_err());
    agent.up().await;
}

#[tokio::test]
async fn tls_and_then_silence_is_cut_off_too() {
    let lab = Lab::start().await;
    let mut running = JoinSet::new();
    for alpn in [&b"http/1.1"[..], b"postern-tunnel"] {
        let name = postern_identity::proxy_dns(CLUSTER);
        let mut tls = lab.tls(&name, &[alpn], None).await.unwrap();
        running.spawn(async move {
            let started = Instant::now();
            until_closed(&mut tls).await;
            started.elapsed()
        });
    }
    while let Some(after) = running.join_next().await {
        assert!(after.unwrap() < Duration::from_millis(10_900));
    }
}
