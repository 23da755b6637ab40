//! `cargo xtask bench SUITE`: measured against the bars of the design, interleaved with the baselines, medians of all rounds.
//! `docs/benchmarks.md` says what each row means and holds the figures of the last published run.

mod db;
mod reload;
mod rows;
mod ssh;

use crate::product::{self, Profile};
use crate::{paths, setup, sh};
use anyhow::{Context, Result, bail};
use rows::{Bar, Report};

#[derive(clap::Args)]
pub struct Args {
    /// Which suite: ssh, reload, db
    suite: String,
    /// Rounds; every figure is their median
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Megabytes (10^6 bytes) of each bulk transfer [default: 600 of ssh, 1000 of db]
    #[arg(long)]
    mb: Option<u64>,
    /// Only rows whose name contains this (several: separated by commas)
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Use the release binaries as they were built last
    #[arg(long)]
    no_build: bool,
    /// Fail when a row misses its must
    #[arg(long)]
    strict: bool,
}

/// What is measured together, and written to `target/bench/NAME.json`.
struct Suite {
    name: &'static str,
    bars: &'static [Bar],
    measure: fn(&Args, &mut Report) -> Result<()>,
}

const SUITES: &[Suite] = &[
    Suite {
        name: "ssh",
        bars: ssh::BARS,
        measure: ssh::measure,
    },
    Suite {
        name: "reload",
        bars: reload::BARS,
        measure: reload::measure,
    },
    Suite {
        name: "db",
        bars: db::BARS,
        measure: db::measure,
    },
];

pub fn run(args: Args) -> Result<()> {
    let Some(suite) = SUITES.iter().find(|s| s.name == args.suite) else {
        let names: Vec<&str> = SUITES.iter().map(|s| s.name).collect();
        bail!("no suite {:?}; there are: {}", args.suite, names.join(", "));
    };
    // The harness finds the programs by this variable; a process can't change its own safely, so it starts itself again.
    let bins = Profile::Release.dir();
    if std::env::var_os("POSTERN_BIN_DIR").is_none() {
        if !args.no_build {
            sh::phase("bench: release build");
            setup::debian(setup::Package::BENCH)?;
            product::plugins(Profile::Release)?;
            product::binaries(Profile::Release)?;
        }
        let mut again = sh::cmd(std::env::current_exe()?, &[]);
        again
            .args(std::env::args_os().skip(1))
            .env("POSTERN_BIN_DIR", &bins);
        let status = again.status().context("cannot start xtask again")?;
        if !status.success() {
            bail!("the benchmark failed: {status}");
        }
        return Ok(());
    }
    let mut report = Report::new(suite.name, suite.bars, &args.only);
    (suite.measure)(&args, &mut report)?;
    let out = paths::target().join("bench");
    std::fs::create_dir_all(&out)?;
    let file = out.join(format!("{}.json", suite.name));
    std::fs::write(&file, serde_json::to_string_pretty(&report.json())? + "\n")?;
    println!("\n{}\nwritten: {}", report.table(), file.display());
    let missed = report.missed();
    if args.strict && !missed.is_empty() {
        bail!("below the bar: {}", missed.join(", "));
    }
    Ok(())
}
