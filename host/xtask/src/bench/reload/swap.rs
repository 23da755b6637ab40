//! A client that opens a connection every 5 ms, while the plugin is exchanged under it.

use super::world::{FIRST, World, now};
use crate::bench::rows::{Report, Sample};
use crate::sh;
use anyhow::{Context, Result, ensure};
use postern_tests::{plugin, run::Background, testing_plugin, wait};
use serde_json::Value;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// Seconds before the first swap, to compare with.
const QUIET: f64 = 4.0;
/// One a second.
const SWAPS: u32 = 4;

pub fn run(world: &World, rounds: usize, report: &mut Report) -> Result<()> {
    sh::phase("bench: swap-failed-connections, swap-p99");
    let (mut failed, mut swapping, mut quiet) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let (f, s, q) = swaps(world, round)?;
        eprintln!("  round {round}: {f} failed; p99 {s:.1} ms, quiet {q:.1} ms");
        failed.push(Sample::from(f));
        swapping.push(Sample::from(s));
        quiet.push(Sample::from(q));
    }
    report.add("swap-failed-connections", &failed, &[]);
    report.add("swap-p99", &swapping, &quiet);
    Ok(())
}

/// Failed connections, and the p99 while it was swapped and before, in milliseconds.
fn swaps(world: &World, round: usize) -> Result<(f64, f64, f64)> {
    let seconds = QUIET + f64::from(SWAPS);
    let probe = world.probe(&["steady", FIRST, &seconds.to_string()])?;
    let mut probe = postern_tests::Run::new(probe).background(Stdio::piped())?;
    std::thread::sleep(Duration::from_secs_f64(QUIET));
    let began = now();
    for i in 0..SWAPS {
        let version = if i % 2 == 0 {
            testing_plugin("tcp-next")?
        } else {
            plugin("tcp")?
        };
        let before = served(world)?;
        put_new(&version, &world.plugin_file(), &format!("{round}-{i}"))?;
        let until = began + f64::from(i + 1);
        wait::holds("the plugin to be swapped", wait::LONG, || {
            served(world).is_ok_and(|now| now != before)
        })?;
        std::thread::sleep(Duration::from_secs_f64((until - now()).max(0.0)));
    }
    let told = told(&mut probe)?;
    let times: Vec<(f64, f64)> = pairs(&told["times"], Value::as_f64);
    let failed: Vec<(f64, String)> = pairs(&told["failed"], |why| Some(why.to_string()));
    for (_, why) in &failed {
        eprintln!("  failed: {why}");
    }
    let p99 = |keep: &dyn Fn(f64) -> bool| {
        let mut kept: Vec<f64> = times.iter().filter(|t| keep(t.0)).map(|t| t.1).collect();
        kept.sort_by(f64::total_cmp);
        let at = kept.len() * 99 / 100;
        kept.get(at).copied().context("no connections")
    };
    Ok((
        failed.len() as f64,
        p99(&|due| due >= began)?,
        p99(&|due| due < began)?,
    ))
}

/// The digest of the plugin that new connections get.
fn served(world: &World) -> Result<String> {
    Ok(world.agent.service(FIRST)?["sha256"].to_string())
}

/// A version that was never there before, so that it has to be compiled: what is added is a custom section.
fn put_new(from: &Path, to: &Path, mark: &str) -> Result<()> {
    let mut bytes = std::fs::read(from)?;
    let name = u8::try_from(mark.len())?;
    ensure!(name < 120, "too long a mark");
    bytes.extend([0, name + 1, name]);
    bytes.extend(mark.bytes());
    let new = to.with_extension("new");
    std::fs::write(&new, bytes)?;
    Ok(std::fs::rename(&new, to)?)
}

fn told(probe: &mut Background) -> Result<Value> {
    let mut out = String::new();
    let mut stdout = probe.child().stdout.take().context("stdout")?;
    stdout.read_to_string(&mut out)?;
    serde_json::from_str(&out).with_context(|| format!("reload_probe said: {out}"))
}

fn pairs<T>(list: &Value, second: impl Fn(&Value) -> Option<T>) -> Vec<(f64, T)> {
    let all = list.as_array().into_iter().flatten();
    all.filter_map(|p| Some((p[0].as_f64()?, second(&p[1])?)))
        .collect()
}
