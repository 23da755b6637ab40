//! `cargo xtask fuzz`: the fuzz targets of `host/fuzz`, a minute each. Not in CI.

use crate::{paths, setup, sh};
use anyhow::{Result, bail};

#[derive(clap::Args)]
pub struct Args {
    /// Only these targets
    targets: Vec<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

pub fn run(args: Args) -> Result<()> {
    if !sh::works(&mut sh::cmd("cargo", &["+nightly", "--version"])) {
        println!("skipped: fuzzing needs a nightly toolchain (rustup toolchain install nightly)");
        return Ok(());
    }
    let fuzz = match setup::cargo_fuzz() {
        Ok(path) => path,
        Err(e) => {
            println!("skipped: no cargo-fuzz: {e:#}");
            return Ok(());
        }
    };
    let listed = std::fs::read_dir(paths::root().join("host/fuzz/fuzz_targets"))?;
    let mut targets: Vec<String> = listed
        .flatten()
        .filter_map(|e| Some(e.path().file_stem()?.to_string_lossy().into_owned()))
        .collect();
    targets.sort();
    if let Some(unknown) = args.targets.iter().find(|t| !targets.contains(t)) {
        bail!(
            "no fuzz target {unknown:?}; there are: {}",
            targets.join(", ")
        );
    }
    if !args.targets.is_empty() {
        targets = args.targets;
    }
    for target in &targets {
        sh::phase(&format!("fuzz {target}, {} s", args.seconds));
        let corpus = paths::target().join("fuzz-corpus").join(target);
        std::fs::create_dir_all(&corpus)?;
        let mut run = sh::cmd(&fuzz, &["run", "--fuzz-dir", "host/fuzz", "--target-dir"]);
        run.arg(paths::target().join("fuzz"))
            .arg(target)
            .arg(&corpus);
        // Without artifacts of ours in the checkout: a crash names its file under target/.
        run.arg("--")
            .arg(format!("-max_total_time={}", args.seconds))
            .args(["-rss_limit_mb=1024", "-timeout=5"]);
        run.arg(format!(
            "-artifact_prefix={}/",
            paths::target().join("fuzz").display()
        ));
        sh::run(
            run.env("RUSTUP_TOOLCHAIN", "nightly")
                .env_remove("CARGO")
                .env_remove("RUSTC"),
        )?;
    }
    println!(
        "{} targets, {} s each: nothing found",
        targets.len(),
        args.seconds
    );
    Ok(())
}
