//! A script holds a plugin to the rules that the relay holds it to: the same breach, in the same words.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use postern_plugin::script::Script;
use postern_plugin::*;
use postern_plugin_testing::{guest, runtime};
use postern_relay::*;
use tokio::io::AsyncWriteExt;

/// Allows everything; the upstream is one that says nothing.
struct Host;

impl CodecHost for Host {
    async fn authorize(&self, _: &[(String, String)]) -> Result<(), String> {
        Ok(())
    }
    async fn connect(&self, _: Endpoint) -> Result<BoxedStream, String> {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        // Open for as long as the test runs.
        std::mem::forget(theirs);
        Ok(Box::new(ours))
    }
    async fn event(&self, _: PluginEvent) -> Result<(), String> {
        Ok(())
    }
}

/// What the relay says when the client has sent `bytes`.
async fn relayed(plugin: &Plugin, settings: &str, bytes: &[u8]) -> String {
    let codec = plugin.codec(settings, "s").await.unwrap();
    let (mut client, ours) = tokio::io::duplex(1 << 20);
    client.write_all(bytes).await.unwrap();
    let ended = run_codec(ours, codec, &Host).await;
    drop(client);
    match ended {
        Err(RelayError::Plugin(e)) => e.to_string(),
        other => panic!("{settings}: {other:?}"),
    }
}

/// What a script says about the same.
async fn scripted(plugin: &Plugin, settings: &str, bytes: &[u8]) -> String {
    let allow = "{ authorize = \"allow\" },";
    let at_once = ["connect-unasked", "send-early", "unannounced-principal"];
    let first = if at_once.iter().any(|m| settings.contains(m)) {
        String::new()
    } else if settings.contains("ask-forever") {
        allow.repeat(64)
    } else {
        format!("{allow} {{ connect = \"ok\" }},")
    };
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let text = format!(
        "[[session]]\nname = \"s\"\nevents = [{{ open = true }},{first} {{ client_hex = \"{hex}\" }}]"
    );
    let settings = serde_json::from_str(settings).unwrap();
    let script = Script::parse(&text).unwrap();
    let failure = script.play(plugin, Some(&settings)).await.failure;
    let failure = failure.unwrap_or_else(|| panic!("{settings:?} went well"));
    let said = failure.to_string();
    let at = said.find("plugin \"misbehave\"");
    said[at.unwrap_or_else(|| panic!("{said}"))..].to_string()
}

#[tokio::test]
async fn both_know_the_same_rules() {
    let dir = tempfile::tempdir().unwrap();
    let rt = runtime(dir.path());
    let source = PluginSource::file("misbehave", guest("misbehave"));
    let plugin = rt.load(&source, Limits::default()).await.unwrap();
    for mode in [
        "pass-too-much",
        "pass-overflow",
        "question-in-the-middle",
        "unannounced-endpoint",
        "unannounced-challenge",
        "start-tls",
        "connect-twice",
        "send-too-much",
        "steps-too-many",
        "never",
        "connect-unasked",
        "send-early",
        "ask-forever",
        "unannounced-principal",
    ] {
        let settings = format!("{{\"mode\":\"{mode}\"}}");
        let bytes = vec![b'x'; if mode == "never" { 70_000 } else { 5 }];
        let by_relay = relayed(&plugin, &settings, &bytes).await;
        let by_script = scripted(&plugin, &settings, &bytes).await;
        assert_eq!(by_relay, by_script, "{mode}");
        assert!(by_relay.contains("broke the contract"), "{by_relay}");
    }
}
