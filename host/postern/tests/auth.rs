//! Login and administration against the real Auth Service. There is no proxy here: to reach Auth
//! any TCP address that leads there will do, so its own stands in for one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Ran, postern};
use postern_auth::{AuthOptions, AuthServer};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

struct Cluster {
    dir: tempfile::TempDir,
    auth: AuthServer,
    stop: CancellationToken,
}

impl Cluster {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // The enrolment link names the address, so it has to be known beforehand.
        let address = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .to_string();
        let stop = CancellationToken::new();
        let options = AuthOptions {
            cluster: "demo".into(),
            data_dir: dir.path().join("data"),
            listen: address.clone(),
            cert_ttl: Duration::from_secs(3600),
            rejoin_window: Duration::from_secs(3600),
            proxy_public_addr: Some(address),
        };
        let auth = AuthServer::start(options, stop.clone()).await.unwrap();
        Cluster { dir, auth, stop }
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    async fn user(&self, args: &[&str], input: &str) -> Ran {
        postern(&self.home(), args, input).await
    }

    async fn admin(&self, args: &[&str]) -> Ran {
        let data = self.dir.path().join("data");
        let args = args
            .iter()
            .copied()
            .chain(["--data-dir", data.to_str().unwrap()]);
        postern(&self.home(), args, "").await
    }

    /// Makes alice and logs her in with her link.
    async fn enrol(&self) -> String {
        let made = self
            .admin(&[
                "users",
                "create",
                "alice",
                "--roles",
                "access",
                "--logins",
                "root,ubuntu",
            ])
            .await
            .ok();
        let link = link(&made);
        let out = self
            .user(
                &["login", &link, "--password-stdin"],
                "correct horse battery\n",
            )
            .await
            .ok();
        assert!(
            out.starts_with("Logged in to cluster demo as alice for "),
            "{out}"
        );
        link
    }

    async fn stop(self) {
        self.stop.cancel();
        self.auth.stopped().await;
    }
}

fn link(made: &str) -> String {
    let line = made
        .lines()
        .find(|l| l.contains("postern login '"))
        .unwrap_or_else(|| panic!("no link in {made}"));
    line.split('\'').nth(1).unwrap().to_owned()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_the_link_to_logging_out() {
    let cluster = Cluster::start().await;
    let link = cluster.enrol().await;

    let status = cluster.user(&["status"], "").await.ok();
    for want in [
        "Cluster      demo\n",
        "User         alice\n",
        "Roles        access\n",
        "Logins       root, ubuntu\n",
        "Auth         answers\n",
    ] {
        assert!(status.contains(want), "no {want:?} in {status}");
    }
    let status = json(&cluster.user(&["status", "--json"], "").await.ok());
    assert_eq!(
        (&status["valid"], &status["auth_reachable"]),
        (&true.into(), &true.into())
    );

    let none = cluster.user(&["ls"], "").await.ok();
    assert!(
        none.starts_with("There is nothing that you may reach yet"),
        "{none}"
    );
    assert_eq!(
        cluster
            .user(&["ls", "ssh", "env=prod", "--json"], "")
            .await
            .ok(),
        "[]\n"
    );
    let e = cluster
        .user(&["proxy", "orders", "--port", "0"], "")
        .await
        .failed(1);
    assert_eq!(
        e,
        "postern: there is no resource \"orders\" that you may reach; see: postern ls\n"
    );

    // A used link is of no use to whoever finds it.
    let e = postern(
        &cluster.dir.path().join("thief"),
        ["login", &link, "--password-stdin"],
        "another password\n",
    )
    .await
    .failed(1);
    assert!(e.starts_with("postern: ") && e.lines().count() == 1, "{e}");
    assert!(!cluster.dir.path().join("thief").exists());

    assert!(
        cluster
            .user(&["logout"], "")
            .await
            .ok()
            .starts_with("Logged out")
    );
    let e = cluster.user(&["ls"], "").await.failed(1);
    assert_eq!(
        e,
        "postern: you are logged out of cluster demo; run: postern login\n"
    );

    // Address, cluster, user and pin are remembered.
    let e = cluster
        .user(&["login", "--password-stdin"], "wrong\n")
        .await
        .failed(1);
    assert!(e.contains("wrong") || e.contains("password"), "{e}");
    cluster
        .user(
            &["login", "--password-stdin", "--ttl", "10m"],
            "correct horse battery\n",
        )
        .await
        .ok();
    let status = cluster.user(&["status"], "").await.ok();
    assert!(
        status.contains("Certificate  valid for 9 min")
            || status.contains("Certificate  valid for 10 min"),
        "{status}"
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_pin_ends_the_login_before_the_password_is_sent() {
    let cluster = Cluster::start().await;
    let address = cluster.auth.local_addr().to_string();
    let pin = format!("sha256:{}", "ab".repeat(32));
    let args = [
        "login",
        "--proxy",
        &address,
        "--cluster",
        "demo",
        "--user",
        "alice",
        "--ca-pin",
        &pin,
        "--password-stdin",
    ];
    let e = cluster.user(&args, "secret\n").await.failed(1);
    assert!(
        e.starts_with("postern: cannot reach ") && e.contains(&address),
        "{e}"
    );
    assert!(!cluster.home().exists());
    let log = cluster
        .admin(&["audit", "--event", "user.login"])
        .await
        .ok();
    assert_eq!(log, "", "no attempt reached Auth");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn administration_over_the_socket() {
    let cluster = Cluster::start().await;

    let text = cluster
        .admin(&[
            "tokens", "create", "--kinds", "ssh,tcp", "--names", "web-*", "--uses", "1",
        ])
        .await
        .ok();
    let config: String = text
        .split_once("version = 1")
        .map(|(_, rest)| format!("version = 1{rest}"))
        .unwrap();
    let config: toml::Table = config.parse().unwrap();
    assert_eq!(config["cluster"].as_str(), Some("demo"));
    assert_eq!(
        config["agent"]["proxy"].as_str(),
        Some(cluster.auth.local_addr().to_string().as_str())
    );
    let token = config["agent"]["join_params"]["token"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(token.starts_with("pt_"), "{token}");

    let listed = cluster.admin(&["tokens", "ls"]).await.ok();
    let lines: Vec<&str> = listed.lines().collect();
    assert!(lines[0].starts_with("TOKEN "), "{listed}");
    for want in ["ssh, tcp", "web-*", "0 of 1", "valid", "just now", "  in "] {
        assert!(lines[1].contains(want), "no {want:?} in {listed}");
    }
    let secret = token.rsplit('_').next().unwrap();
    assert!(!listed.contains(secret));
    assert!(
        cluster
            .admin(&["tokens", "get", &token])
            .await
            .ok()
            .contains("kinds    ssh, tcp\n")
    );
    let gone = cluster.admin(&["tokens", "rm", &token]).await.ok();
    assert!(!gone.contains(secret), "{gone}");
    assert_eq!(
        cluster.admin(&["tokens", "ls", "--json"]).await.ok(),
        "[]\n"
    );
    let quiet = cluster
        .admin(&["tokens", "create", "--kinds", "ssh", "-q"])
        .await
        .ok();
    assert!(
        quiet.starts_with("pt_") && quiet.lines().count() == 1,
        "{quiet}"
    );

    cluster
        .admin(&["users", "create", "bob", "--roles", "access"])
        .await
        .ok();
    let users = cluster.admin(&["users", "ls"]).await.ok();
    assert!(
        users
            .lines()
            .nth(1)
            .unwrap()
            .starts_with("bob   access  -       invited, link expires in "),
        "{users}"
    );
    let e = cluster.admin(&["users", "create", "bob"]).await.failed(1);
    assert!(e.contains("--reset"), "{e}");
    cluster
        .admin(&["users", "create", "bob", "--reset"])
        .await
        .ok();
    let e = cluster
        .admin(&["users", "create", "eve", "--roles", "nosuch"])
        .await
        .failed(1);
    assert!(e.contains("nosuch"), "{e}");

    let file = cluster.dir.path().join("role.toml");
    std::fs::write(
        &file,
        "name = \"deployers\"\n[allow.ssh]\nlabels = { env = [\"test\"] }\nlogins = [\"deploy\"]\n",
    )
    .unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(
        cluster.admin(&["roles", "create", "-f", file]).await.ok(),
        "Role deployers is made.\n"
    );
    let e = cluster
        .admin(&["roles", "create", "-f", file])
        .await
        .failed(1);
    assert!(e.contains("--replace"), "{e}");
    // What `get` prints can be edited and put back.
    let role = cluster.admin(&["roles", "get", "deployers"]).await.ok();
    std::fs::write(file, role).unwrap();
    cluster
        .admin(&["roles", "create", "--replace", "-f", file])
        .await
        .ok();
    let roles = cluster.admin(&["roles", "ls"]).await.ok();
    assert!(
        roles.contains("deployers  ssh where env=test, logins deploy"),
        "{roles}"
    );
    cluster.admin(&["roles", "rm", "deployers"]).await.ok();
    assert!(
        cluster
            .admin(&["roles", "get", "deployers"])
            .await
            .failed(1)
            .contains("deployers")
    );

    let locked = cluster
        .admin(&[
            "locks",
            "create",
            "user:bob",
            "--reason",
            "laptop stolen",
            "--ttl",
            "2h",
        ])
        .await
        .ok();
    assert_eq!(
        locked,
        "user:bob is locked. Lift it with: postern locks rm user:bob\n"
    );
    let locks = cluster.admin(&["locks", "ls"]).await.ok();
    assert!(locks.contains("user:bob  laptop stolen  in "), "{locks}");
    cluster.admin(&["locks", "rm", "user:bob"]).await.ok();
    assert_eq!(
        cluster.admin(&["locks", "ls"]).await.ok(),
        "Nothing is locked.\n"
    );
    assert!(
        cluster
            .admin(&["agents", "ls"])
            .await
            .ok()
            .starts_with("No agent has joined")
    );

    let log = cluster.admin(&["audit", "--event", "token.*"]).await.ok();
    let events: Vec<&str> = log
        .lines()
        .map(|l| l.split_whitespace().nth(2).unwrap())
        .collect();
    assert_eq!(
        events,
        ["token.create", "token.remove", "token.create"],
        "{log}"
    );
    let last = cluster
        .admin(&["audit", "--last", "1", "--json"])
        .await
        .ok();
    assert_eq!(json(&last)["event"], "lock.remove");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_log_is_followed() {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let cluster = Cluster::start().await;
    let data = cluster.dir.path().join("data");
    let mut child = common::command(&cluster.home())
        .args(["audit", "--follow", "--event", "user.*", "--data-dir"])
        .arg(&data)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    cluster.enrol().await;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let line = tokio::time::timeout(Duration::from_secs(20), lines.next_line())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        seen.push(line);
    }
    assert!(
        seen[0].contains("user.create") && seen[0].contains("user=alice"),
        "{seen:?}"
    );
    assert!(seen[1].contains("user=alice"), "{seen:?}");
    child.kill().await.unwrap();
    cluster.stop().await;
}
