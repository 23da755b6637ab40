//! What is loaded, what is refused and in which words; the cache and whoever tampers with it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use postern_plugin::*;
use postern_plugin_testing::{guest, runtime};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

async fn refused(rt: &Runtime, source: &PluginSource) -> PluginError {
    rt.load(source, Limits::default())
        .await
        .expect_err("not to load")
}

#[tokio::test]
async fn built_in_plugins_describe_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let rt = runtime(dir.path());
    let tcp = rt
        .load(&PluginSource::file("tcp", guest("tcp")), Limits::default())
        .await
        .unwrap();
    let d = tcp.description();
    assert_eq!((d.world, d.kind.as_str()), (World::Codec, "tcp"));
    assert_eq!(d.wants.endpoints, [Endpoint::Main]);
    let ssh = rt
        .load(&PluginSource::file("ssh", guest("ssh")), Limits::default())
        .await
        .unwrap();
    let d = ssh.description();
    assert_eq!((d.world, d.kind.as_str()), (World::Ssh, "ssh"));
    assert_eq!(d.principals[0].name, "logins");
    assert!(d.settings_schema.contains("forward"));
}

#[tokio::test]
async fn ssh_decides_by_its_settings() {
    let dir = tempfile::tempdir().unwrap();
    let rt = runtime(dir.path());
    let ssh = rt
        .load(&PluginSource::file("ssh", guest("ssh")), Limits::default())
        .await
        .unwrap();
    let settings = r#"{"shell":false,"exec":{"allow":["uptime"]},"forward":{"allow":["db:5432"]}}"#;
    ssh.validate(settings).await.unwrap();
    let info = SshSessionInfo {
        session: "s".into(),
        resource: "web-1".into(),
        ..Default::default()
    };
    let mut g = ssh.ssh(settings, &info).await.unwrap();
    let exec = |c: &str| SshEvent::Exec { command: c.into() };
    assert_eq!(g.decide(0, exec("uptime")).await.unwrap(), Verdict::Allow);
    assert!(matches!(
        g.decide(0, exec("uptime; sh")).await.unwrap(),
        Verdict::Deny(_)
    ));
    let Verdict::Deny(why) = g.decide(0, SshEvent::Shell).await.unwrap() else {
        panic!()
    };
    assert!(why.contains("web-1") && why.contains("`shell`"), "{why}");
    let forward = |host: &str, port| SshEvent::Forward {
        host: host.into(),
        port,
    };
    assert_eq!(
        g.decide(0, forward("DB", 5432)).await.unwrap(),
        Verdict::Allow
    );
    assert!(matches!(
        g.decide(0, forward("db", 22)).await.unwrap(),
        Verdict::Deny(_)
    ));
    let pty = SshEvent::Pty {
        term: "xterm".into(),
        cols: 80,
        rows: 24,
    };
    assert_eq!(g.decide(0, pty).await.unwrap(), Verdict::Allow);
    let mut g = ssh.ssh(r#"{"env":["LC_*"]}"#, &info).await.unwrap();
    let env = SshEvent::Env {
        name: "LANG".into(),
        value: "C".into(),
    };
    assert_eq!(g.decide(0, env).await.unwrap(), Verdict::Ignore);
}

#[tokio::test]
async fn bad_settings_name_path_and_problem() {
    let dir = tempfile::tempdir().unwrap();
    let rt = runtime(dir.path());
    let ssh = rt
        .load(&PluginSource::file("ssh", guest("ssh")), Limits::default())
        .await
        .unwrap();
    let e = ssh
        .validate(r#"{"forward":{"allow":["db"],"deny":["x:y"]}}"#)
        .await
        .unwrap_err();
    let Cause::Settings(problems) = e.cause() else {
        panic!("{e}")
    };
    assert_eq!(problems[0].path, "forward.allow[0]");
    assert_eq!(problems[1].path, "forward.deny[0]");
    assert!(e.to_string().contains("host:port"), "{e}");
    let e = ssh.validate(r#"{"sheel":true}"#).await.unwrap_err();
    assert!(
        e.to_string().contains("sheel: unknown field `sheel`"),
        "{e}"
    );
    for bad in ["nonsense", "[]", "3"] {
        assert!(
            matches!(
                ssh.validate(bad).await.unwrap_err().cause(),
                Cause::Settings(_)
            ),
            "{bad}"
        );
    }
}

#[tokio::test]
async fn what_is_no_plugin_is_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let rt = runtime(dir.path());
    let file = |name: &str, bytes: &[u8]| {
        let p = dir.path().join(name);
        fs::write(&p, bytes).unwrap();
        fs::set_permissions(&p, Permissions::from_mode(0o644)).unwrap();
        PluginSource::file("x", p)
    };
    let component = fs::read(guest("tcp")).unwrap();
    let cut = &component[..component.len() / 2];
    let cases: Vec<(PluginSource, &str)> = vec![
        (
            file("garbage.wasm", b"#!/bin/sh\n"),
            "does not begin like one",
        ),
        (file("empty.wasm", b""), "it is empty"),
        (
            file("module.wasm", b"\0asm\x01\0\0\0"),
            "core module; build it with --target wasm32-wasip2",
        ),
        (file("text.wasm", b"(component)"), "install the binary"),
        (file("elf.wasm", b"\x7fELF\x02\x01\x01\0\0"), "machine code"),
        (file("cut.wasm", cut), "is not a WebAssembly component"),
        (PluginSource::file("x", guest("empty")), "no Postern plugin"),
        (PluginSource::file("x", guest("hollow")), "serves nothing"),
        (
            PluginSource::file("x", dir.path().join("none.wasm")),
            "there is no such file",
        ),
        (PluginSource::file("x", dir.path()), "it is not a file"),
    ];
    for (source, words) in cases {
        let e = refused(&rt, &source).await;
        let said = e.to_string();
        let Origin::File(path) = &source.origin else {
            panic!()
        };
        assert!(said.contains(words), "{said} lacks {words}");
        assert!(
            said.contains(&path.display().to_string()),
            "{said} names no file"
        );
    }
}

#[tokio::test]
async fn a_component_that_imports_more_than_it_gets() {
    // An import whose name nobody offers, put in place of one that is: same length, so that the file stays valid.
    let dir = tempfile::tempdir().unwrap();
    let rt = runtime(dir.path());
    let mut bytes = fs::read(guest("tcp")).unwrap();
    let (from, to) = (b"wasi:cli/environment@", b"wasi:cli/environmenu@");
    let mut found = 0;
    for i in 0..bytes.len() - from.len() {
        if bytes[i..].starts_with(from) {
            bytes[i..i + to.len()].copy_from_slice(to);
            found += 1;
        }
    }
    assert!(found > 0);
    let e = refused(&rt, &PluginSource::bytes("x", bytes)).await;
    assert!(
        e.to_string()
            .contains("needs something that no plugin gets"),
        "{e}"
    );
    assert!(e.to_string().contains("environmenu"), "{e}");
}

#[tokio::test]
async fn loose_permissions() {
    let dir = tempfile::tempdir().unwrap();
    let rt = runtime(dir.path());
    let sub = dir.path().join("plugins");
    fs::create_dir(&sub).unwrap();
    let path = sub.join("tcp.wasm");
    fs::copy(guest("tcp"), &path).unwrap();
    let source = PluginSource::file("tcp", &path);
    for (what, mode, words) in [(&path, 0o666, "chmod o-w"), (&sub, 0o777, "chmod o-w")] {
        fs::set_permissions(what, Permissions::from_mode(mode)).unwrap();
        let e = refused(&rt, &source).await;
        assert!(matches!(e.cause(), Cause::Permissions { .. }), "{e}");
        assert!(
            e.to_string().contains(words) && e.to_string().contains(&path.display().to_string()),
            "{e}"
        );
        fs::set_permissions(
            what,
            Permissions::from_mode(if what == &path { 0o644 } else { 0o755 }),
        )
        .unwrap();
    }
    rt.load(&source, Limits::default()).await.unwrap();
}

#[tokio::test]
async fn a_pin_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let rt = runtime(dir.path());
    let source = PluginSource::file("tcp", guest("tcp"));
    let right = rt
        .load(&source, Limits::default())
        .await
        .unwrap()
        .digest()
        .to_string();
    for pin in [
        right.clone(),
        format!("sha256:{right}"),
        right.to_uppercase(),
    ] {
        rt.load(&source.clone().pinned(Some(pin)), Limits::default())
            .await
            .unwrap();
    }
    let e = refused(&rt, &source.pinned(Some("00".repeat(32)))).await;
    assert!(matches!(e.cause(), Cause::PinMismatch { .. }), "{e}");
    assert!(e.to_string().contains(&right), "{e}");
}

#[tokio::test]
async fn more_memory_than_allowed_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let rt = runtime(dir.path());
    let limits = Limits {
        memory: Some(64 << 10),
        ..Limits::default()
    };
    let e = rt
        .load(&PluginSource::file("tcp", guest("tcp")), limits)
        .await
        .err()
        .unwrap();
    assert!(e.to_string().contains("memory_mb"), "{e}");
}

/// A component that is too big for a slot runs on the second engine.
#[tokio::test]
async fn large_limits_run_on_demand() {
    let dir = tempfile::tempdir().unwrap();
    let rt = runtime(dir.path());
    let limits = Limits {
        memory: Some(256 << 20),
        ..Limits::default()
    };
    let p = rt
        .load(&PluginSource::file("misbehave", guest("misbehave")), limits)
        .await
        .unwrap();
    let mut c = p.codec(r#"{"mode":"memory"}"#, "s").await.unwrap();
    let e = c.on_input(Side::Client, b"x").await.unwrap_err();
    // It may use more than a slot has, and no more than its limit (or no longer than its time).
    assert!(
        matches!(e.trap(), Some(TrapKind::Memory | TrapKind::Cpu)),
        "{e}"
    );
    if e.trap() == Some(TrapKind::Memory) {
        assert!(e.to_string().contains("256 MiB"), "{e}");
    }
}

fn cwasm(dir: &Path) -> PathBuf {
    let mut all: Vec<_> = fs::read_dir(dir.join("cwasm"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|x| x == "cwasm"))
        .collect();
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

fn inode(p: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(p).unwrap().ino()
}

/// Loads it and says whether it came from the cache.
async fn cached(dir: &Path) -> bool {
    let before = inode(&cwasm(dir));
    let rt = runtime(dir);
    let p = rt
        .load(&PluginSource::file("tcp", guest("tcp")), Limits::default())
        .await
        .unwrap();
    p.codec("{}", "s").await.unwrap().on_open().await.unwrap();
    let path = cwasm(dir);
    let meta = fs::metadata(&path).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    inode(&path) == before
}

#[tokio::test]
async fn the_cache_loads_only_what_it_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    runtime(d)
        .load(&PluginSource::file("tcp", guest("tcp")), Limits::default())
        .await
        .unwrap();
    assert!(cached(d).await, "an untouched file is used");

    // Others could write it.
    fs::set_permissions(cwasm(d), Permissions::from_mode(0o666)).unwrap();
    assert!(!cached(d).await);
    assert!(cached(d).await, "and is good again once rewritten");

    // One bit of the machine code.
    let path = cwasm(d);
    let mut code = fs::read(&path).unwrap();
    let at = code.len() / 2;
    code[at] ^= 1;
    fs::write(&path, &code).unwrap();
    assert!(!cached(d).await);

    // Cut off, as by a full disk.
    fs::write(cwasm(d), &code[..1000]).unwrap();
    assert!(!cached(d).await);

    // Without a digest, or with one of something else.
    let sum = cwasm(d).with_extension("sum");
    fs::remove_file(&sum).unwrap();
    assert!(!cached(d).await);
    fs::write(&sum, "0 0\n").unwrap();
    assert!(!cached(d).await);

    // A link to elsewhere.
    let path = cwasm(d);
    let elsewhere = d.join("elsewhere");
    fs::rename(&path, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
    assert!(!cached(d).await);

    // Somebody else's.
    if nix::unistd::geteuid().is_root() {
        nix::unistd::chown(&cwasm(d), Some(nix::unistd::Uid::from_raw(65534)), None).unwrap();
        assert!(!cached(d).await);
    }
    assert!(cached(d).await);
}

#[tokio::test]
async fn a_cache_directory_that_is_not_ours_alone() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("c");
    fs::create_dir(&cache).unwrap();
    fs::set_permissions(&cache, Permissions::from_mode(0o755)).unwrap();
    let e = Runtime::new(RuntimeOptions::new(&cache)).err().unwrap();
    assert!(e.to_string().contains("chmod 700"), "{e}");
}

/// What older versions and cut writes left is removed, what is in use stays.
#[tokio::test]
async fn the_cache_is_tidied() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    runtime(d)
        .load(&PluginSource::file("tcp", guest("tcp")), Limits::default())
        .await
        .unwrap();
    for old in [
        "ab-0123456789abcdef.cwasm",
        "ab-0123456789abcdef.sum",
        ".x.tmp",
    ] {
        fs::write(d.join("cwasm").join(old), "x").unwrap();
    }
    fs::write(d.join("cwasm/README"), "not ours").unwrap();
    drop(runtime(d));
    assert!(cached(d).await);
    assert_eq!(fs::read_dir(d.join("cwasm")).unwrap().count(), 3);
}
