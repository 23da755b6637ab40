//! The native copy: bytes, half-close, errors, streams that buffer.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use postern_relay::splice;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

#[tokio::test]
async fn copies_both_ways_with_half_close() {
    let (mut a, a2) = duplex(1000);
    let (mut b, b2) = duplex(1000);
    let relay = tokio::spawn(splice(a2, b2));
    let up = tokio::spawn(async move {
        let mut all = Vec::new();
        b.read_to_end(&mut all).await.unwrap();
        // The other direction goes on after the first has ended.
        b.write_all(&all).await.unwrap();
        all.len()
    });
    let bytes: Vec<u8> = (0..300_000u32)
        .map(|i| (i.wrapping_mul(i) >> 7) as u8)
        .collect();
    let (mut r, mut w) = tokio::io::split(&mut a);
    let send = async {
        w.write_all(&bytes).await.unwrap();
        w.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let (_, n) = tokio::join!(send, r.read_to_end(&mut back));
    assert_eq!(n.unwrap(), 300_000);
    assert!(back == bytes);
    assert_eq!(up.await.unwrap(), 300_000);
    assert_eq!(relay.await.unwrap().unwrap(), (300_000, 300_000));
}

/// A sink that keeps bytes until it is flushed (as TLS may).
#[tokio::test]
async fn what_is_buffered_is_flushed_when_nothing_more_comes() {
    let (mut a, a2) = duplex(100);
    let (mut b, b2) = duplex(100);
    let relay = tokio::spawn(splice(a2, tokio::io::BufStream::new(b2)));
    a.write_all(b"hello").await.unwrap();
    let mut got = [0; 5];
    b.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"hello");
    drop((a, b));
    let _ = relay.await.unwrap();
}

#[tokio::test]
async fn an_error_ends_it() {
    let (mut a, a2) = duplex(100);
    let (b, b2) = duplex(100);
    drop(b);
    let relay = tokio::spawn(splice(a2, b2));
    let _ = a.write_all(&[0; 1000]).await;
    assert!(relay.await.unwrap().is_err());
}
