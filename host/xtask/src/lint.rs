//! `cargo xtask lint`: formatting, clippy, licences and bans, and the rules of the layout that no tool knows.

use crate::{examples, paths, product, setup, sh};
use anyhow::{Result, bail};

#[derive(clap::Args)]
pub struct Args {
    /// Format the code instead of checking it
    #[arg(long)]
    fix: bool,
}

pub fn run(args: Args) -> Result<()> {
    let plugins = paths::root().join("plugins/Cargo.toml");
    sh::phase("lint: formatting");
    let example = examples::rust_manifest();
    for manifest in [
        paths::root().join("Cargo.toml"),
        plugins.clone(),
        example.clone(),
    ] {
        let mut fmt = sh::cargo(&["fmt", "--all", "--manifest-path"]);
        fmt.arg(manifest);
        if !args.fix {
            fmt.arg("--check");
        }
        sh::run(&mut fmt)?;
    }

    sh::phase("lint: licences, bans, sources");
    let deny = setup::cargo_deny()?;
    sh::run(&mut sh::cmd(
        &deny,
        &[
            "check",
            "--hide-inclusion-graph",
            "licenses",
            "bans",
            "sources",
        ],
    ))?;
    let mut check_plugins = sh::cmd(&deny, &["--manifest-path"]);
    check_plugins
        .arg(&plugins)
        .arg("--config")
        .arg(paths::root().join("deny.toml"));
    sh::run(check_plugins.args(["check", "--hide-inclusion-graph", "licenses", "sources"]))?;
    layout()?;

    sh::phase("lint: clippy");
    sh::run(&mut sh::cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    setup::wasm_target()?;
    for manifest in [plugins, example] {
        let mut clippy = sh::cargo(&[
            "clippy",
            "--workspace",
            "--release",
            "--target",
            "wasm32-wasip2",
            "--manifest-path",
        ]);
        clippy.arg(&manifest).args(["--", "-D", "warnings"]);
        sh::run(clippy.env("CARGO_TARGET_DIR", product::plugin_target()))?;
    }
    Ok(())
}

/// "`postern` never links wasmtime", "only `tunnel` and `sshd` know russh" (deny.toml has the latter).
fn layout() -> Result<()> {
    for heavy in ["wasmtime", "russh", "rusqlite"] {
        let tree = sh::output(&mut sh::cargo(&[
            "tree",
            "--offline",
            "-p",
            "postern",
            "-e",
            "normal",
            "--prefix",
            "none",
            "-f",
            "{p}",
        ]))
        .or_else(|_| {
            sh::output(&mut sh::cargo(&[
                "tree", "-p", "postern", "-e", "normal", "--prefix", "none", "-f", "{p}",
            ]))
        })?;
        if tree.lines().any(|l| l.split(' ').next() == Some(heavy)) {
            bail!(
                "the command `postern` links {heavy}, which only the daemon may; see: cargo tree -p postern -i {heavy}"
            );
        }
    }
    Ok(())
}
