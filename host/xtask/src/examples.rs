//! The example plugins of `docs/examples`, built as their authors would: with the SDK or the WIT, and nothing else of this
//! repository. They are put where the end-to-end tests look, `plugins/examples` beside the programs.

use crate::product::{self, Profile};
use crate::{paths, setup, sh};
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The Cargo manifest of the example in Rust: no member of any workspace.
pub fn rust_manifest() -> PathBuf {
    examples().join("plugin-rust/Cargo.toml")
}

fn examples() -> PathBuf {
    paths::root().join("docs/examples")
}

/// Builds what has changed.
pub fn build(profile: Profile) -> Result<()> {
    setup::wasm_target()?;
    let into = profile.dir().join("plugins/examples");
    let mut build = sh::cargo(&[
        "build",
        "--release",
        "--target",
        "wasm32-wasip2",
        "--manifest-path",
    ]);
    build.arg(rust_manifest());
    // Beside the plugins, which have the same dependencies.
    sh::run(build.env("CARGO_TARGET_DIR", product::plugin_target()))?;
    let built = product::plugin_target().join("wasm32-wasip2/release/finger.wasm");
    product::put(&built, &into.join("finger.wasm"))?;
    match python()? {
        Some(built) => product::put(&built, &into.join("finger-python.wasm")),
        None => Ok(()),
    }
}

/// The example in Python; `None` where it can't be built here.
fn python() -> Result<Option<PathBuf>> {
    let Some(componentize) = setup::componentize_py() else {
        return Ok(None);
    };
    let (source, wit) = (examples().join("plugin-python"), paths::root().join("wit"));
    let built = product::plugin_target().join("finger-python.wasm");
    let sources = newest(&source).max(newest(&wit)).max(newest(&componentize));
    let made = std::fs::metadata(&built).and_then(|m| m.modified()).ok();
    if made.is_some() && made > sources {
        return Ok(Some(built));
    }
    std::fs::create_dir_all(product::plugin_target())?;
    let fresh = built.with_extension("new");
    let mut make = sh::cmd(componentize, &["--quiet", "-w", "codec", "-d"]);
    make.arg(wit)
        .args(["componentize", "app", "-p"])
        .arg(source);
    sh::run(make.arg("-o").arg(&fresh))?;
    std::fs::rename(&fresh, &built)?;
    Ok(Some(built))
}

/// Modification time of the youngest file there.
fn newest(path: &Path) -> Option<SystemTime> {
    if path.is_file() {
        return path.metadata().ok()?.modified().ok();
    }
    let entries = std::fs::read_dir(path).ok()?.flatten();
    entries
        .filter(|e| e.file_name() != "__pycache__")
        .filter_map(|e| newest(&e.path()))
        .max()
}
