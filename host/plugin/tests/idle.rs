//! What an idle instance costs, and what is counted. Alone in its process (nextest), since it measures the process.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use postern_plugin::*;
use postern_plugin_testing::guest;
use std::fs;

fn rss_kb() -> u64 {
    let status = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = status.lines().find(|l| l.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn maps() -> usize {
    fs::read_to_string("/proc/self/maps")
        .unwrap()
        .lines()
        .count()
}

fn runtime(dir: &std::path::Path) -> Runtime {
    let mut o = RuntimeOptions::new(dir.join("cwasm"));
    o.max_instances = 1000;
    Runtime::new(o).unwrap()
}

/// One idle SSH session: an instance that was opened and has decided once. `engine.rs` counts on the mappings, the agent's
/// memory budget on the bytes.
#[tokio::test]
async fn an_idle_instance_is_cheap() {
    const N: usize = 500;
    let dir = tempfile::tempdir().unwrap();
    let rt = runtime(dir.path());
    let ssh = rt
        .load(&PluginSource::file("ssh", guest("ssh")), Limits::default())
        .await
        .unwrap();
    let info = SshSessionInfo {
        session: "s".into(),
        ..Default::default()
    };
    let mut all = Vec::with_capacity(N);
    // The first ones pay for what all share.
    for _ in 0..20 {
        all.push(ssh.ssh("{}", &info).await.unwrap());
    }
    let (kb, mappings) = (rss_kb(), maps());
    let began = std::time::Instant::now();
    for _ in 0..N {
        let mut g = ssh.ssh("{}", &info).await.unwrap();
        assert_eq!(g.decide(0, SshEvent::Shell).await.unwrap(), Verdict::Allow);
        all.push(g);
    }
    let each_us = began.elapsed().as_micros() / N as u128;
    let each_kb = (rss_kb() - kb) / N as u64;
    let each_maps = (maps() - mappings) as f64 / N as f64;
    println!(
        "idle instance: {each_kb} KiB, {each_maps:.1} mappings, {each_us} µs to make and ask once"
    );
    assert!(each_kb <= 200, "{each_kb} KiB");
    assert!(each_maps <= 5.0, "{each_maps} mappings");
    drop(all);
    let kept = (rss_kb().saturating_sub(kb)) / N as u64;
    println!("kept by a slot that is free again: {kept} KiB");
    assert!(kept <= 40, "{kept} KiB");
}

/// What an agent pays before its first session: the pool is address space, not memory.
#[tokio::test]
async fn a_runtime_with_cached_plugins_is_cheap() {
    let dir = tempfile::tempdir().unwrap();
    let load = async || {
        let rt = Runtime::new(RuntimeOptions::new(dir.path().join("cwasm"))).unwrap();
        let ssh = rt
            .load(&PluginSource::file("ssh", guest("ssh")), Limits::default())
            .await
            .unwrap();
        let tcp = rt
            .load(&PluginSource::file("tcp", guest("tcp")), Limits::default())
            .await
            .unwrap();
        (rt, ssh, tcp)
    };
    drop(load().await);
    let (kb, mappings, began) = (rss_kb(), maps(), std::time::Instant::now());
    let all = load().await;
    println!(
        "runtime with two cached plugins: {} KiB, {} mappings, {} ms",
        rss_kb().saturating_sub(kb),
        maps() - mappings,
        began.elapsed().as_millis()
    );
    assert!(rss_kb().saturating_sub(kb) < 8192);
    drop(all);
}

/// The counters that operators see, by their documented names.
#[tokio::test]
async fn metrics() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new()
        .install_recorder()
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let rt = runtime(dir.path());
    let p = rt
        .load(
            &PluginSource::file("misbehave", guest("misbehave")),
            Limits::default(),
        )
        .await
        .unwrap();
    let mut good = p.codec(r#"{"mode":"pass"}"#, "s").await.unwrap();
    good.on_input(Side::Client, b"x").await.unwrap();
    let mut bad = p.codec(r#"{"mode":"trap"}"#, "t").await.unwrap();
    bad.on_input(Side::Client, b"x").await.unwrap_err();
    let text = recorder.render();
    let value = |name: &str, more: &str| -> f64 {
        let line = text.lines().find(|l| {
            l.starts_with(name)
                && l.contains("version=\"0.1.0\"")
                && l.contains(more)
                && l.contains("plugin=\"misbehave\"")
        });
        let line = line.unwrap_or_else(|| panic!("{name} {more} is not in\n{text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert_eq!(value("postern_plugin_calls_total", ""), 4.0);
    assert_eq!(value("postern_plugin_errors_total", ""), 1.0);
    assert_eq!(
        value("postern_plugin_traps_total", "cause=\"unreachable\""),
        1.0
    );
    assert_eq!(value("postern_plugin_instances_live", ""), 1.0);
    assert!(value("postern_plugin_memory_peak_bytes", "") >= 65536.0);
    assert!(value("postern_plugin_cpu_seconds_total", "") > 0.0);
}

/// A guest that floods the log through both ways is cut to the limit.
#[tokio::test]
async fn a_flood_in_the_log() {
    use std::sync::{Arc, Mutex};
    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Buffer {
        fn write(&mut self, b: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(b);
            Ok(b.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let buffer = Buffer::default();
    let writer = buffer.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let dir = tempfile::tempdir().unwrap();
    let rt = runtime(dir.path());
    let limits = Limits {
        cpu_ms_per_call: 5000,
        ..Limits::default()
    };
    let p = rt
        .load(&PluginSource::file("misbehave", guest("misbehave")), limits)
        .await
        .unwrap();
    let mut c = p.codec(r#"{"mode":"flood"}"#, "s-7").await.unwrap();
    {
        let _guard = tracing::subscriber::set_default(subscriber);
        c.on_input(Side::Client, b"x").await.unwrap();
    }
    let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
    let lines = text.lines().count();
    assert!((50..1000).contains(&lines), "{lines} lines");
    assert!(
        text.contains("flood 0") && text.contains("flood on stderr") && text.contains("s-7"),
        "{text}"
    );
}
