//! For tests of `postern-plugin` and of the crates above it: where the guests of `plugins/` are. Builds them when they are older
//! than their sources. Panics with what to do, because there is no test without guests.
//!
//! A crate of its own and no feature: with a feature that only tests have, everything above would be built twice.
#![allow(clippy::expect_used)]

use postern_plugin::{Runtime, RuntimeOptions};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

/// Path of the component of a crate in `plugins/`, e.g. `tcp`, `misbehave_ssh`.
///
/// # Panics
/// Where it is not there and can't be built.
pub fn guest(name: &str) -> PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let path = DIR.get_or_init(built).join(format!("{name}.wasm"));
    assert!(
        path.is_file(),
        "{} is missing: run `cargo xtask plugins`, or unset POSTERN_PLUGINS",
        path.display()
    );
    path
}

/// A runtime with a cache of its own in `dir`, small enough for many at once.
///
/// # Panics
/// Where it can't be made.
pub fn runtime(dir: &Path) -> Runtime {
    let mut options = RuntimeOptions::new(dir.join("cwasm"));
    options.max_instances = 64;
    Runtime::new(options).expect("a plugin runtime")
}

fn built() -> PathBuf {
    if let Some(dir) = std::env::var_os("POSTERN_PLUGINS") {
        return dir.into();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root.join("target"), PathBuf::from)
        .join("plugins");
    let out = target.join("wasm32-wasip2/release");
    let sources = newest(&root.join("plugins")).max(newest(&root.join("wit")));
    let stamp = target.join("built");
    if std::fs::metadata(&stamp)
        .and_then(|m| m.modified())
        .is_ok_and(|t| Some(t) > sources)
    {
        return out;
    }
    let began = SystemTime::now();
    let status =
        std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["build", "--quiet", "--release", "--target", "wasm32-wasip2"])
            .current_dir(root.join("plugins"))
            .env("CARGO_TARGET_DIR", &target)
            .status();
    assert!(
        status.is_ok_and(|s| s.success()),
        "the plugins do not build (see above): run `cargo xtask plugins`; it adds the target wasm32-wasip2 where that is missing"
    );
    let file = std::fs::File::create(&stamp).expect("target/plugins is ours");
    file.set_modified(began).expect("our own file");
    out
}

/// Modification time of the youngest source below `dir`.
fn newest(dir: &Path) -> Option<SystemTime> {
    let entries = std::fs::read_dir(dir).ok()?.flatten();
    entries
        .filter(|e| e.file_name() != "target")
        .filter_map(|e| {
            let path = e.path();
            if path.is_dir() {
                newest(&path)
            } else {
                e.metadata().ok()?.modified().ok()
            }
        })
        .max()
}
