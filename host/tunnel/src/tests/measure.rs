//! Figures, not checks: `cargo nextest run -p postern-tunnel --run-ignored only measure --no-capture`

use super::lab::*;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

fn rss_kb() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Memory that streams pin in this process, which holds both ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn measure_memory() {
    const N: usize = 40;
    for down in [false, true] {
        let lab = Lab::start().await;
        let mut agent = lab.agent("a", &["x"]);
        agent.up().await;
        let before = rss_kb();
        let mut held = Vec::new();
        for _ in 0..N {
            let at_proxy = lab.open("x").await;
            let at_agent = agent.incoming.recv().await.unwrap().stream;
            held.push((at_proxy, at_agent));
        }
        let idle = rss_kb();
        let mut accepted = 0;
        for (at_proxy, at_agent) in &mut held {
            let to = if down { at_agent } else { at_proxy };
            let block = vec![1u8; 32 * 1024];
            while timeout(Duration::from_millis(200), to.write_all(&block))
                .await
                .is_ok()
            {
                accepted += block.len();
            }
        }
        let stalled = rss_kb();
        println!(
            "down={down}: an idle stream {} KB, a stalled one {} KB (both ends), {} KB accepted with the kernel's",
            (idle - before) / N,
            (stalled - idle) / N,
            accepted / N / 1024
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn measure_throughput() {
    const LEN: usize = 1 << 30;
    let lab = Lab::start().await;
    let mut agent = lab.agent("a", &["x"]);
    agent.up().await;
    let mut at_proxy = lab.open("x").await;
    let mut at_agent = agent.incoming.recv().await.unwrap().stream;
    let started = Instant::now();
    let reader = tokio::spawn(async move {
        let mut block = vec![0; 64 * 1024];
        let mut n = 0;
        while n < LEN {
            n += at_agent.read(&mut block).await.unwrap();
        }
    });
    let block = vec![1u8; 64 * 1024];
    for _ in 0..LEN / block.len() {
        at_proxy.write_all(&block).await.unwrap();
    }
    at_proxy.flush().await.unwrap();
    reader.await.unwrap();
    println!(
        "up: {:.0} MB/s",
        LEN as f64 / 1e6 / started.elapsed().as_secs_f64()
    );
}
