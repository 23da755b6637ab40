//! `cargo xtask bench SUITE`: measured against the bars of the design, interleaved with the baselines, medians of all rounds.
//! `docs/benchmarks.md` says what each row means and holds the figures of the last published run.

mod bulk;
mod latency;
mod memory;
mod rows;
mod world;

use crate::product::{self, Profile};
use crate::{paths, setup, sh};
use anyhow::{Context, Result, bail};
use rows::Report;

#[derive(clap::Args)]
pub struct Args {
    /// Which suite: ssh
    suite: String,
    /// Rounds; every figure is their median
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Megabytes (10^6 bytes) of each bulk transfer
    #[arg(long, default_value_t = 600)]
    mb: u64,
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

pub fn run(args: Args) -> Result<()> {
    if args.suite != "ssh" {
        bail!("no suite {:?}; there is: ssh", args.suite);
    }
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
    let report = measure(&args)?;
    let out = paths::target().join("bench");
    std::fs::create_dir_all(&out)?;
    let file = out.join("ssh.json");
    std::fs::write(
        &file,
        serde_json::to_string_pretty(&report.json("ssh"))? + "\n",
    )?;
    println!("\n{}\nwritten: {}", report.table(), file.display());
    let missed = report.missed();
    if args.strict && !missed.is_empty() {
        bail!("below the bar: {}", missed.join(", "));
    }
    Ok(())
}

fn measure(args: &Args) -> Result<Report> {
    let mut report = Report::new(&args.only);
    if report.wants_any(bulk::ROWS) || report.wants_any(&["exec-true-vs-jump"]) {
        let world = world::World::start()?;
        bulk::run(&world, args.rounds, args.mb, &mut report)?;
        latency::exec_true(&world, args.rounds, &mut report)?;
    }
    if report.wants_any(&["plugin-vs-native"]) {
        bulk::plugin_vs_native(args.rounds, &mut report)?;
    }
    if report.wants_any(&["stall-isolation", "stall-pinned"]) {
        bulk::stalls(args.rounds, args.mb, &mut report)?;
    }
    if report.wants_any(&["idle-agent-rss", "cold-start"]) {
        memory::idle_agent(&mut world::World::start()?, args.rounds, &mut report)?;
    }
    if report.wants_any(&["idle-session-pss"]) {
        memory::idle_session(&mut world::World::start()?, args.rounds, &mut report)?;
    }
    if report.wants_any(&["open-1000"]) {
        latency::open_many(&world::World::start()?, &mut report)?;
    }
    Ok(report)
}
