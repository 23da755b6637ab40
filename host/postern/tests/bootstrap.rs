//! Getting to know a cluster without a pin, or without its name: over the proxy's public HTTPS.
//! The proxy here passes Auth's TLS through by its name and answers the two web paths itself; its
//! "publicly valid" certificate is one that `SSL_CERT_FILE` names.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use postern_auth::{AuthOptions, AuthServer};
use postern_identity::{Ca, CaKind, ServiceKeys, TlsIdentity, TrustBundle, Validity, tls};
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

struct Cluster {
    dir: tempfile::TempDir,
    auth: AuthServer,
    stop: CancellationToken,
    /// `localhost:port`
    proxy: String,
    _tasks: JoinSet<()>,
}

impl Cluster {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let options = AuthOptions {
            cluster: "demo".into(),
            data_dir: dir.path().join("data"),
            listen: "127.0.0.1:0".into(),
            cert_ttl: Duration::from_secs(3600),
            rejoin_window: Duration::from_secs(3600),
            proxy_public_addr: None,
        };
        let auth = AuthServer::start(options, stop.clone()).await.unwrap();
        let public = Ca::generate(CaKind::Host, "public").unwrap();
        std::fs::write(dir.path().join("roots.pem"), public.public().x509_pem).unwrap();
        let keys = ServiceKeys::generate();
        let leaf = public
            .sign_tls_server(
                &keys.spki(),
                &["localhost".into()],
                Validity::for_ttl(Duration::from_secs(600)),
            )
            .unwrap();
        let web = TlsIdentity::new(&leaf, None, keys.x509_key_pem.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = format!("localhost:{}", listener.local_addr().unwrap().port());
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, web, auth.local_addr(), auth.trust()));
        Cluster {
            dir,
            auth,
            stop,
            proxy,
            _tasks: tasks,
        }
    }

    async fn run(&self, args: &[&str], input: &str, roots: bool) -> common::Ran {
        let mut command = common::command(&self.dir.path().join("home"));
        if roots {
            command.env("SSL_CERT_FILE", self.dir.path().join("roots.pem"));
        }
        let mut child = command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .await
            .unwrap();
        let out = child.wait_with_output().await.unwrap();
        common::Ran {
            code: out.status.code(),
            out: String::from_utf8(out.stdout).unwrap(),
            err: String::from_utf8(out.stderr).unwrap(),
        }
    }

    async fn enrol(&self) {
        let data = self.dir.path().join("data");
        let made = self
            .run(
                &[
                    "users",
                    "create",
                    "alice",
                    "--data-dir",
                    data.to_str().unwrap(),
                ],
                "",
                false,
            )
            .await
            .ok();
        assert!(
            made.contains("put the address of yours in the place of PROXY"),
            "{made}"
        );
        let link = made
            .split('\'')
            .nth(1)
            .unwrap()
            .replace("PROXY", &self.proxy);
        self.run(
            &["login", &link, "--password-stdin"],
            "correct horse battery\n",
            false,
        )
        .await
        .ok();
        self.run(&["logout", "--forget"], "", false).await.ok();
    }

    async fn stop(self) {
        self.stop.cancel();
        self.auth.stopped().await;
    }
}

async fn serve(listener: TcpListener, web: TlsIdentity, auth: SocketAddr, trust: TrustBundle) {
    let acceptor = TlsAcceptor::from(tls::server(&web, tls::ClientAuth::None, &[]).unwrap());
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let (acceptor, trust) = (acceptor.clone(), serde_json::to_string(&trust).unwrap());
        connections.spawn(async move {
            let _ = route(client, acceptor, auth, &trust).await;
        });
    }
}

async fn route(
    mut client: TcpStream,
    acceptor: TlsAcceptor,
    auth: SocketAddr,
    trust: &str,
) -> std::io::Result<()> {
    let mut hello = [0; 2048];
    client.readable().await?;
    let n = client.peek(&mut hello).await?;
    if hello[..n].windows(9).any(|w| w == b"auth.demo") {
        let mut auth = TcpStream::connect(auth).await?;
        return tokio::io::copy_bidirectional(&mut client, &mut auth)
            .await
            .map(|_| ());
    }
    let mut tls = BufReader::new(acceptor.accept(client).await?);
    let mut request = String::new();
    while !request.ends_with("\r\n\r\n") {
        if tls.read_line(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let (status, body) = match request.split(' ').nth(1) {
        Some("/v1/ca") => ("200 OK", trust.to_owned()),
        Some("/v1/ping") => (
            "200 OK",
            r#"{"cluster":"demo","version":"0.1.0"}"#.to_owned(),
        ),
        _ => ("404 Not Found", String::new()),
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    tls.write_all(answer.as_bytes()).await?;
    tls.flush().await?;
    tls.read_to_string(&mut request).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_pin_the_proxy_is_trusted_once_and_that_is_said() {
    let cluster = Cluster::start().await;
    cluster.enrol().await;
    let pin = cluster
        .auth
        .trust()
        .of(CaKind::Host)
        .next()
        .unwrap()
        .pin()
        .to_string();
    let args = [
        "login",
        "--proxy",
        &cluster.proxy,
        "--user",
        "alice",
        "--password-stdin",
    ];
    let ran = cluster.run(&args, "correct horse battery\n", true).await;
    assert!(
        ran.err.contains("is trusted this once") && ran.err.contains(&pin),
        "{ran:?}"
    );
    ran.ok();
    // Now the pin is known: nothing to trust, and nothing said.
    let ran = cluster
        .run(
            &["login", "--password-stdin"],
            "correct horse battery\n",
            false,
        )
        .await;
    assert_eq!(ran.err, "");
    ran.ok();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_is_not_publicly_valid_needs_a_pin() {
    let cluster = Cluster::start().await;
    let args = [
        "login",
        "--proxy",
        &cluster.proxy,
        "--user",
        "alice",
        "--password-stdin",
    ];
    let e = cluster.run(&args, "secret\n", false).await.failed(1);
    assert!(
        e.contains("cannot fetch the cluster's CA") && e.contains("--ca-pin"),
        "{e}"
    );
    let e = cluster
        .run(
            &[
                "login",
                "--proxy",
                &cluster.proxy,
                "--cluster",
                "other",
                "--password-stdin",
            ],
            "secret\n",
            true,
        )
        .await
        .failed(1);
    assert_eq!(
        e,
        format!(
            "postern: the proxy {} belongs to cluster demo, not other\n",
            cluster.proxy
        )
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_pin_the_name_of_the_cluster_is_asked_for() {
    let cluster = Cluster::start().await;
    cluster.enrol().await;
    let pin = cluster
        .auth
        .trust()
        .of(CaKind::Host)
        .next()
        .unwrap()
        .pin()
        .to_string();
    let args = [
        "login",
        "--proxy",
        &cluster.proxy,
        "--user",
        "alice",
        "--ca-pin",
        &pin,
        "--password-stdin",
    ];
    let ran = cluster.run(&args, "correct horse battery\n", true).await;
    assert_eq!(ran.err, "");
    assert!(ran.ok().starts_with("Logged in to cluster demo as alice"));
    cluster.stop().await;
}
