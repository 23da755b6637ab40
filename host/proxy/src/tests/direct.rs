//! TLS passed through unread, also behind PostgreSQL's preamble.

use super::lab::*;
use postern_tunnel::Incoming;
use rustls::AlertDescription;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The alert that a handshake under this name is answered with.
async fn alert(lab: &Lab, name: &str) -> AlertDescription {
    let e = lab.tls(name, &[], None).await.unwrap_err();
    match e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        other => panic!("{name}: {other:?}: {e}"),
    }
}

fn hello(name: &str) -> Vec<u8> {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = name.to_owned().try_into().unwrap();
    let mut connection = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
    let mut raw = Vec::new();
    connection.write_tls(&mut raw).unwrap();
    raw
}

#[tokio::test]
async fn only_direct_resources_are_reached_and_the_bytes_are_the_clients() {
    let lab = Lab::start().await;
    let mut agent = lab
        .agent("a", "kubernetes", &[("prod", true), ("secret", false)])
        .await;
    let raw = hello("prod.kubernetes.demo.test");
    let mut client = TcpStream::connect(lab.addr()).await.unwrap();
    client.write_all(&raw).await.unwrap();
    let Incoming { header, mut stream } = agent.incoming.recv().await.unwrap();
    assert!(header.direct && header.user.is_none());
    assert_eq!(header.resource, "prod");
    let mut got = vec![0; raw.len()];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(got, raw);
    stream.write_all(b"server hello").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(until_closed(&mut client).await, b"server hello");

    // Not direct, not known, not there: all the same to a stranger.
    for name in [
        "secret.kubernetes.demo.test",
        "other.kubernetes.demo.test",
        "other.demo.test",
    ] {
        assert_eq!(
            alert(&lab, name).await,
            AlertDescription::UnrecognisedName,
            "{name}"
        );
    }
    assert!(agent.incoming.try_recv().is_err());
}

#[tokio::test]
async fn one_source_is_passed_through_only_so_often() {
    let lab = Lab::start().await;
    let mut agent = lab.agent("a", "kubernetes", &[("prod", true)]).await;
    // The streams are closed as they come.
    let closing = tokio::spawn(async move { while agent.incoming.recv().await.is_some() {} });
    let raw = hello("prod.kubernetes.demo.test");
    let began = std::time::Instant::now();
    // Fifty more than come at once: they wait for their turn, a hundred in a second.
    for _ in 0..250 {
        let mut client = TcpStream::connect(lab.addr()).await.unwrap();
        client.write_all(&raw).await.unwrap();
        let got = until_closed(&mut client).await;
        assert_eq!(got, b"", "an alert instead");
    }
    assert!(began.elapsed() > std::time::Duration::from_millis(450));
    closing.abort();
}

#[tokio::test]
async fn postgres_asks_first() {
    let lab = Lab::start().await;
    let mut agent = lab.agent("a", "postgres", &[("orders", true)]).await;
    let raw = hello("orders.postgres.demo.test");
    let mut client = TcpStream::connect(lab.addr()).await.unwrap();
    let mut answer = [0];
    client
        .write_all(&[0, 0, 0, 8, 4, 0xd2, 0x16, 0x30])
        .await
        .unwrap();
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"N");
    client
        .write_all(&[0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f])
        .await
        .unwrap();
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"S");
    client.write_all(&raw).await.unwrap();
    let Incoming { mut stream, .. } = agent.incoming.recv().await.unwrap();
    let mut got = vec![0; raw.len()];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(got, raw);
}

#[tokio::test]
async fn postgres_tricks_are_refused() {
    let lab = Lab::start().await;
    let ssl = [0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f];
    let cancel = [0, 0, 0, 16, 4, 0xd2, 0x16, 0x2e, 0, 0, 0, 1, 0, 0, 0, 2];
    // Bytes smuggled in ahead of TLS, a cancellation, a startup without TLS, and TLS asked for twice.
    let smuggled = [&ssl[..], b"x"].concat();
    let plain = [&[0, 0, 0, 8, 0, 3, 0, 0][..]].concat();
    for said in [&smuggled[..], &cancel, &plain] {
        let mut client = TcpStream::connect(lab.addr()).await.unwrap();
        client.write_all(said).await.unwrap();
        let got = tokio::time::timeout(Duration::from_secs(3), until_closed(&mut client))
            .await
            .unwrap();
        assert_eq!(got, b"", "{said:?}");
    }
    let mut client = TcpStream::connect(lab.addr()).await.unwrap();
    client.write_all(&ssl).await.unwrap();
    let mut answer = [0];
    client.read_exact(&mut answer).await.unwrap();
    client.write_all(&ssl).await.unwrap();
    assert_eq!(until_closed(&mut client).await, b"");
}

/// A cancel request with this key.
fn cancel_request(key: &[u8]) -> Vec<u8> {
    let length = u32::try_from(key.len()).unwrap() + 8;
    [
        &length.to_be_bytes()[..],
        &80_877_102_u32.to_be_bytes(),
        key,
    ]
    .concat()
}

#[tokio::test]
async fn a_cancel_request_reaches_the_service_of_its_key_and_is_answered_by_silence() {
    let lab = Lab::start().await;
    let mut agent = lab.agent("a", "postgres", &[("orders", false)]).await;
    let route = lab.proxy().agents()[0].identity.cancel_route();
    let key = [&route.to_be_bytes()[..], b"secret12"].concat();
    let mut client = TcpStream::connect(lab.addr()).await.unwrap();
    // In two parts.
    let request = cancel_request(&key);
    client.write_all(&request[..13]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    client.write_all(&request[13..]).await.unwrap();
    let Incoming { header, mut stream } = agent.incoming.recv().await.unwrap();
    assert!(header.cancel && header.direct && header.resource.is_empty());
    assert_eq!(header.kind, "postgres");
    let mut got = vec![0; request.len()];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(got, request);
    drop(stream);
    assert_eq!(until_closed(&mut client).await, b"");

    // For nobody; behind other bytes; too short.
    let mut wrong = vec![cancel_request(b"\x00\x00\x00\x01secret"), request.clone()];
    wrong[1].push(0);
    wrong.push(cancel_request(b"abc"));
    for bytes in wrong {
        let mut client = TcpStream::connect(lab.addr()).await.unwrap();
        client.write_all(&bytes).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(until_closed(&mut client).await, b"");
    }
    assert!(agent.incoming.try_recv().is_err());
}
