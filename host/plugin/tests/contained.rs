//! Guests that trap, loop, sleep, eat memory: each ends its own session, with a report that an operator can use, while
//! another session of the same plugin goes on.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use postern_plugin::*;
use postern_plugin_testing::{guest, runtime};
use std::time::{Duration, Instant};

fn limits() -> Limits {
    Limits {
        memory: Some(8 << 20),
        cpu_ms_per_call: 60,
    }
}

async fn misbehave() -> (tempfile::TempDir, Runtime, Plugin) {
    let dir = tempfile::tempdir().unwrap();
    let rt = runtime(dir.path());
    let p = rt
        .load(
            &PluginSource::file("misbehave", guest("misbehave")),
            limits(),
        )
        .await
        .unwrap();
    (dir, rt, p)
}

fn mode(m: &str) -> String {
    format!(r#"{{"mode":"{m}"}}"#)
}

/// Runs one that misbehaves beside one that does not.
async fn contained(m: &str, kind: TrapKind, words: &[&str]) {
    let (_dir, _rt, p) = misbehave().await;
    let mut good = p.codec(&mode("pass"), "good").await.unwrap();
    good.on_open().await.unwrap();
    let mut bad = p.codec(&mode(m), "s-1").await.unwrap();
    bad.on_open().await.unwrap();
    let (ended, went_on) = tokio::join!(bad.on_input(Side::Client, b"go"), async {
        let mut n = 0;
        let until = Instant::now() + Duration::from_millis(200);
        while Instant::now() < until {
            assert_eq!(
                good.on_input(Side::Client, b"abc").await.unwrap(),
                [Step::Pass(3)]
            );
            n += 1;
            tokio::task::yield_now().await;
        }
        n
    });
    let e = ended.unwrap_err();
    assert_eq!(e.trap(), Some(kind), "{e}");
    let said = e.to_string();
    assert!(
        said.starts_with(r#"plugin "misbehave" 0.1.0, session s-1: trapped"#),
        "{said}"
    );
    for w in words {
        assert!(said.contains(w), "{said} lacks {w}");
    }
    assert!(
        went_on > 10,
        "the other session answered only {went_on} times"
    );
    // It is over, and says so.
    assert!(matches!(
        bad.on_close(Side::Client).await.unwrap_err().cause(),
        Cause::Ended
    ));
}

#[tokio::test]
async fn a_panic() {
    contained(
        "trap",
        TrapKind::Unreachable,
        &["`on-input` gave up", "last words", "asked to"],
    )
    .await;
}

/// On a single thread: the spinning guest has to let others run.
#[tokio::test]
async fn an_endless_loop() {
    let began = Instant::now();
    contained("loop", TrapKind::Cpu, &["60 ms", "cpu_ms_per_call"]).await;
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn memory() {
    contained("memory", TrapKind::Memory, &["8 MiB", "memory_mb"]).await;
}

#[tokio::test]
async fn recursion() {
    contained("stack", TrapKind::Other, &["too deep"]).await;
}

#[tokio::test]
async fn too_long_an_answer() {
    // 20 MB needs memory before it is an answer.
    let dir = tempfile::tempdir().unwrap();
    let rt = runtime(dir.path());
    let p = rt
        .load(
            &PluginSource::file("misbehave", guest("misbehave")),
            Limits::default(),
        )
        .await
        .unwrap();
    let mut bad = p.codec(&mode("huge-answer"), "s").await.unwrap();
    let kind = bad.on_input(Side::Client, b"x").await.unwrap_err().trap();
    assert!(
        matches!(kind, Some(TrapKind::Data | TrapKind::Memory)),
        "{kind:?}"
    );
}

/// Given up after 50 times the CPU limit: 3 s.
#[tokio::test]
async fn sleeping_is_not_answering() {
    let (_dir, _rt, p) = misbehave().await;
    let mut bad = p.codec(&mode("sleep"), "s").await.unwrap();
    let e = bad.on_input(Side::Client, b"x").await.unwrap_err();
    assert_eq!(e.trap(), Some(TrapKind::Time), "{e}");
}

#[tokio::test]
async fn a_call_that_is_dropped_ends_the_instance() {
    let (_dir, _rt, p) = misbehave().await;
    let mut bad = p.codec(&mode("loop"), "s").await.unwrap();
    let dropped =
        tokio::time::timeout(Duration::from_millis(20), bad.on_input(Side::Client, b"x")).await;
    if dropped.is_err() {
        assert!(matches!(
            bad.on_open().await.unwrap_err().cause(),
            Cause::Ended
        ));
    }
    // A new one is as good as ever.
    let mut good = p.codec(&mode("pass"), "t").await.unwrap();
    assert_eq!(
        good.on_input(Side::Client, b"a").await.unwrap(),
        [Step::Pass(1)]
    );
}

#[tokio::test]
async fn traps_in_constructor_and_validate() {
    let (_dir, _rt, p) = misbehave().await;
    let e = p.codec(&mode("trap-on-new"), "s").await.err().unwrap();
    assert_eq!(e.trap(), Some(TrapKind::Unreachable), "{e}");
    let e = p.validate(r#"{"on_validate":"loop"}"#).await.unwrap_err();
    assert_eq!(e.trap(), Some(TrapKind::Cpu), "{e}");
    let e = p.validate(r#"{"on_validate":"memory"}"#).await.unwrap_err();
    assert_eq!(e.trap(), Some(TrapKind::Memory), "{e}");
}

#[tokio::test]
async fn what_was_not_announced_is_not_given() {
    let (_dir, _rt, p) = misbehave().await;
    for (m, words) in [
        ("unannounced-endpoint", "endpoint Admin"),
        ("unannounced-challenge", "\"md5\""),
        ("start-tls", "start-tls"),
        ("steps-too-many", "5000 steps"),
    ] {
        let mut c = p.codec(&mode(m), "s").await.unwrap();
        let e = c.on_input(Side::Client, b"x").await.unwrap_err();
        assert!(
            matches!(e.cause(), Cause::Contract { .. }) && e.to_string().contains(words),
            "{e}"
        );
        assert!(matches!(
            c.on_open().await.unwrap_err().cause(),
            Cause::Ended
        ));
    }
    let mut c = p.codec(&mode("unannounced-principal"), "s").await.unwrap();
    let e = c.on_open().await.unwrap_err();
    assert!(e.to_string().contains("principal \"others\""), "{e}");
}

#[tokio::test]
async fn a_full_pool_is_an_error_and_empties_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut o = RuntimeOptions::new(dir.path().join("c"));
    o.max_instances = 16;
    let rt = Runtime::new(o).unwrap();
    let p = rt
        .load(&PluginSource::file("tcp", guest("tcp")), Limits::default())
        .await
        .unwrap();
    let mut all = Vec::new();
    let e = loop {
        match p.codec("{}", "s").await {
            Ok(c) => all.push(c),
            Err(e) => break e,
        }
        assert!(all.len() <= 16);
    };
    assert!(matches!(e.cause(), Cause::Busy { limit: 16 }), "{e}");
    assert_eq!(all.len(), 16);
    all.truncate(15);
    p.codec("{}", "s").await.unwrap();
}

/// More loops at once than there are threads and stacks: all end, each by its own limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_loops_at_once() {
    let (_dir, _rt, p) = misbehave().await;
    let tasks: Vec<_> = (0..40)
        .map(|i| {
            let p = p.clone();
            tokio::spawn(async move {
                let mut c = p.codec(&mode("loop"), &format!("s-{i}")).await.unwrap();
                c.on_input(Side::Client, b"x").await.unwrap_err().trap()
            })
        })
        .collect();
    for t in tasks {
        assert_eq!(t.await.unwrap(), Some(TrapKind::Cpu));
    }
}

#[tokio::test]
async fn an_ssh_guard_that_traps() {
    let dir = tempfile::tempdir().unwrap();
    let rt = runtime(dir.path());
    let p = rt
        .load(
            &PluginSource::file("misbehave-ssh", guest("misbehave_ssh")),
            limits(),
        )
        .await
        .unwrap();
    let info = |login: &str| SshSessionInfo {
        session: "s-9".into(),
        user: "alice".into(),
        login: login.into(),
        ..Default::default()
    };
    let exec = |c: &str| SshEvent::Exec { command: c.into() };
    for (command, kind) in [
        ("trap", TrapKind::Unreachable),
        ("loop", TrapKind::Cpu),
        ("memory", TrapKind::Memory),
    ] {
        let mut other = p.ssh("{}", &info("root")).await.unwrap();
        let mut bad = p.ssh("{}", &info("root")).await.unwrap();
        assert_eq!(
            bad.decide(0, SshEvent::Shell).await.unwrap(),
            Verdict::Allow
        );
        let e = bad.decide(1, exec(command)).await.unwrap_err();
        assert_eq!(e.trap(), Some(kind), "{e}");
        assert!(bad.decide(1, SshEvent::Shell).await.is_err());
        // State is the instance's: this one was asked once.
        assert_eq!(
            other.decide(3, exec("deny")).await.unwrap(),
            Verdict::Deny("denied on channel 3, question 1".into())
        );
    }
    let e = p.ssh("{}", &info("refused")).await.err().unwrap();
    assert_eq!(e.refusal(), Some("alice may not be refused today"));
    assert!(matches!(
        p.codec("{}", "s").await.err().unwrap().cause(),
        Cause::WrongWorld { .. }
    ));
}
