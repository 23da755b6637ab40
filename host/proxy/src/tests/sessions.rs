//! The helper path.

use super::lab::*;
use postern_api::v1::JoinResponse;
use postern_identity::tls::{self, TlsIdentity};
use postern_identity::{Ca, CaKind, ServiceKeys, TrustBundle, UserIdentity, Validity};
use postern_membership::MemberDir;
use postern_tunnel::{Incoming, Transport, write_json};
use rustls::pki_types::ServerName;
use std::time::Duration;
use std::time::SystemTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn from_the_join_to_the_bytes() {
    let lab = Lab::start().await;
    let mut agent = lab.agent("a", "tcp", &[("orders", false)]).await;
    let alice = lab.user("alice", 0).await;
    let (reply, mut at_user) = lab.session(&alice, "tcp", "orders").await;
    assert!(reply.ok, "{reply:?}");
    let Incoming { header, mut stream } = agent.incoming.recv().await.unwrap();
    assert_eq!(
        (header.kind.as_str(), header.resource.as_str()),
        ("tcp", "orders")
    );
    assert_eq!(
        (header.user.as_deref(), header.direct),
        (Some("alice"), false)
    );
    assert!(header.source.starts_with("127.0.0.1:") && !header.trace.is_empty());
    // Half-close passes through both ways.
    at_user.write_all(b"question").await.unwrap();
    at_user.shutdown().await.unwrap();
    let mut asked = String::new();
    stream.read_to_string(&mut asked).await.unwrap();
    assert_eq!(asked, "question");
    let answer = vec![9u8; 3 << 20];
    let (sent, got) = tokio::join!(
        async {
            stream.write_all(&answer).await.unwrap();
            stream.shutdown().await
        },
        until_closed(&mut at_user)
    );
    sent.unwrap();
    assert_eq!(got.len(), answer.len());
}

#[tokio::test]
async fn through_a_tunnel_inside_tls() {
    let lab = Lab::start().await;
    let agent = lab
        .agent_by("a", "tcp", &[("orders", false)], Transport::Tls)
        .await;
    let _echo = agent.echo();
    let alice = lab.user("alice", 0).await;
    let (reply, mut stream) = lab.session(&alice, "tcp", "orders").await;
    assert!(reply.ok, "{reply:?}");
    echoes(&mut stream, &vec![3; 300_000]).await;
}

#[tokio::test]
async fn refusals_say_what_and_why() {
    let lab = Lab::start().await;
    let alice = lab.user("alice", 0).await;
    let (reply, _) = lab.session(&alice, "ssh", "nowhere").await;
    assert_eq!((reply.ok, reply.code.as_str()), (false, "unknown-resource"));
    assert!(
        reply.message.contains("ssh \"nowhere\"") && reply.message.contains("postern ls"),
        "{}",
        reply.message
    );
    let (reply, _) = lab.session(&alice, "ssh", "Not A Label").await;
    assert_eq!(reply.code, "bad-request");

    let agent = lab.agent("a", "tcp", &[("orders", false)]).await;
    drop(agent);
    eventually(|| lab.proxy().agents().is_empty()).await;
    let (reply, _) = lab.session(&alice, "tcp", "orders").await;
    assert_eq!(reply.code, "no-agent");

    let mut tls = lab.helper(Some(&alice)).await.unwrap();
    write_json(&mut tls, &"not an object", 4096).await.unwrap();
    let reply: crate::SessionReply = postern_tunnel::read_json(&mut tls, 4096).await.unwrap();
    assert_eq!(reply.code, "bad-request");
    // A frame of a gigabyte is not awaited.
    let mut tls = lab.helper(Some(&alice)).await.unwrap();
    tls.write_u32(1 << 30).await.unwrap();
    let reply: crate::SessionReply = postern_tunnel::read_json(&mut tls, 4096).await.unwrap();
    assert_eq!(reply.code, "bad-request");
}

#[tokio::test]
async fn only_users_come_in() {
    let lab = Lab::start().await;
    let mut agent = lab.agent("a", "tcp", &[("orders", false)]).await;
    let request = crate::SessionRequest {
        kind: "tcp".into(),
        name: "orders".into(),
    };
    for (who, id) in [("nobody", None), ("an agent", Some(&agent.tls))] {
        // With TLS 1.3 the client learns the verdict with the first read.
        let refused = async {
            let mut tls = lab.helper(id).await?;
            write_json(&mut tls, &request, 4096).await?;
            postern_tunnel::read_json::<crate::SessionReply>(&mut tls, 4096).await
        };
        assert!(refused.await.is_err(), "{who}");
    }
    assert!(agent.incoming.try_recv().is_err());
}

#[tokio::test]
async fn a_user_without_a_request_is_cut_off() {
    let lab = Lab::start().await;
    let alice = lab.user("alice", 0).await;
    let mut tls = lab.helper(Some(&alice)).await.unwrap();
    let started = std::time::Instant::now();
    assert_eq!(until_closed(&mut tls).await, b"");
    assert!(
        started.elapsed() < Duration::from_secs(11),
        "{:?}",
        started.elapsed()
    );
}

/// A proxy from credentials on disk, and a user of the same authorities whose day is over.
#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ca = |kind| Ca::generate(kind, CLUSTER).unwrap();
    let (host_ca, agent_ca, user_ca) = (ca(CaKind::Host), ca(CaKind::Agent), ca(CaKind::User));
    let trust = TrustBundle {
        cluster: CLUSTER.into(),
        cas: [&host_ca, &agent_ca, &user_ca].map(Ca::public).into(),
    };
    let member = MemberDir::open(dir.path().join("data/proxy")).unwrap();
    let names = ["gate.example.com".to_owned()];
    let pending = member.pending("proxy", &names, 0).unwrap();
    let (keys, day) = (
        pending.keys(),
        Validity::for_ttl(Duration::from_secs(86_400)),
    );
    let proxy_name = postern_identity::proxy_dns(CLUSTER);
    let pem = |der: Vec<u8>| TlsIdentity::new(&der, None, String::new().into()).chain_pem;
    let host_id = postern_identity::host_id_of(b"any");
    let answer = JoinResponse {
        generation: 1,
        tls_server_cert_pem: pem(host_ca
            .sign_tls_server(&keys.spki(), std::slice::from_ref(&proxy_name), day)
            .unwrap()),
        tls_client_cert_pem: pem(agent_ca
            .sign_tls_agent(&keys.spki(), &host_id, "proxy", day)
            .unwrap()),
        ssh_host_cert: host_ca
            .sign_ssh_host(&keys.ssh_public(), std::slice::from_ref(&proxy_name), day)
            .unwrap(),
        not_after_unix: i64::try_from(postern_membership::unix_now()).unwrap() + 86_400,
        ..Default::default()
    };
    let credentials = postern_membership::Credentials::new(&pending, answer, trust.clone());
    member.accept(&credentials).unwrap();
    let stop = CancellationToken::new();
    let opts = crate::ProxyOptions {
        cluster: CLUSTER.into(),
        listen: "127.0.0.1:0".into(),
        public_addr: "gate.example.com:443".into(),
        // Nobody is there.
        auth_addr: "127.0.0.1:1".into(),
        tls: None,
        data_dir: dir.path().join("data"),
        join: crate::JoinSource::Remote {
            params: None,
            pins: Vec::new(),
        },
    };
    let proxy = crate::ProxyServer::start(opts, stop.clone()).await.unwrap();
    let alice = UserIdentity {
        name: "alice".into(),
        roles: vec!["access".into()],
        traits: Default::default(),
    };
    let now = SystemTime::now();
    let yesterday = Validity {
        not_before: now - Duration::from_secs(86_400),
        not_after: now - Duration::from_secs(60),
    };
    for (validity, welcome) in [(day, true), (yesterday, false)] {
        let keys = ServiceKeys::generate();
        let leaf = user_ca
            .sign_tls_user(&keys.spki(), &alice, validity)
            .unwrap();
        let id = TlsIdentity::new(&leaf, None, keys.x509_key_pem.clone());
        let config = tls::client(&trust, CaKind::Host, Some(&id), &[b"postern-session"]).unwrap();
        let asked = async {
            let tcp = TcpStream::connect(proxy.local_addr()).await?;
            let name = ServerName::try_from(proxy_name.clone()).unwrap();
            let mut tls = TlsConnector::from(config).connect(name, tcp).await?;
            let request = crate::SessionRequest {
                kind: "tcp".into(),
                name: "orders".into(),
            };
            write_json(&mut tls, &request, 4096).await?;
            postern_tunnel::read_json::<crate::SessionReply>(&mut tls, 4096).await
        };
        let answered = asked.await;
        assert_eq!(answered.is_ok(), welcome, "{answered:?}");
    }
    stop.cancel();
    proxy.stopped().await;
}
