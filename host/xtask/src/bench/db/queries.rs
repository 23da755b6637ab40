//! Queries of pgbench (`-S`: one row by its key), by one client and by sixteen, and what is added to each.

use super::world::{Way, World};
use crate::bench::rows::{Report, Sample, median};
use crate::sh;
use anyhow::{Context, Result};

/// Of each way in each round.
const SECONDS: &str = "5";

const CLIENTS: [(usize, [&str; 2]); 2] = [
    (1, ["pgbench-1", "pgbench-1-vs-pgbouncer"]),
    (16, ["pgbench-16", "pgbench-16-vs-pgbouncer"]),
];
const ADDED: &str = "added-p50";

/// Whether pgbench's tables are needed.
pub fn wanted(report: &Report) -> bool {
    report.wants(ADDED) || CLIENTS.iter().any(|(_, rows)| report.wants_any(rows))
}

pub fn run(world: &World, rounds: usize, report: &mut Report) -> Result<()> {
    let ways = [Way::Postern, Way::Ssh, Way::Bouncer];
    for (clients, rows) in CLIENTS {
        if !report.wants_any(&rows) {
            continue;
        }
        sh::phase(&format!("bench: {} ({rounds} rounds)", rows[0]));
        let mut samples = [const { Vec::new() }; 3];
        for round in 1..=rounds {
            for (way, samples) in ways.into_iter().zip(&mut samples) {
                let sample = tps(world, way, clients)?;
                eprintln!(
                    "  round {round} {way:?}: {:.0} TPS, {:.0} µs CPU each",
                    sample.value,
                    sample.cpu.unwrap_or_default()
                );
                samples.push(sample);
            }
        }
        report.add(rows[0], &samples[0], &samples[1]);
        report.add(rows[1], &samples[0], &samples[2]);
    }
    Ok(())
}

fn tps(world: &World, way: Way, clients: usize) -> Result<Sample> {
    let before = world.cpu(way)?;
    let threads = clients.min(2).to_string();
    let out = world
        .client(way, "pgbench")
        .args(["-n", "-S", "-T", SECONDS, "-j", &threads])
        .args(["-c", &clients.to_string()])
        .ok()?;
    let spent = world.cpu(way)? - before;
    Ok(Sample {
        value: number(&out, "tps = ")?,
        cpu: Some(spent * 1e6 / number(&out, "actually processed: ")?),
    })
}

/// What stands behind a word in pgbench's report.
pub fn number(report: &str, word: &str) -> Result<f64> {
    let rest = report.split_once(word);
    let digits = rest.and_then(|(_, rest)| rest.split([' ', '/', '\n']).next());
    let number = digits.and_then(|d| d.parse().ok());
    number.with_context(|| format!("no {word:?} in what pgbench said: {report}"))
}

/// The median of each round's queries, against that of the direct way right after it.
pub fn added(world: &World, rounds: usize, report: &mut Report) -> Result<()> {
    if !report.wants(ADDED) {
        return Ok(());
    }
    sh::phase("bench: added-p50");
    let mut samples = Vec::new();
    for round in 1..=rounds {
        let (postern, direct) = (p50(world, Way::Postern)?, p50(world, Way::Direct)?);
        eprintln!("  round {round}: {postern:.0} µs, direct {direct:.0} µs");
        samples.push(Sample::from(postern - direct));
    }
    report.add(ADDED, &samples, &[]);
    Ok(())
}

/// Microseconds, from pgbench's log of transactions.
fn p50(world: &World, way: Way) -> Result<f64> {
    let dir = world.lab.join("latencies");
    std::fs::create_dir_all(&dir)?;
    let pgbench = world.client(way, "pgbench").dir(&dir);
    pgbench.args(["-n", "-S", "-T", SECONDS, "-l"]).ok()?;
    let mut times = Vec::new();
    for file in std::fs::read_dir(&dir)?.flatten() {
        let lines = std::fs::read_to_string(file.path())?;
        let third = lines.lines().filter_map(|l| l.split(' ').nth(2));
        times.extend(third.filter_map(|t| t.parse::<f64>().ok()));
    }
    std::fs::remove_dir_all(&dir)?;
    Ok(median(times.into_iter()))
}
