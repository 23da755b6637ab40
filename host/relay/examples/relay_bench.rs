//! Bulk through `plugins/tcp` against a native `copy_bidirectional`, over loopback sockets, in interleaved rounds.
//!
//! `relay_bench [ROUNDS] [MEGABYTES]` prints {"plugin_mb_s":[…],"native_mb_s":[…]} (one number per round, MB = 10^6 bytes).
//! Sender, receiver and relay share the process, for both alike. `cargo xtask bench` runs it in release.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use postern_plugin::{Endpoint, Limits, Plugin, PluginEvent, PluginSource};
use postern_plugin_testing::{guest, runtime};
use postern_relay::{BoxedStream, CodecHost, run_codec};
use std::net::SocketAddr;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

struct Dial(SocketAddr);

impl CodecHost for Dial {
    async fn authorize(&self, _: &[(String, String)]) -> Result<(), String> {
        Ok(())
    }
    async fn connect(&self, _: Endpoint) -> Result<BoxedStream, String> {
        Ok(Box::new(
            TcpStream::connect(self.0)
                .await
                .map_err(|e| e.to_string())?,
        ))
    }
    async fn event(&self, _: PluginEvent) -> Result<(), String> {
        Ok(())
    }
}

#[derive(Clone)]
enum Relay {
    Plugin(Plugin),
    Native,
}

/// Listens, relays each connection to `to`.
async fn relay(kind: Relay, to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let kind = kind.clone();
            tokio::spawn(async move {
                match kind {
                    Relay::Plugin(p) => {
                        let codec = p.codec("{}", "bench").await.unwrap();
                        run_codec(client, codec, &Dial(to)).await.unwrap();
                    }
                    Relay::Native => {
                        let mut up = TcpStream::connect(to).await.unwrap();
                        tokio::io::copy_bidirectional_with_sizes(
                            &mut client,
                            &mut up,
                            64 << 10,
                            64 << 10,
                        )
                        .await
                        .unwrap();
                    }
                }
            });
        }
    });
    addr
}

/// Sends so many bytes to everybody who asks by one byte.
async fn source(bytes: u64) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut s, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                s.read_u8().await.unwrap();
                let chunk = vec![5; 256 << 10];
                let mut left = bytes;
                while left > 0 {
                    let n = left.min(chunk.len() as u64) as usize;
                    s.write_all(&chunk[..n]).await.unwrap();
                    left -= n as u64;
                }
            });
        }
    });
    addr
}

async fn measure(via: SocketAddr, bytes: u64) -> f64 {
    let mut s = TcpStream::connect(via).await.unwrap();
    let began = Instant::now();
    s.write_u8(1).await.unwrap();
    let (mut buf, mut got) = (vec![0; 256 << 10], 0u64);
    loop {
        match s.read(&mut buf).await.unwrap() {
            0 => break,
            n => got += n as u64,
        }
    }
    assert_eq!(got, bytes);
    got as f64 / 1e6 / began.elapsed().as_secs_f64()
}

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let rounds: usize = args.next().map_or(7, |a| a.parse().unwrap());
    let bytes: u64 = args.next().map_or(1000, |a| a.parse().unwrap()) * 1_000_000;
    let dir = tempfile::tempdir().unwrap();
    let runtime = runtime(dir.path());
    let plugin = runtime
        .load(&PluginSource::file("tcp", guest("tcp")), Limits::default())
        .await
        .unwrap();
    let to = source(bytes).await;
    let (plugin, native) = (
        relay(Relay::Plugin(plugin), to).await,
        relay(Relay::Native, to).await,
    );
    // One of each to warm up.
    for via in [plugin, native] {
        measure(via, bytes).await;
    }
    let (mut p, mut n) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // Who goes first alternates, too.
        if round % 2 == 0 {
            p.push(measure(plugin, bytes).await);
            n.push(measure(native, bytes).await);
        } else {
            n.push(measure(native, bytes).await);
            p.push(measure(plugin, bytes).await);
        }
    }
    println!(
        "{}",
        serde_json::json!({ "plugin_mb_s": p, "native_mb_s": n })
    );
}
