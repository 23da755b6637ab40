//! `cargo xtask api`: the generator is a workspace of its own, so that building Postern never builds it.

use crate::{paths, sh};
use anyhow::Result;

pub fn run() -> Result<()> {
    let mut generate = sh::cargo(&[
        "run",
        "--quiet",
        "--manifest-path",
        "host/api/codegen/Cargo.toml",
    ]);
    sh::run(generate.env("CARGO_TARGET_DIR", paths::target().join("codegen")))
}
