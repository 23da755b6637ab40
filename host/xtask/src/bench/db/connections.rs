//! Connections: how long one takes, what an idle one costs, and whether a thousand can be held.

use super::queries::number;
use super::world::{ACCOUNT, DATABASE, Way, World};
use crate::bench::rows::{Report, Sample};
use crate::bench::ssh::settled;
use crate::{paths, sh};
use anyhow::{Context, Result};
use postern_tests::run::Background;
use postern_tests::{Run, wait};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::Duration;

/// Connections of each way in each round.
const EACH: &str = "300";
/// For the memory of one.
const IDLE: usize = 500;

/// Connect, `select 1`, close, one after another.
pub fn connect(world: &World, rounds: usize, report: &mut Report) -> Result<()> {
    let rows = ["connect", "connect-by-certificate"];
    if !report.wants_any(&rows) {
        return Ok(());
    }
    sh::phase("bench: connect");
    let script = world.lab.file("one.sql", "select 1;\n")?;
    let ways = [Way::Postern, Way::PosternCertificate, Way::Stunnel];
    let mut samples = [const { Vec::new() }; 3];
    for round in 1..=rounds {
        for (way, samples) in ways.into_iter().zip(&mut samples) {
            let before = world.cpu(way)?;
            let pgbench = world.client(way, "pgbench").args(["-n", "-C", "-f"]);
            let out = pgbench.arg(&script).args(["-t", EACH]).ok()?;
            let spent = world.cpu(way)? - before;
            let ms = 1000.0 / number(&out, "tps = ")?;
            eprintln!("  round {round} {way:?}: {ms:.2} ms");
            samples.push(Sample {
                value: ms,
                cpu: Some(spent * 1e6 / EACH.parse::<f64>()?),
            });
        }
    }
    for (row, postern) in rows.iter().zip(&samples) {
        report.add(row, postern, &samples[2]);
    }
    Ok(())
}

pub fn idle(world: &mut World, rounds: usize, report: &mut Report) -> Result<()> {
    let rows = ["idle-connection-rss", "hold-1000", "hold-1000-failed"];
    if !report.wants_any(&rows) {
        return Ok(());
    }
    sh::phase("bench: idle-connection-rss, hold-1000");
    let (mut memory, mut slow, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        // A process that has held more before would reuse that memory, which would flatter.
        world.agent.stop(wait::LONG)?;
        world.agent.launch()?;
        world.agent.ready()?;
        drop(Held::open(world, 10)?);
        none_left(world)?;
        let before = settled(world.agent.pid()?)?;
        let held = Held::open(world, IDLE)?;
        let after = settled(world.agent.pid()?)?;
        let each = (after as f64 - before as f64) / 1000.0 / IDLE as f64;
        memory.push(Sample::from(each));
        drop(held);
        none_left(world)?;
        let told = Held::open(world, 1000)?.ask()?;
        none_left(world)?;
        eprintln!("  round {round}: {each:.0} KB each; of a thousand: {told}");
        slow.push(Sample::from(told["p99_ms"].as_f64().context("p99_ms")?));
        failed.push(Sample::from(told["failed"].as_f64().context("failed")?));
    }
    report.add(rows[0], &memory, &[]);
    report.add(rows[1], &slow, &[]);
    report.add(rows[2], &failed, &[]);
    Ok(())
}

fn none_left(world: &World) -> Result<()> {
    wait::holds("sessions to end", Duration::from_secs(30), || {
        world.agent.service("db").is_ok_and(|s| s["sessions"] == 0)
    })
}

/// Open connections, held by another process.
struct Held(Background, BufReader<std::process::ChildStdout>);

impl Held {
    fn open(world: &World, count: usize) -> Result<Held> {
        let program = sh::cmd(paths::target().join("release/examples/db_hold"), &[]);
        let mut program = Run::new(program)
            .arg(&world.user.home)
            .args(["by-password", ACCOUNT, DATABASE, &count.to_string()])
            .background(Stdio::piped())?;
        let mut out = BufReader::new(program.child().stdout.take().context("stdout")?);
        let mut line = String::new();
        out.read_line(&mut line)?;
        anyhow::ensure!(
            line == "held\n",
            "db_hold could not open {count} connections"
        );
        Ok(Held(program, out))
    }

    /// One query on each.
    fn ask(mut self) -> Result<Value> {
        writeln!(self.0.child().stdin.as_mut().context("stdin")?)?;
        let mut line = String::new();
        self.1.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("db_hold said: {line}"))
    }
}
