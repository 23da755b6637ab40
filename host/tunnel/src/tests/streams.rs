//! What streams do.

use super::lab::*;
use crate::{Incoming, TunnelClientOptions};
use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;

#[tokio::test]
async fn the_header_arrives_and_bytes_go_both_ways() {
    let lab = Lab::start().await;
    let mut agent = lab.agent("a", &["orders"]);
    agent.up().await;
    let mut at_proxy = lab.open("orders").await;
    let Incoming {
        header: got,
        mut stream,
    } = agent.incoming.recv().await.unwrap();
    assert_eq!(got, header("orders"));
    at_proxy.write_all(b"ping").await.unwrap();
    at_proxy.flush().await.unwrap();
    let mut word = [0; 4];
    stream.read_exact(&mut word).await.unwrap();
    stream.write_all(b"pong").await.unwrap();
    stream.flush().await.unwrap();
    at_proxy.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"pong");
}

#[tokio::test]
async fn a_hundred_streams_at_once() {
    let lab = Lab::start().await;
    let agent = lab.agent("a", &["x"]);
    agent.up().await;
    let _echo = agent.echo();
    let mut streams = JoinSet::new();
    for n in 0..100u32 {
        let registry = lab.registry();
        streams.spawn(async move {
            let mut stream = registry.open(&id("x"), header("x")).await.unwrap();
            echoes(&mut stream, format!("stream {n}").as_bytes()).await;
            // All of them at the same time: the barrier is that nobody ends before the last has begun.
            stream
        });
    }
    let held = streams.join_all().await;
    assert_eq!(held.len(), 100);
    assert!(lab.server.live_streams() >= 100);
}

#[tokio::test]
async fn half_close_leaves_the_other_direction_open() {
    let lab = Lab::start().await;
    let mut agent = lab.agent("a", &["x"]);
    agent.up().await;
    let mut at_proxy = lab.open("x").await;
    let Incoming { mut stream, .. } = agent.incoming.recv().await.unwrap();
    // The proxy's side ends first …
    at_proxy.write_all(b"question").await.unwrap();
    at_proxy.shutdown().await.unwrap();
    let mut asked = String::new();
    stream.read_to_string(&mut asked).await.unwrap();
    assert_eq!(asked, "question");
    // … and the agent still answers, at length.
    let answer = vec![42u8; 5 << 20];
    let (sent, received) = tokio::join!(
        async {
            stream.write_all(&answer).await?;
            stream.shutdown().await
        },
        async {
            let mut got = Vec::new();
            at_proxy.read_to_end(&mut got).await.map(|_| got)
        }
    );
    sent.unwrap();
    assert_eq!(received.unwrap().len(), answer.len());
    drop((stream, at_proxy));

    // The other way round, on the same connection or another.
    let mut at_proxy = lab.open("x").await;
    let Incoming { mut stream, .. } = agent.incoming.recv().await.unwrap();
    stream.write_all(b"greeting").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut greeting = String::new();
    at_proxy.read_to_string(&mut greeting).await.unwrap();
    at_proxy.write_all(b"bye").await.unwrap();
    at_proxy.shutdown().await.unwrap();
    let mut bye = String::new();
    stream.read_to_string(&mut bye).await.unwrap();
    assert_eq!((greeting.as_str(), bye.as_str()), ("greeting", "bye"));
}

#[tokio::test]
async fn a_dropped_stream_is_a_reset_not_an_end() {
    let lab = Lab::start().await;
    let mut agent = lab.agent("a", &["x"]);
    agent.up().await;
    for drop_at_agent in [true, false] {
        let at_proxy = lab.open("x").await;
        let Incoming { stream, .. } = agent.incoming.recv().await.unwrap();
        let (dropped, mut kept) = match drop_at_agent {
            true => (stream, at_proxy),
            false => (at_proxy, stream),
        };
        drop(dropped);
        let mut rest = Vec::new();
        let e = timeout(Duration::from_secs(5), kept.read_to_end(&mut rest))
            .await
            .unwrap()
            .unwrap_err();
        assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset);
        let e = kept.write_all(&vec![0; 8 << 20]).await.unwrap_err();
        assert_eq!(e.kind(), std::io::ErrorKind::BrokenPipe);
    }
}

/// A writer whose peer goes away while it waits for window must not wait for ever.
#[tokio::test]
async fn a_stuck_writer_hears_of_the_end() {
    let lab = Lab::start().await;
    let mut agent = lab.agent("a", &["x"]);
    agent.up().await;
    let mut at_proxy = lab.open("x").await;
    let Incoming { stream, .. } = agent.incoming.recv().await.unwrap();
    let writer = tokio::spawn(async move { at_proxy.write_all(&vec![0; 64 << 20]).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!writer.is_finished());
    drop(stream);
    let e = timeout(Duration::from_secs(5), writer)
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    assert_eq!(e.kind(), std::io::ErrorKind::BrokenPipe);
}

async fn send(mut to: impl AsyncWrite + Unpin, seed: u64, len: usize) -> u64 {
    let (mut hash, mut state, mut left) = (DefaultHasher::new(), seed, len);
    let mut block = vec![0u8; 50_000];
    while left > 0 {
        for b in block.chunks_mut(8) {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let bytes = state.to_le_bytes();
            b.copy_from_slice(&bytes[..b.len()]);
        }
        let n = left.min(block.len());
        hash.write(&block[..n]);
        to.write_all(&block[..n]).await.unwrap();
        left -= n;
    }
    to.shutdown().await.unwrap();
    hash.finish()
}

async fn receive(mut from: impl AsyncRead + Unpin) -> (u64, usize) {
    let (mut hash, mut len, mut pending) = (DefaultHasher::new(), 0, Vec::new());
    let mut block = vec![0u8; 70_000];
    loop {
        let n = from.read(&mut block).await.unwrap();
        // The same pieces as the sender's: a hasher is not obliged to ignore them.
        pending.extend_from_slice(&block[..n]);
        while pending.len() >= 50_000 || (n == 0 && !pending.is_empty()) {
            let rest = pending.split_off(pending.len().min(50_000));
            hash.write(&pending);
            pending = rest;
        }
        len += n;
        if n == 0 {
            return (hash.finish(), len);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_megabytes_each_way_at_once_arrive_as_sent() {
    const LEN: usize = 64 << 20;
    let lab = Lab::start().await;
    let mut agent = lab.agent("a", &["x"]);
    agent.up().await;
    let (pr, pw) = tokio::io::split(lab.open("x").await);
    let (ar, aw) = tokio::io::split(agent.incoming.recv().await.unwrap().stream);
    let tasks = (
        tokio::spawn(send(pw, 1, LEN)),
        tokio::spawn(receive(ar)),
        tokio::spawn(send(aw, 2, LEN)),
        tokio::spawn(receive(pr)),
    );
    let (up, up_got, down, down_got) =
        tokio::try_join!(tasks.0, tasks.1, tasks.2, tasks.3).unwrap();
    assert_eq!((up, LEN), up_got);
    assert_eq!((down, LEN), down_got);
}

#[tokio::test]
async fn a_stream_whose_reader_stopped_holds_up_no_other_and_pins_little() {
    let lab = Lab::start().await;
    let mut agent = lab.agent("a", &["x"]);
    agent.up().await;
    let mut stalled = lab.open("x").await;
    let _unread = agent.incoming.recv().await.unwrap();
    let mut accepted = 0usize;
    let block = vec![0u8; 32 * 1024];
    while timeout(Duration::from_millis(500), stalled.write_all(&block))
        .await
        .is_ok()
    {
        accepted += block.len();
        assert!(accepted < 64 << 20, "no back-pressure");
    }
    // Ours on both sides, and the kernel's socket buffers (loopback: 2.5 MB and 6 MB at most by default).
    assert!(
        accepted < 14 << 20,
        "{accepted} bytes went into a stream that nobody reads"
    );
    let _echo = agent.echo();
    let mut other = lab.open("x").await;
    echoes(&mut other, &vec![7u8; 1 << 20][..20_000]).await;
    // It outlives several dead_after: a stopped reader is not a dead one.
    tokio::time::sleep(timing().dead_after * 2).await;
    assert_eq!(lab.registry().agents().len(), 1);
    echoes(&mut other, b"still here").await;
}

#[tokio::test]
async fn connections_are_reused_one_stream_after_the_other() {
    let lab = Lab::start().await;
    let agent = lab.agent("a", &["x"]);
    agent.up().await;
    let _echo = agent.echo();
    for n in 0..20 {
        let mut stream = lab.open("x").await;
        echoes(&mut stream, format!("{n}").as_bytes()).await;
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        drop(stream);
        // Both parked again: the one that was used and the one that took its place.
        eventually(|| lab.registry().agents()[0].idle == 2).await;
    }
    // One for control, one warm, one dialled when the first was taken.
    assert_eq!(lab.accepted.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn more_streams_than_one_connection_carries_in_its_life() {
    let lab = Lab::start().await;
    let agent = lab.agent("a", &["x"]);
    agent.up().await;
    let _echo = agent.echo();
    for n in 0..100 {
        let mut stream = lab.open("x").await;
        echoes(&mut stream, format!("{n}").as_bytes()).await;
        if n % 2 == 0 {
            stream.shutdown().await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
        }
    }
}

#[tokio::test]
async fn an_agent_at_its_limit_is_busy_not_broken() {
    let lab = Lab::start().await;
    let opts = TunnelClientOptions {
        max_data: 1,
        ..lab.options()
    };
    let mut agent = lab.agent_with(opts, lab.credentials("a", "svc", &["x"]), &["x"]);
    agent.up().await;
    let held = lab.open("x").await;
    let taken = agent.incoming.recv().await.unwrap();
    let waiting = tokio::spawn({
        let registry = lab.registry();
        async move { registry.open(&id("x"), header("x")).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished());
    // The connection comes free, and whoever waits gets it.
    drop((held, taken));
    waiting.await.unwrap().unwrap();
}
