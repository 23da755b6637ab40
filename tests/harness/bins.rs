//! Where the programs under test are: beside the test itself, or in `POSTERN_BIN_DIR` (the benchmarks' release build).

use anyhow::{Context, Result, ensure};
use std::path::PathBuf;

/// The directory that holds `posternd`, `postern` and `plugins/`.
pub fn bin_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("POSTERN_BIN_DIR") {
        return Ok(dir.into());
    }
    let me = std::env::current_exe().context("where am I?")?;
    // target/debug/xtask, or target/debug/deps/suite-0123, or target/debug/examples/…
    let dir = me.parent().context("no directory")?;
    let inner = dir.ends_with("deps") || dir.ends_with("examples");
    Ok(if inner {
        dir.parent().context("no directory")?
    } else {
        dir
    }
    .to_path_buf())
}

/// A program of ours.
pub fn bin(name: &str) -> Result<PathBuf> {
    let path = bin_dir()?.join(name);
    ensure!(
        path.is_file(),
        "{} is not built; run: cargo xtask test (or: cargo build --bins)",
        path.display()
    );
    Ok(path)
}

/// A built-in plugin.
pub fn plugin(name: &str) -> Result<PathBuf> {
    wasm(format!("plugins/{name}.wasm"))
}

/// One of the plugins that misbehave, from `plugins/testing`.
pub fn testing_plugin(name: &str) -> Result<PathBuf> {
    wasm(format!("plugins/testing/{name}.wasm"))
}

/// One of the plugins of `docs/examples`; built by `cargo xtask test` alone. `None` for the one in Python where that could
/// not be built.
pub fn example_plugin(name: &str) -> Result<Option<PathBuf>> {
    let path = bin_dir()?.join(format!("plugins/examples/{name}.wasm"));
    ensure!(
        path.is_file() || name.ends_with("-python"),
        "{} is not built; run: cargo xtask test",
        path.display()
    );
    Ok(path.is_file().then_some(path))
}

fn wasm(relative: String) -> Result<PathBuf> {
    let path = bin_dir()?.join(relative);
    ensure!(
        path.is_file(),
        "{} is not built; run: cargo xtask plugins",
        path.display()
    );
    Ok(path)
}
