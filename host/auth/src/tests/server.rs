//! The service itself: persistence, a second one on the same state, crashes, strangers who hold the line.

use std::path::Path;
use std::time::{Duration, Instant};

use postern_api::v1::{CreateTokenRequest, WatchRequest};
use postern_identity::{CaKind, tls};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::{CLUSTER, Host, Lab, strings};
use crate::{AuthError, AuthOptions, AuthServer};

#[tokio::test]
async fn a_restart_changes_nothing() {
    let mut lab = Lab::start().await;
    let trust = lab.server().trust();
    let user = lab.user("alice", &["root"]).await;
    let token = lab.token(&["ssh"], &[], 0).await;
    let host = Host::new();
    let id = host.tls(&host.join(&lab, "ssh", "ssh", &["web-1"]).await);
    let audited = lab.audited("").await.len();
    lab.restart().await;
    assert_eq!(lab.server().trust(), trust);
    assert_eq!(lab.audited("").await.len(), audited);
    lab.joins()
        .join(Host::new().ask("ssh", "ssh", &["web-2"], &token))
        .await
        .unwrap();
    lab.agents(&id)
        .watch(WatchRequest { from_revision: 0 })
        .await
        .unwrap();
    lab.users(&user.tls())
        .status(postern_api::v1::StatusRequest {})
        .await
        .unwrap();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    std::fs::set_permissions(to, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// What was answered is on disk: the files as they are while the service runs are what a `kill -9` leaves.
#[tokio::test]
async fn what_was_answered_survives_a_kill() {
    let lab = Lab::start().await;
    let host = Host::new();
    let token = lab.token(&["ssh"], &[], 1).await;
    let request = host.ask("ssh", "ssh", &["web-1"], &token);
    let answer = lab
        .joins()
        .join(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert!(
        std::fs::metadata(lab.opts.data_dir.join("auth/state.db-wal"))
            .unwrap()
            .len()
            > 0,
        "nothing was checkpointed"
    );

    let dir = tempfile::tempdir().unwrap();
    let opts = AuthOptions {
        data_dir: dir.path().join("data"),
        ..lab.opts.clone()
    };
    copy(&lab.opts.data_dir, &opts.data_dir);
    let shutdown = CancellationToken::new();
    let server = AuthServer::start(opts, shutdown.clone()).await.unwrap();
    let tls = tls::client(&server.trust(), CaKind::Host, None, &[]).unwrap();
    let channel = postern_api::connect_lazy(&server.local_addr().to_string(), CLUSTER, tls);
    let mut joins = postern_api::v1::join_service_client::JoinServiceClient::new(channel);
    assert_eq!(
        joins.join(request).await.unwrap().into_inner(),
        answer,
        "the answer is there"
    );
    let refused = joins
        .join(Host::new().ask("ssh", "ssh", &["web-2"], &token))
        .await
        .unwrap_err();
    assert!(
        refused.message().contains("used up"),
        "and so is the use of the token: {}",
        refused.message()
    );
    shutdown.cancel();
    server.stopped().await;
}

async fn start_fails(opts: &AuthOptions) -> AuthError {
    AuthServer::start(opts.clone(), CancellationToken::new())
        .await
        .err()
        .unwrap()
}

#[tokio::test]
async fn starting_fails_with_the_reason() {
    let mut lab = Lab::start().await;
    let second = start_fails(&lab.opts).await.to_string();
    assert!(second.contains("held by another Auth Service"), "{second}");
    let elsewhere = tempfile::tempdir().unwrap();
    let taken = AuthOptions {
        data_dir: elsewhere.path().join("data"),
        listen: lab.addr().to_string(),
        ..lab.opts.clone()
    };
    let taken = start_fails(&taken).await.to_string();
    assert!(
        taken.contains(&lab.addr().to_string()) && taken.contains("another process"),
        "{taken}"
    );
    lab.stop().await;

    let other = AuthOptions {
        cluster: "other".into(),
        ..lab.opts.clone()
    };
    let other = start_fails(&other).await.to_string();
    assert!(
        other.contains(&format!("{CLUSTER:?}")) && other.contains("\"other\""),
        "{other}"
    );

    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&lab.opts.data_dir, open).unwrap();
    let loose = start_fails(&lab.opts).await.to_string();
    assert!(loose.contains("chmod 700"), "{loose}");
    std::fs::set_permissions(
        &lab.opts.data_dir,
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .unwrap();

    let db = lab.opts.data_dir.join("auth/state.db");
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", db.display()));
    }
    std::fs::write(&db, vec![b'x'; 8192]).unwrap();
    let broken = start_fails(&lab.opts).await.to_string();
    assert!(
        broken.contains("state.db") && broken.contains("restore"),
        "{broken}"
    );
}

#[tokio::test]
async fn strangers_who_say_nothing_are_cut_off() {
    let lab = Lab::start().await;
    let began = Instant::now();
    let mut silent = TcpStream::connect(lab.addr()).await.unwrap();
    let mut garbage = TcpStream::connect(lab.addr()).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let tls = tls::client(&lab.server().trust(), CaKind::Host, None, &[b"h2"]).unwrap();
    let tcp = TcpStream::connect(lab.addr()).await.unwrap();
    let name = ServerName::try_from(format!("auth.{CLUSTER}")).unwrap();
    let mut shaken = TlsConnector::from(tls).connect(name, tcp).await.unwrap();

    // A byte at a time after the handshake: the time that counts is from its end.
    let dribble = async {
        let mut byte = [0u8; 1024];
        loop {
            tokio::select! {
                read = shaken.read(&mut byte) => if matches!(read, Ok(0) | Err(_)) { break },
                () = tokio::time::sleep(Duration::from_millis(500)) => if shaken.write_all(b"P").await.is_err() { break },
            }
        }
    };
    let mut rest = Vec::new();
    let mut rest2 = Vec::new();
    let _ = tokio::join!(
        silent.read_to_end(&mut rest),
        garbage.read_to_end(&mut rest2),
        dribble
    );
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
}

/// One address holds all the places a stranger may have: who has a certificate comes in all the same.
#[tokio::test]
async fn a_crowd_of_strangers_keeps_no_member_out() {
    let lab = Lab::start().await;
    let host = Host::new();
    let id = host.tls(&host.join(&lab, "ssh", "ssh", &["web-1"]).await);
    let tls = tls::client(&lab.server().trust(), CaKind::Host, None, &[b"h2"]).unwrap();
    let mut crowd = Vec::new();
    // More than there are, also where a proxy is.
    let closed = loop {
        assert!(crowd.len() < 800, "nobody was refused");
        let tcp = TcpStream::connect(lab.addr()).await.unwrap();
        let name = ServerName::try_from(format!("auth.{CLUSTER}")).unwrap();
        let Ok(mut stranger) = TlsConnector::from(tls.clone()).connect(name, tcp).await else {
            break true;
        };
        // The server's settings are the first thing that comes; nothing does where there is no place.
        match stranger.read(&mut [0; 64]).await {
            Ok(0) | Err(_) => break true,
            Ok(_) => crowd.push(stranger),
        }
    };
    assert!(closed && crowd.len() >= 100, "{}", crowd.len());
    let mut renewals =
        postern_api::v1::join_service_client::JoinServiceClient::new(lab.channel(Some(&id)));
    let request = host.ask_with("ssh", "ssh", &["web-1"], "", |r| r.generation = 1);
    renewals.join(request).await.unwrap();
}

#[tokio::test]
async fn messages_have_a_limit() {
    let lab = Lab::start().await;
    let huge = CreateTokenRequest {
        names: vec!["x".repeat(100); 20_000],
        ..CreateTokenRequest::default()
    };
    assert_eq!(
        lab.admin().create_token(huge).await.unwrap_err().code(),
        tonic::Code::OutOfRange
    );
    let names: Vec<String> = (0..1001).map(|n| format!("n{n}")).collect();
    let request = Host::new().ask_with("ssh", "ssh", &[], "", |r| r.names = names);
    let refused = lab.joins().join(request).await.unwrap_err();
    assert!(
        refused.message().contains("at most 1000"),
        "{}",
        refused.message()
    );
    let _ = strings(&[]);
}

#[tokio::test]
async fn the_server_certificate_renews_itself() {
    let lab = Lab::with(|o| o.cert_ttl = Duration::from_secs(3)).await;
    let connect = async || {
        let tls = tls::client(&lab.server().trust(), CaKind::Host, None, &[b"h2"]).unwrap();
        let tcp = TcpStream::connect(lab.addr()).await.unwrap();
        let name = ServerName::try_from(format!("auth.{CLUSTER}")).unwrap();
        let stream = TlsConnector::from(tls).connect(name, tcp).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let first = connect().await;
    super::eventually("another certificate", || async { connect().await != first }).await;
    // Past the end of the first one.
    tokio::time::sleep(Duration::from_secs(3)).await;
    connect().await;
}

#[tokio::test]
async fn a_shutdown_ends_watches_too() {
    let mut lab = Lab::start().await;
    let host = Host::new();
    let id = host.tls(&host.join(&lab, "ssh", "ssh", &[]).await);
    let mut watch = lab
        .agents(&id)
        .watch(WatchRequest { from_revision: 0 })
        .await
        .unwrap()
        .into_inner();
    let began = Instant::now();
    lab.stop().await;
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
    while let Ok(Some(_)) = watch.message().await {}
}
