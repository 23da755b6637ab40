//! COPY of a large table, out and in.

use super::world::{Way, World};
use crate::bench::rows::{Report, Sample};
use crate::sh;
use anyhow::{Context, Result};
use std::fs::File;
use std::time::{Duration, Instant};

/// Bytes of a row as COPY writes it, line break included.
const ROW: u64 = 1000;

pub fn run(world: &World, rounds: usize, mb: u64, report: &mut Report) -> Result<()> {
    if !report.wants_any(&["copy-out", "copy-in"]) {
        return Ok(());
    }
    let rows = mb * 1_000_000 / ROW;
    let fill = format!(
        "create unlogged table bulk as select repeat(md5(n::text), 32)::char({}) as t from generate_series(1, {rows}) n; \
         create unlogged table bulk_in (t text)",
        ROW - 1
    );
    let psql = |way| world.client(way, "psql").timeout(Duration::from_secs(600));
    psql(Way::Direct).args(["-Xqc", &fill]).ok()?;
    let file = world.lab.join("bulk.txt").display().to_string();
    let save = format!("\\copy bulk to '{file}'");
    psql(Way::Direct).args(["-Xqc", &save]).ok()?;
    let load = format!("\\copy bulk_in from '{file}'");
    let out: &[&str] = &["-Xqc", "copy bulk to stdout"];
    let into: &[&str] = &["-Xq", "-1", "-c", "truncate bulk_in", "-c", &load];
    for (row, args) in [("copy-out", out), ("copy-in", into)] {
        if !report.wants(row) {
            continue;
        }
        sh::phase(&format!("bench: {row} ({mb} MB, {rounds} rounds)"));
        let ways = [Way::Postern, Way::Direct];
        let mut samples = [const { Vec::new() }; 2];
        for round in 0..=rounds {
            for (way, samples) in ways.into_iter().zip(&mut samples) {
                let mut client = psql(way).args(args).into_command();
                client.stdout(File::options().write(true).open("/dev/null")?);
                let (before, began) = (world.cpu(way)?, Instant::now());
                let status = client.status().context("psql")?;
                let took = began.elapsed().as_secs_f64();
                anyhow::ensure!(status.success(), "{way:?}: {client:?}: {status}");
                let gb = (rows * ROW) as f64 / 1e9;
                let sample = Sample {
                    value: gb * 1000.0 / took,
                    cpu: Some((world.cpu(way)? - before) / gb),
                };
                // The first round warms caches.
                if round > 0 {
                    eprintln!("  round {round} {way:?}: {:.0} MB/s", sample.value);
                    samples.push(sample);
                }
            }
        }
        report.add(row, &samples[0], &samples[1]);
    }
    Ok(())
}
