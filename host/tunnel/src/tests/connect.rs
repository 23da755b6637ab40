//! Who gets a tunnel, and who does not.

use super::lab::*;
use crate::{OpenError, ssh};
use postern_identity::{Ca, CaKind, ServiceKeys, Validity, proxy_dns};
use russh::client;
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn an_agent_announces_what_its_certificate_names_and_nothing_else() {
    let lab = Lab::start().await;
    let credentials = lab.credentials("a", "svc", &["orders"]);
    let agent = lab.agent_with(lab.options(), credentials, &["orders", "payroll"]);
    agent.up().await;
    lab.routed("orders", 1).await;
    assert_eq!(lab.registry().lookup(&id("payroll")), None);
    let e = lab
        .registry()
        .open(&id("payroll"), header("payroll"))
        .await
        .unwrap_err();
    assert!(matches!(e, OpenError::Unknown(_)), "{e}");
    let views = lab.registry().agents();
    assert_eq!(
        (views.len(), views[0].resources.as_slice()),
        (1, &["orders".to_owned()][..])
    );
    // Heartbeats go both ways.
    eventually(|| lab.registry().agents()[0].rtt.is_some()).await;
}

#[tokio::test]
async fn a_change_of_the_announcement_is_routed() {
    let lab = Lab::start().await;
    let names = ["a", "b"];
    let agent = lab.agent_with(lab.options(), lab.credentials("a", "svc", &names), &["a"]);
    lab.routed("a", 1).await;
    agent.announce.send_replace(announcement(&["b"]));
    lab.routed("b", 1).await;
    lab.routed("a", 0).await;
    let e = lab
        .registry()
        .open(&id("a"), header("a"))
        .await
        .unwrap_err();
    assert!(matches!(e, OpenError::NoAgent(_)), "{e}");
}

#[tokio::test]
async fn certificates_that_do_not_count_are_refused() {
    let lab = Lab::start().await;
    let hour = Validity::for_ttl(Duration::from_secs(3600));
    let foreign = Ca::generate(CaKind::Agent, CLUSTER).unwrap();
    let by_foreign = lab.credentials_by(&foreign, "a", "svc", &["x"], hour);
    let expired = lab.credentials_by(&lab.agent_ca, "a", "svc", &["x"], expired());
    let keys = ServiceKeys::generate();
    let host_certificate = crate::Credentials {
        ssh_cert: lab
            .host_ca
            .sign_ssh_host(&keys.ssh_public(), &[proxy_dns(CLUSTER)], hour)
            .unwrap(),
        ssh_key: keys.ssh_key.clone(),
        trust: lab.trust.clone(),
    };
    for (what, credentials) in [
        ("foreign", by_foreign),
        ("expired", expired),
        ("host", host_certificate),
    ] {
        let agent = lab.agent_with(lab.options(), credentials, &["x"]);
        let why = agent.failure().await;
        assert!(
            why.contains("refused this service's certificate"),
            "{what}: {why}"
        );
        assert!(lab.registry().agents().is_empty(), "{what}");
    }
}

#[tokio::test]
async fn a_certificate_of_another_key_never_leaves_the_agent() {
    let lab = Lab::start().await;
    let mut mixed = lab.credentials("a", "svc", &["x"]);
    mixed.ssh_cert = lab.credentials("b", "svc", &["x"]).ssh_cert;
    let agent = lab.agent_with(lab.options(), mixed, &["x"]);
    assert!(agent.failure().await.contains("belongs to another key"));
}

#[tokio::test]
async fn a_proxy_of_another_cluster_is_not_trusted() {
    let lab = Lab::start().await;
    lab.impostor();
    let agent = lab.agent("a", &["x"]);
    let why = agent.failure().await;
    assert!(why.contains("is not this cluster's proxy"), "{why}");
}

struct Anyone;
impl client::Handler for Anyone {
    type Error = russh::Error;
    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

#[tokio::test]
async fn bare_keys_passwords_and_none_are_refused() {
    let lab = Lab::start().await;
    let role = ssh::Role::Control(ssh::Role::new_instance());
    for user in [role.user(), "root".to_owned()] {
        let tcp = TcpStream::connect(lab.addr).await.unwrap();
        let mut handle = client::connect_stream(Arc::new(ssh::client_config()), tcp, Anyone)
            .await
            .unwrap();
        assert!(!handle.authenticate_none(&user).await.unwrap().success());
        assert!(
            !handle
                .authenticate_password(&user, "hunter2")
                .await
                .unwrap()
                .success()
        );
        let keys = ServiceKeys::generate();
        let key = Arc::new(PrivateKey::from_openssh(keys.ssh_key.as_str()).unwrap());
        let bare = PrivateKeyWithHashAlg::new(key, None);
        let tried = handle.authenticate_publickey(&user, bare).await;
        assert!(!tried.is_ok_and(|r| r.success()), "{user}");
    }
}

/// An SSH server with a bare key only.
#[tokio::test]
async fn a_bare_host_key_is_refused_never_learned() {
    let lab = Lab::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    struct Bare;
    impl russh::server::Handler for Bare {
        type Error = russh::Error;
    }
    let keys = ServiceKeys::generate();
    let config = Arc::new(russh::server::Config {
        keys: vec![PrivateKey::from_openssh(keys.ssh_key.as_str()).unwrap()],
        ..Default::default()
    });
    let server = tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            if let Ok(session) = russh::server::run_stream(config.clone(), tcp, Bare).await {
                let _ = session.await;
            }
        }
    });
    let opts = crate::TunnelClientOptions {
        proxy_addr: addr.to_string(),
        ..lab.options()
    };
    let agent = lab.agent_with(opts, lab.credentials("a", "svc", &["x"]), &["x"]);
    let why = agent.failure().await;
    assert!(why.contains("bare SSH key"), "{why}");
    server.abort();
}

#[tokio::test]
async fn a_locked_host_is_sent_away_with_the_reason() {
    let lab = Lab::start().await;
    lab.locked.lock().unwrap().insert(host_id("a"));
    let agent = lab.agent("a", &["x"]);
    let why = agent.failure().await;
    assert!(why.contains("locked: stolen"), "{why}");
    // And comes back when it is not.
    lab.locked.lock().unwrap().clear();
    agent.up().await;
}

#[tokio::test]
async fn who_says_nothing_or_too_little_is_cut_off() {
    let lab = Lab::start().await;
    for said in [&b""[..], b"SSH-2.0-slow\r\n"] {
        let mut tcp = TcpStream::connect(lab.addr).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut tcp, said)
            .await
            .unwrap();
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), tcp.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "{said:?}");
    }
}
