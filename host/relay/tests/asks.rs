//! What a plugin may ask of the host beyond a connection: TLS, challenges, secrets, cancel keys; and events that hold steps up.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use postern_plugin::*;
use postern_plugin_testing::{guest, runtime};
use postern_relay::*;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{Notify, mpsc};
use zeroize::Zeroizing;

/// Everything is allowed; what it dials comes out of a channel.
struct Host {
    dialled: mpsc::Sender<(Endpoint, DuplexStream)>,
    verified: bool,
    needs_tls: bool,
    recorded: AtomicBool,
    let_go: Notify,
    refuse_events: bool,
    keys: Mutex<Vec<Vec<u8>>>,
}

impl CodecHost for Host {
    async fn authorize(&self, _: &[(String, String)]) -> Result<(), String> {
        Ok(())
    }
    async fn connect(&self, endpoint: Endpoint) -> Result<BoxedStream, String> {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        self.dialled.try_send((endpoint, theirs)).unwrap();
        Ok(Box::new(ours))
    }
    fn needs_tls(&self, _: Endpoint) -> bool {
        self.needs_tls
    }
    async fn start_tls(&self, _: Endpoint, stream: BoxedStream) -> Result<Secured, String> {
        Ok(Secured {
            stream,
            verified: self.verified,
        })
    }
    async fn answer(&self, _: Endpoint, challenge: Challenge) -> Result<Vec<u8>, String> {
        assert_eq!(challenge.data, b"riddle");
        match challenge.account.as_str() {
            "app" => Ok(b"solved".to_vec()),
            other => Err(format!("{other} is not authorized")),
        }
    }
    async fn secret(&self, _: Endpoint, account: String) -> Result<Zeroizing<Vec<u8>>, String> {
        match account.as_str() {
            "app" => Ok(Zeroizing::new(b"hunter2".to_vec())),
            other => Err(format!("{other} is not authorized")),
        }
    }
    fn offer_cancel(&self, key: Vec<u8>, room: usize) -> Result<Vec<u8>, String> {
        assert_eq!(room, 8);
        self.keys.lock().unwrap().push(key);
        Ok(b"ourskey8".to_vec())
    }
    fn find_cancel(&self, key: &[u8]) -> Option<Vec<u8>> {
        (key == b"ourskey8").then(|| b"theirkey".to_vec())
    }
    async fn event(&self, _: PluginEvent) -> Result<(), String> {
        if self.refuse_events {
            return Err("the disk is full".into());
        }
        self.let_go.notified().await;
        self.recorded.store(true, Ordering::SeqCst);
        Ok(())
    }
}

struct Ran {
    ended: Result<RelayStats, RelayError>,
    /// What the client got.
    told: String,
    /// What each upstream got.
    upstreams: Vec<(Endpoint, Vec<u8>)>,
}

impl Ran {
    fn broke(&self, words: &str) {
        match &self.ended {
            Err(RelayError::Plugin(e)) => assert!(e.to_string().contains(words), "{e}"),
            other => panic!("{other:?}: {}", self.told),
        }
    }
}

/// Runs the questions, of a session or a task. Every upstream says `early` at once, and then reads to its end.
async fn ran(change: impl FnOnce(&mut Host), ask: &[&str], early: &'static [u8]) -> Ran {
    ran_for(None, change, ask, early).await
}

async fn ran_for(
    task: Option<Task>,
    change: impl FnOnce(&mut Host),
    ask: &[&str],
    early: &'static [u8],
) -> Ran {
    let dir = tempfile::tempdir().unwrap();
    let rt = runtime(dir.path());
    let source = PluginSource::file("asker", guest("asker"));
    let plugin = rt.load(&source, Limits::default()).await.unwrap();
    let settings = serde_json::json!({ "ask": ask }).to_string();
    let codec = match task {
        None => plugin.codec(&settings, "s").await.unwrap(),
        Some(task) => {
            assert!(plugin.makes_accounts());
            let admin = Administrator {
                user: "app".into(),
                database: "postgres".into(),
            };
            plugin.task(&settings, "s", &admin, task).await.unwrap()
        }
    };
    let (dialled, mut upstreams) = mpsc::channel(8);
    let mut host = Host {
        dialled,
        verified: true,
        needs_tls: false,
        recorded: AtomicBool::new(false),
        let_go: Notify::new(),
        refuse_events: false,
        keys: Mutex::default(),
    };
    change(&mut host);
    let (mut client, ours) = tokio::io::duplex(1 << 16);
    let run = async {
        let ended = run_codec(ours, codec, &host).await;
        drop(host);
        ended
    };
    let serve = async {
        let mut got = Vec::new();
        while let Some((endpoint, mut stream)) = upstreams.recv().await {
            let mut bytes = vec![0; 4];
            let read = async {
                if !early.is_empty() {
                    stream.read_exact(&mut bytes).await?;
                    stream.write_all(early).await?;
                } else {
                    bytes.clear();
                }
                stream.read_to_end(&mut bytes).await
            };
            let _ = read.await;
            got.push((endpoint, bytes));
        }
        got
    };
    let read = async {
        let mut told = String::new();
        client.read_to_string(&mut told).await.unwrap();
        told
    };
    let all = async { tokio::join!(run, serve, read) };
    let (ended, upstreams, told) = tokio::time::timeout(Duration::from_secs(30), all)
        .await
        .expect("nothing here hangs");
    Ran {
        ended,
        told,
        upstreams,
    }
}

const SESSION: [&str; 2] = ["authorize app", "connect main"];

fn session<'a>(then: &[&'a str]) -> Vec<&'a str> {
    [&SESSION[..], then].concat()
}

#[tokio::test]
async fn tls_a_challenge_and_a_cancel_key() {
    let ask = session(&["request-tls", "answer app", "answer root", "offer theirs"]);
    let ran = ran(|_| {}, &ask, b"S").await;
    assert_eq!(
        ran.told,
        "authorized\nconnected\ntls\nsolved\nfailed: root is not authorized\nourskey8\n"
    );
    assert_eq!(ran.upstreams, [(Endpoint::Main, b"tls?".to_vec())]);
}

/// CVE-2021-23222: what came before TLS is not taken for what comes through it.
#[tokio::test]
async fn a_server_that_speaks_before_tls_is_left() {
    let left = ran(|_| {}, &session(&["request-tls"]), b"Sforged").await;
    let words = "failed: the server sent 6 bytes in plaintext";
    assert!(left.told.contains(words), "{}", left.told);
    assert!(!left.told.contains("forged"));
    // And nothing goes on over it.
    let on = session(&["request-tls", "answer app"]);
    let broke = ran(|_| {}, &on, b"Sforged").await;
    broke.broke("answer before connect was answered");
}

#[tokio::test]
async fn a_secret_goes_over_verified_tls_alone() {
    let ask = session(&["tls", "secret app"]);
    let sent = ran(|_| {}, &ask, b"").await;
    assert!(sent.told.ends_with("tls\nsent\n"), "{}", sent.told);
    assert_eq!(sent.upstreams[0].1, b"\0\0\0\x0bhunter2\0");
    let up = sent.ended.unwrap().to_upstream;
    assert_eq!(up, 12);

    let other = ran(|_| {}, &session(&["tls", "secret root"]), b"").await;
    assert!(other.told.ends_with("failed: root is not authorized\n"));
    let plain = ran(|_| {}, &session(&["secret app"]), b"").await;
    let unverified = ran(|h| h.verified = false, &ask, b"").await;
    for ran in [plain, unverified] {
        assert!(ran.told.contains("over verified TLS only"), "{}", ran.told);
        assert_eq!(ran.upstreams[0].1, b"");
    }
}

#[tokio::test]
async fn where_tls_must_be_nothing_is_answered_without() {
    for ask in [
        session(&["answer app"]),
        session(&["splice"]),
        session(&["offer k"]),
    ] {
        let ran = ran(|h| h.needs_tls = true, &ask, b"").await;
        ran.broke("goes on without TLS");
    }
    let ran = ran(
        |h| h.needs_tls = true,
        &session(&["tls", "answer app"]),
        b"",
    )
    .await;
    assert!(ran.told.ends_with("solved\n"), "{}", ran.told);
}

/// Takes its ten seconds.
#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up() {
    let began = std::time::Instant::now();
    let ran = ran(|_| {}, &session(&["request-tls"]), b"").await;
    assert!(began.elapsed() >= Duration::from_secs(10));
    assert_eq!(ran.told, "authorized\nconnected\n");
    assert_eq!(ran.upstreams, [(Endpoint::Main, b"tls?".to_vec())]);
    let why = ran.ended.unwrap_err().to_string();
    assert_eq!(
        why,
        "upstream connection: the server did not answer within 10s"
    );
}

#[tokio::test]
async fn a_cancel_connection_may_do_that_alone() {
    let found = ran(|_| {}, &["find ourskey8", "connect cancel"], b"").await;
    assert_eq!(found.told, "theirkey\nconnected\n");
    assert_eq!(found.upstreams[0].0, Endpoint::Cancel);
    let unknown = ran(|_| {}, &["find other"], b"").await;
    assert_eq!(unknown.told, "unknown\n");
    for (ask, words) in [
        (
            vec!["find other", "connect cancel"],
            "without a find-cancel that found",
        ),
        (
            vec!["find ourskey8", "connect main"],
            "only connect(cancel)",
        ),
        (
            vec!["find ourskey8", "authorize app"],
            "only connect(cancel)",
        ),
        (session(&["find ourskey8"]), "of a session"),
    ] {
        ran(|_| {}, &ask, b"").await.broke(words);
    }
}

#[tokio::test]
async fn the_administrator_is_out_of_reach_of_a_session() {
    for ask in [&["authorize app", "connect admin"][..], &["connect admin"]] {
        ran(|_| {}, ask, b"").await.broke("for tasks");
    }
}

#[tokio::test]
async fn a_task_is_done_as_the_administrator() {
    let account = Account {
        name: "alice".into(),
        roles: vec!["reader".into()],
        afterwards: Afterwards::Drop,
    };
    let key = Some(b"theirkey".to_vec());
    let departure = Task::Dismiss {
        account: "alice".into(),
        key,
    };
    for (task, told) in [
        (
            Task::Admit(account),
            r#"Task::Admit(Account { name: "alice", roles: ["reader"], afterwards: Afterwards::Drop })"#,
        ),
        (
            departure,
            r#"Task::Dismiss(Departure { account: "alice", key: "#,
        ),
        (Task::Sweep, "Task::Sweep"),
    ] {
        let ask = ["connect admin", "request-tls", "answer app", "secret app"];
        let ran = ran_for(Some(task), |_| {}, &ask, b"S").await;
        let (first, rest) = ran.told.split_once('\n').unwrap();
        assert!(
            first.starts_with(&format!("app at postgres: {told}")),
            "{first}"
        );
        assert_eq!(rest, "connected\ntls\nsolved\nsent\n");
        assert_eq!(ran.upstreams[0].0, Endpoint::Admin);
    }
    for ask in ["connect main", "authorize app", "find ourskey8"] {
        let ran = ran_for(Some(Task::Sweep), |_| {}, &[ask], b"").await;
        ran.broke("in a task");
    }
}

#[tokio::test]
async fn steps_behind_an_event_wait_for_it_and_one_that_fails_ends_the_session() {
    let ran1 = ran(
        |h| h.let_go.notify_one(),
        &["event query", "authorize app"],
        b"",
    )
    .await;
    assert_eq!(ran1.told, "behind\nauthorized\n");
    let ran2 = ran(
        |h| h.refuse_events = true,
        &["event query", "authorize app"],
        b"",
    )
    .await;
    assert_eq!(ran2.told, "", "nothing behind it");
    assert!(matches!(ran2.ended, Err(RelayError::Host(why)) if why == "the disk is full"));
}
