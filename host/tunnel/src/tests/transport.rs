//! The ways to the proxy: straight, inside TLS, through an HTTP proxy.

use super::lab::*;
use crate::{Transport, TunnelClientOptions};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A network that lets only TLS out: everything else is closed after its first byte.
async fn tls_only(lab: &Lab) -> (SocketAddr, Arc<AtomicUsize>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let refused = Arc::new(AtomicUsize::new(0));
    let (server, tls, count) = (lab.server.clone(), lab.tls.clone(), refused.clone());
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (tcp, peer) = listener.accept().await.unwrap();
            let (server, tls, count) = (server.clone(), tls.clone(), count.clone());
            connections.spawn(async move {
                let mut first = [0];
                tcp.peek(&mut first).await.unwrap();
                if first[0] != 0x16 {
                    count.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                let Ok(io) = tls.accept(tcp).await else {
                    return;
                };
                server.serve(io, peer).await;
            });
        }
    });
    (addr, refused, task)
}

#[tokio::test]
async fn auto_falls_back_to_tls_and_remembers() {
    let lab = Lab::start().await;
    let (addr, refused, network) = tls_only(&lab).await;
    let opts = TunnelClientOptions {
        proxy_addr: addr.to_string(),
        ..lab.options()
    };
    let agent = lab.agent_with(opts, lab.credentials("a", "svc", &["x"]), &["x"]);
    agent.up().await;
    let _echo = agent.echo();
    for _ in 0..5 {
        let mut stream = lab.open("x").await;
        echoes(&mut stream, b"inside TLS").await;
    }
    assert_eq!(refused.load(Ordering::Relaxed), 1, "SSH was tried once");
    network.abort();
}

#[tokio::test]
async fn ssh_only_says_what_failed() {
    let lab = Lab::start().await;
    let (addr, _, network) = tls_only(&lab).await;
    let opts = TunnelClientOptions {
        proxy_addr: addr.to_string(),
        transport: Transport::Ssh,
        ..lab.options()
    };
    let agent = lab.agent_with(opts, lab.credentials("a", "svc", &["x"]), &["x"]);
    let why = agent.failure().await;
    assert!(why.starts_with("SSH to 127.0.0.1"), "{why}");
    network.abort();
}

#[tokio::test]
async fn where_nothing_listens_the_error_says_so() {
    let lab = Lab::start().await;
    let nobody = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let opts = TunnelClientOptions {
        proxy_addr: nobody.to_string(),
        ..lab.options()
    };
    let agent = lab.agent_with(opts, lab.credentials("a", "svc", &["x"]), &["x"]);
    let why = agent.failure().await;
    assert!(
        why.contains("cannot reach the proxy at") && why.contains("refused"),
        "{why}"
    );
}

/// Speaks just enough HTTP for one CONNECT.
async fn http_proxy(authorization: &'static str) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (client, _) = listener.accept().await.unwrap();
            connections.spawn(async move {
                let mut client = BufReader::new(client);
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    if client.read_line(&mut head).await.unwrap() == 0 {
                        return;
                    }
                }
                let target = head.split(' ').nth(1).unwrap().to_owned();
                assert!(head.starts_with("CONNECT "), "{head}");
                if !head.to_lowercase().contains(&authorization.to_lowercase()) {
                    client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n").await.unwrap();
                    return;
                }
                let mut upstream = TcpStream::connect(target).await.unwrap();
                client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
            });
        }
    });
    (addr, task)
}

#[tokio::test]
async fn through_an_http_proxy_with_a_password() {
    let lab = Lab::start().await;
    // "agent:secret" in base64.
    let (via, task) = http_proxy("proxy-authorization: Basic YWdlbnQ6c2VjcmV0").await;
    let with = |url: String| TunnelClientOptions {
        http_proxy: Some(url),
        ..lab.options()
    };
    let agent = lab.agent_with(
        with(format!("http://agent:secret@{via}")),
        lab.credentials("a", "svc", &["x"]),
        &["x"],
    );
    agent.up().await;
    let _echo = agent.echo();
    let mut stream = lab.open("x").await;
    echoes(&mut stream, b"through a proxy").await;

    let agent = lab.agent_with(
        with(format!("http://agent:wrong@{via}")),
        lab.credentials("b", "svc", &["y"]),
        &["y"],
    );
    let why = agent.failure().await;
    assert!(why.contains("407") && !why.contains("wrong"), "{why}");
    task.abort();
}

#[tokio::test]
async fn a_name_that_stalls_the_handshake_times_out() {
    let lab = Lab::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut opts = TunnelClientOptions {
        proxy_addr: listener.local_addr().unwrap().to_string(),
        transport: Transport::Ssh,
        ..lab.options()
    };
    opts.timing.dial_timeout = Duration::from_millis(300);
    let agent = lab.agent_with(opts, lab.credentials("a", "svc", &["x"]), &["x"]);
    let (mut held, _) = listener.accept().await.unwrap();
    let why = agent.failure().await;
    assert!(
        why.contains("SSH handshake") && why.contains("longer than 300ms"),
        "{why}"
    );
    let mut banner = [0; 8];
    held.read_exact(&mut banner).await.unwrap();
    assert_eq!(&banner, b"SSH-2.0-");
}
