//! What the other commands need on a fresh Debian 12 machine with Rust: installed where that is possible without a
//! question, else named together with the command that installs it. Everything checks first, so a second run is instant.

mod ansible;
mod componentize;
mod debian;
mod npm;
mod postgres;
mod pypi;
mod tools;
mod wasm;

pub use ansible::ansible;
pub use componentize::componentize_py;
pub use debian::{Package, debian};
pub use npm::{node_postgres, oidc_provider};
pub use postgres::{python_drivers, regression_suite};
pub use tools::{cargo_deny, cargo_fuzz, nextest};
pub use wasm::wasm_target;

use anyhow::Result;

/// `cargo xtask setup`: all of it.
pub fn everything() -> Result<()> {
    crate::sh::phase("setup");
    debian(Package::ALL)?;
    wasm_target()?;
    for (name, path) in [
        ("cargo-deny", cargo_deny()?),
        ("ansible", ansible()?),
        ("oidc-provider", oidc_provider()?),
        ("database drivers for Python", python_drivers()?),
        ("node-postgres", node_postgres()?),
    ] {
        eprintln!("  {name}: {}", path.display());
    }
    if let Some(path) = regression_suite() {
        eprintln!("  PostgreSQL's regression suite: {}", path.display());
    }
    if let Some(path) = componentize_py() {
        eprintln!("  componentize-py: {}", path.display());
    }
    match nextest()? {
        Some(path) => eprintln!("  cargo-nextest: {}", path.display()),
        None => eprintln!("  cargo-nextest: could not be had; `cargo test` is used instead"),
    }
    Ok(())
}
