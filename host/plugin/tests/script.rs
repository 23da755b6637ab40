//! Scripts through real guests: what is told, and what ends a script.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use postern_plugin::script::{Report, Script};
use postern_plugin::*;
use postern_plugin_testing::{guest, runtime};
use serde_json::{Map, Value, json};

async fn play_with(plugin: &str, script: &str, settings: Option<Value>) -> Report {
    let dir = tempfile::tempdir().unwrap();
    let rt = runtime(dir.path());
    let source = PluginSource::file(plugin, guest(plugin));
    let plugin = rt.load(&source, Limits::default()).await.unwrap();
    let settings: Option<Map<String, Value>> = settings.map(|s| serde_json::from_value(s).unwrap());
    let script = Script::parse(script).unwrap();
    script.play(&plugin, settings.as_ref()).await
}

async fn play(plugin: &str, script: &str) -> Report {
    play_with(plugin, script, None).await
}

fn failure(report: &Report) -> String {
    report.failure.as_ref().expect("a failure").to_string()
}

#[tokio::test]
async fn a_transcript_tells_every_call() {
    let report = play(
        "tcp",
        r#"
        [[session]]
        name = "through"
        events = [
          { open = true, expect = ["authorize"] },
          { client = "early" },
          { authorize = "allow", expect = ["connect main"] },
          { connect = "ok", expect = ["splice client", "splice upstream"] },
          { upstream = "hello" },
          { close = "upstream", expect = [] },
        ]
        upstream_gets = "early"
        client_gets = "hello"
        "#,
    )
    .await;
    assert!(report.failure.is_none(), "{}", failure(&report));
    assert_eq!(report.checked, 6);
    let expected = r#"session "through"
  open
      authorize
  client "early"
      (kept: the plugin is shown it when its `authorize` is answered)
  authorize: allow
      connect main
  connect: ok
      splice client
      splice upstream
      (both sides are spliced: the instance is thrown away)
  upstream "hello"
      (copied natively: this side is spliced, the plugin is not asked)
  close: upstream
      (this side is spliced, the plugin is not told)
  the upstream got "early"
  the client got "hello"

"#;
    assert_eq!(report.to_string(), expected);
}

#[tokio::test]
async fn unconsumed_input_is_shown_again_as_the_host_does() {
    let report = play_with(
        "misbehave",
        r#"
        [[session]]
        events = [
          { client = "a li", expect = [] },
          { client = "ne\nmore", expect = ["authorize"] },
          { client = "!" },
          { authorize = "allow", expect = ["connect main"] },
          { connect = "ok", expect = ["pass 12"] },
          { close = "client", expect = [] },
        ]
        upstream_gets = "a line\nmore!"
        "#,
        Some(json!({"mode": "ask-late"})),
    )
    .await;
    assert!(report.failure.is_none(), "{report}{}", failure(&report));
    let told = report.to_string();
    assert!(
        told.contains("  connect: ok\n    on-result\n      nothing\n    on-input client \"a line\\nmore!\"\n      pass 12\n"),
        "{told}"
    );
}

#[tokio::test]
async fn settings_of_a_session_win_over_the_callers_and_those_over_the_scripts() {
    let script = r#"
        settings = { mode = "pass" }
        [[session]]
        settings = { mode = "greet" }
        events = [{ open = true, expect = ['to-client "hello\n"', 'authorize things="one"'] }]
        [[session]]
        events = [{ open = true, expect = ["authorize"] }, { authorize = "allow" }, { connect = "ok" }, { client = "x", expect = ["close ..."] }]
    "#;
    let report = play_with("misbehave", script, Some(json!({"mode": "close"}))).await;
    assert_eq!(
        failure(&report),
        "session \"2\", event 4 (client \"x\"): the plugin answered something else than expected (- expected, + answered)\n  + to-client \"bye\\n\"\n    close \"asked to\""
    );
    assert_eq!(report.sessions.len(), 2);
}

#[tokio::test]
async fn settings_that_the_plugin_does_not_accept() {
    let report = play_with(
        "misbehave",
        "[[session]]\nname = \"s\"",
        Some(json!({"mode": "invalid"})),
    )
    .await;
    assert_eq!(
        failure(&report),
        "session \"s\": plugin \"misbehave\" 0.1.0: settings: mode: may not be \"invalid\"; nor may the rest"
    );
}

#[tokio::test]
async fn a_trap_ends_the_script_with_its_report() {
    let report = play_with(
        "misbehave",
        "[[session]]\nname = \"s\"\nevents = [{ authorize = \"allow\" }, { connect = \"ok\" }, { client = \"x\" }]",
        Some(json!({"mode": "trap"})),
    )
    .await;
    let said = failure(&report);
    assert!(
        said.starts_with("session \"s\", event 3 (client \"x\"): plugin \"misbehave\" 0.1.0, session s: trapped (unreachable): `on-input` gave up (a panic)"),
        "{said}"
    );
}

#[tokio::test]
async fn ssh_sessions_get_verdicts() {
    let script = r#"
        settings = { shell = false, exec = { allow = ["uptime"] }, env = ["LC_*"] }
        [[session]]
        who = { user = "alice", login = "deploy", resource = "web-1" }
        events = [
          { exec = "uptime", expect = ["allow"] },
          { shell = true, channel = 1, expect = ["deny ..."] },
          { pty = {}, expect = ["allow"] },
          { env = "LANG=C", expect = ["ignore"] },
          { forward = "db:5432", expect = ["allow"] },
          { subsystem = "sftp", expect = ["allow"] },
        ]
    "#;
    let report = play("ssh", script).await;
    assert!(report.failure.is_none(), "{report}{}", failure(&report));
    assert!(
        report.to_string().starts_with(
            "session \"1\"\n  open\n      opened\n  exec \"uptime\"\n      allow\n  shell on channel 1\n      deny \""
        ),
        "{report}"
    );
}

#[tokio::test]
async fn a_session_that_the_plugin_refuses() {
    let report = play(
        "misbehave_ssh",
        r#"
        [[session]]
        name = "s"
        who = { user = "alice", login = "refused" }
        events = [
          { open = true, expect = ['refused "alice may not be refused today"'] },
          { shell = true },
        ]
        "#,
    )
    .await;
    assert_eq!(
        failure(&report),
        "session \"s\", event 2 (shell): the plugin refused the session, nothing happens after that; begin another [[session]]"
    );
    let report = play("tcp", "[[session]]\nname = \"s\"\nwho = {}").await;
    assert_eq!(
        failure(&report),
        "session \"s\": `who` is for plugins of world ssh: a codec is not told who the user is"
    );
}
