//! How long a person waits: a whole `ssh host true`, and sessions opened at a steady rate.

use super::world::{Way, World};
use crate::bench::rows::{Report, Sample, median};
use crate::{paths, sh};
use anyhow::{Context, Result};
use std::process::Stdio;

/// In each round, so many after each other; their median is the round's figure.
const EACH: usize = 10;

pub fn exec_true(world: &World, rounds: usize, report: &mut Report) -> Result<()> {
    if !report.wants("exec-true-vs-jump") {
        return Ok(());
    }
    sh::phase("bench: exec-true-vs-jump");
    let (mut postern, mut jump) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        let (mut p, mut j) = (Vec::new(), Vec::new());
        for _ in 0..EACH {
            for (way, times) in [(Way::Postern, &mut p), (Way::Jump, &mut j)] {
                let mut client = world.client(way, "ssh", &["true"])?;
                client.stdin(Stdio::null()).stdout(Stdio::null());
                times.push(world.time(way, client, true)?.0 * 1000.0);
            }
        }
        let (p, j) = (median(p.into_iter()), median(j.into_iter()));
        eprintln!("  round {round}: {p:.0} ms, jump {j:.0} ms");
        postern.push(Sample::from(p));
        jump.push(Sample::from(j));
    }
    report.add("exec-true-vs-jump", &postern, &jump);
    Ok(())
}

pub fn open_many(world: &World, report: &mut Report) -> Result<()> {
    sh::phase("bench: open-1000 (50 a second, all held)");
    let mut samples = Vec::new();
    // Once is 20 s and a thousand samples; three times shows whether it is steady.
    for round in 1..=3 {
        let mut load = sh::cmd(paths::target().join("release/examples/open_load"), &[]);
        load.arg(&world.user.home)
            .args([&world.agent.resource, &world.agent.login])
            .args(["1000", "50"]);
        let out = sh::output(&mut load)?;
        let json: serde_json::Value =
            serde_json::from_str(&out).with_context(|| format!("open_load said: {out}"))?;
        eprintln!("  round {round}: {json}");
        samples.push(Sample::from(json["p99_ms"].as_f64().context("p99_ms")?));
        postern_tests::wait::holds(
            "the sessions to end",
            std::time::Duration::from_secs(60),
            || world.agent.service("ssh").is_ok_and(|s| s["sessions"] == 0),
        )?;
    }
    report.add("open-1000", &samples, &[]);
    Ok(())
}
