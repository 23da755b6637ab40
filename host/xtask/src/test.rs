//! `cargo xtask test`: every test of the workspace, end to end ones included, and the plugins' own.

use crate::product::{self, Profile};
use crate::{examples, paths, setup, sh};
use anyhow::Result;

#[derive(clap::Args)]
pub struct Args {
    /// What to run, as arguments to cargo-nextest (or to cargo test where there is none)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub fn run(args: Args) -> Result<()> {
    sh::phase("test: what it needs");
    setup::debian(setup::Package::TEST)?;
    let ansible = setup::ansible()?;
    let oidc = setup::oidc_provider()?;
    let (python, node) = (setup::python_drivers()?, setup::node_postgres()?);
    let suite = setup::regression_suite();
    let nextest = setup::nextest()?;

    sh::phase("test: plugins and programs");
    product::plugins(Profile::Dev)?;
    examples::build(Profile::Dev)?;
    product::binaries(Profile::Dev)?;

    sh::phase("test: workspace");
    let mut test = match &nextest {
        Some(program) => sh::cmd(program, &["nextest", "run", "--no-fail-fast"]),
        None => sh::cargo(&["test", "--no-fail-fast"]),
    };
    if !args
        .args
        .iter()
        .any(|a| a == "-p" || a.starts_with("--package") || a == "--workspace")
    {
        test.arg("--workspace");
    }
    test.args(&args.args)
        .env("POSTERN_TEST_ANSIBLE", ansible)
        .env("POSTERN_TEST_OIDC_PROVIDER", oidc)
        .env("POSTERN_TEST_DRIVERS_PYTHON", python)
        .env("POSTERN_TEST_NODE_POSTGRES", node);
    if let Some(suite) = suite {
        test.env("POSTERN_TEST_PG_REGRESS", suite);
    }
    sh::run(&mut test)?;
    if !args.args.is_empty() {
        return Ok(());
    }

    sh::phase("test: plugins, natively");
    let mut test = sh::cargo(&["test", "--workspace", "--quiet", "--manifest-path"]);
    test.arg(paths::root().join("plugins/Cargo.toml"));
    sh::run(test.env("CARGO_TARGET_DIR", product::plugin_target()))?;
    let mut test = sh::cargo(&["test", "--quiet", "--manifest-path"]);
    test.arg(examples::rust_manifest());
    sh::run(test.env("CARGO_TARGET_DIR", product::plugin_target()))
}
