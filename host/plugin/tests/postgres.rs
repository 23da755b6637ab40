//! The sessions of `plugins/postgres/session.toml` through the component: what natively tested code answers as a guest.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use postern_plugin::script::Script;
use postern_plugin::*;
use postern_plugin_testing::{guest, runtime};

#[tokio::test]
async fn the_sessions_go_as_written() {
    let dir = tempfile::tempdir().unwrap();
    let rt = runtime(dir.path());
    let source = PluginSource::file("postgres", guest("postgres"));
    let plugin = rt.load(&source, Limits::default()).await.unwrap();
    let d = plugin.description();
    assert_eq!((d.world, d.kind.as_str()), (World::Codec, "postgres"));
    let script = include_str!("../../../plugins/postgres/session.toml");
    let report = Script::parse(script).unwrap().play(&plugin, None).await;
    let failure = report.failure.map(|f| f.to_string());
    assert_eq!(failure, None);
}
