//! The compilation target of the plugins.

use crate::sh;
use anyhow::{Context, Result};

pub const TARGET: &str = "wasm32-wasip2";

/// Adds the wasm target to the toolchain in use, if its standard library is missing.
pub fn wasm_target() -> Result<()> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let libs = sh::output(&mut sh::cmd(
        rustc,
        &["--print", "target-libdir", "--target", TARGET],
    ))?;
    if std::path::Path::new(libs.trim()).is_dir() {
        return Ok(());
    }
    sh::run(&mut sh::cmd("rustup", &["target", "add", TARGET])).with_context(|| {
        format!("the plugins are built for {TARGET}, which this Rust toolchain lacks; run: rustup target add {TARGET}")
    })
}
