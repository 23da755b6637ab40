//! What browsers and newcomers get.

use super::lab::*;
use crate::ProxyError;
use postern_config::CertFiles;
use postern_identity::{CaKind, TrustBundle, tls};
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

async fn get(mut io: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: gate.example.com\r\n\r\n");
    io.write_all(request.as_bytes()).await.unwrap();
    let answer = String::from_utf8(until_closed(&mut io).await).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (
        head.split(' ').nth(1).unwrap().parse().unwrap(),
        body.to_owned(),
    )
}

#[tokio::test]
async fn ping_ca_and_nothing_else() {
    let lab = Lab::start().await;
    // By the public name and by the one inside the cluster, with the cluster's own certificate.
    for name in ["gate.example.com", "proxy.demo.test"] {
        let (status, body) = get(
            lab.tls(name, &[b"http/1.1"], None).await.unwrap(),
            "/v1/ping",
        )
        .await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, body["cluster"].as_str()), (200, Some(CLUSTER)));
    }
    let (status, body) = get(
        lab.tls("gate.example.com", &[], None).await.unwrap(),
        "/v1/ca",
    )
    .await;
    let trust: TrustBundle = serde_json::from_str(&body).unwrap();
    assert_eq!((status, trust), (200, lab.trust.clone()));
    let (status, _) = get(
        lab.tls("gate.example.com", &[], None).await.unwrap(),
        "/etc/passwd",
    )
    .await;
    assert_eq!(status, 404);
    // Who has a pin alone finds the CA in the chain.
    let pins: Vec<_> = lab.trust.of(CaKind::Host).map(|ca| ca.pin()).collect();
    let config = tls::client_pinned(&pins, &[b"http/1.1"]).unwrap();
    let tcp = TcpStream::connect(lab.addr()).await.unwrap();
    let name = ServerName::try_from("gate.example.com").unwrap();
    let io = tokio_rustls::TlsConnector::from(config)
        .connect(name, tcp)
        .await
        .unwrap();
    assert_eq!(get(io, "/v1/ping").await.0, 200);
}

#[tokio::test]
async fn browsers_get_the_certificate_from_the_files_and_members_the_clusters() {
    let public = rcgen::generate_simple_self_signed(vec!["gate.example.com".into()]).unwrap();
    let (cert, key) = (public.cert.pem(), public.signing_key.serialize_pem());
    let lab = Lab::with(|opts, dir| {
        let files = CertFiles {
            cert_file: dir.path().join("web.pem"),
            key_file: dir.path().join("web.key"),
        };
        std::fs::write(&files.cert_file, &cert).unwrap();
        std::fs::write(&files.key_file, &key).unwrap();
        opts.tls = Some(files);
    })
    .await;
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(rustls::pki_types::CertificateDer::from_pem_slice(cert.as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let browser = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(lab.addr()).await.unwrap();
    let name = ServerName::try_from("gate.example.com").unwrap();
    let io = tokio_rustls::TlsConnector::from(Arc::new(browser))
        .connect(name, tcp)
        .await
        .unwrap();
    assert_eq!(get(io, "/v1/ping").await.0, 200);
    let io = lab
        .tls("proxy.demo.test", &[b"http/1.1"], None)
        .await
        .unwrap();
    assert_eq!(get(io, "/v1/ping").await.0, 200);
}

#[tokio::test]
async fn a_missing_web_certificate_is_named() {
    let lab = Lab::start().await;
    let mut opts = lab.opts.clone();
    opts.listen = "127.0.0.1:0".into();
    opts.tls = Some(CertFiles {
        cert_file: "/nowhere/web.pem".into(),
        key_file: "/nowhere/web.key".into(),
    });
    let e = crate::ProxyServer::start(opts, lab.stop.clone())
        .await
        .err()
        .unwrap();
    assert!(matches!(e, ProxyError::WebCertificate { .. }));
    assert!(e.to_string().contains("/nowhere/web.pem"), "{e}");
}
