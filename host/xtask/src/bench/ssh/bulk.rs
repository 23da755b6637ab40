//! Throughput: files up and down, a session beside a stalled one, bytes through the smallest plugin.

use super::world::{Way, World};
use crate::bench::rows::{Report, Sample, median};
use crate::{paths, sh};
use anyhow::{Context, Result, ensure};
use postern_tests::{procfs, run::Background};
use std::fs::File;
use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

pub const ROWS: &[&str] = &[
    "cat-down",
    "cat-up",
    "scp-up",
    "cat-down-vs-jump",
    "cat-up-vs-jump",
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    CatDown,
    CatUp,
    ScpUp,
}

/// `settle`: wait until the session's processes are gone, so that their CPU time counts.
fn transfer(world: &World, way: Way, what: What, mb: u64, settle: bool) -> Result<Sample> {
    let file = world.file(mb)?;
    let path = file.display().to_string();
    let command = match what {
        What::CatDown => {
            let mut c = world.client(way, "ssh", &[&format!("cat {path}")])?;
            c.stdin(Stdio::null())
                .stdout(File::options().write(true).open("/dev/null")?);
            c
        }
        What::CatUp => {
            let mut c = world.client(way, "ssh", &["cat >/dev/null"])?;
            c.stdin(File::open(&file)?).stdout(Stdio::null());
            c
        }
        What::ScpUp => {
            let mut c = world.client(
                way,
                "scp",
                &["-q", &path, &format!("{}:/dev/null", world.host(way))],
            )?;
            c.stdin(Stdio::null()).stdout(Stdio::null());
            c
        }
    };
    let (seconds, cpu) = world.time(way, command, settle)?;
    let gb = mb as f64 / 1000.0;
    Ok(Sample {
        value: mb as f64 / seconds,
        cpu: Some(cpu / gb),
    })
}

pub fn run(world: &World, rounds: usize, mb: u64, report: &mut Report) -> Result<()> {
    let cases: Vec<(What, &[Way], &[&str])> = vec![
        (
            What::CatDown,
            &[Way::Postern, Way::Direct, Way::Jump],
            &["cat-down", "cat-down-vs-jump"],
        ),
        (
            What::CatUp,
            &[Way::Postern, Way::Direct, Way::Jump],
            &["cat-up", "cat-up-vs-jump"],
        ),
        (What::ScpUp, &[Way::Postern, Way::Direct], &["scp-up"]),
    ];
    for (what, ways, rows) in cases {
        if !report.wants_any(rows) {
            continue;
        }
        sh::phase(&format!("bench: {} ({mb} MB, {rounds} rounds)", rows[0]));
        let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); ways.len()];
        for round in 0..=rounds {
            for (way, samples) in ways.iter().zip(&mut samples) {
                let sample = transfer(world, *way, what, mb, true)?;
                // The first round warms caches and grows buffers.
                if round > 0 {
                    eprintln!("  round {round} {way:?}: {:.0} MB/s", sample.value);
                    samples.push(sample);
                }
            }
        }
        report.add(rows[0], &samples[0], &samples[1]);
        if let (Some(row), Some(jump)) = (rows.get(1), samples.get(2)) {
            report.add(row, &samples[0], jump);
        }
    }
    Ok(())
}

/// The example of postern-relay does it in one process, for both alike.
pub fn plugin_vs_native(rounds: usize, report: &mut Report) -> Result<()> {
    sh::phase("bench: plugin-vs-native");
    let program = paths::target().join("release/examples/relay_bench");
    let out = sh::output(sh::cmd(program, &[]).arg(rounds.to_string()))?;
    let json: serde_json::Value = serde_json::from_str(out.lines().last().unwrap_or_default())
        .with_context(|| format!("relay_bench said: {out}"))?;
    let samples = |key: &str| -> Vec<Sample> {
        json[key]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|v| Some(v.as_f64()?.into()))
            .collect()
    };
    report.add(
        "plugin-vs-native",
        &samples("plugin_mb_s"),
        &samples("native_mb_s"),
    );
    Ok(())
}

/// A session whose client never reads.
fn stalled(world: &World) -> Result<Background> {
    let command = world.client(Way::Postern, "ssh", &["cat /dev/zero"])?;
    let mut session = postern_tests::Run::new(command).background(Stdio::piped())?;
    let mut first = [0u8; 1];
    session
        .child()
        .stdout
        .as_mut()
        .context("stdout")?
        .read_exact(&mut first)?;
    Ok(session)
}

pub fn stalls(rounds: usize, mb: u64, report: &mut Report) -> Result<()> {
    sh::phase("bench: stall-isolation, stall-pinned");
    let (mut alone, mut beside, mut pinned) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        // Fresh processes, that have served small sessions only: those that moved bulk before would reuse that memory.
        let world = World::start()?;
        let (agent, proxy) = (world.agent.pid()?, world.cluster.auth.pid()?);
        let before = (settled(agent)?, settled(proxy)?);
        let mut session = stalled(&world)?;
        let after = (settled(agent)?, settled(proxy)?);
        let grown = |before: u64, after: u64| after.saturating_sub(before) as f64 / 1e6;
        let (a, p) = (grown(before.0, after.0), grown(before.1, after.1));
        pinned.push(Sample::from(a.max(p)));

        transfer(&world, Way::Postern, What::CatDown, mb.min(200), false)?;
        let with = transfer(&world, Way::Postern, What::CatDown, mb, false)?;
        ensure!(session.is_running(), "the stalled session ended");
        drop(session);
        // Its end must have reached both before the other half begins.
        postern_tests::wait::holds(
            "the stalled session to end",
            Duration::from_secs(20),
            || world.agent.service("ssh").is_ok_and(|s| s["sessions"] == 0),
        )?;
        let without = transfer(&world, Way::Postern, What::CatDown, mb, false)?;
        eprintln!(
            "  round {round}: alone {:.0}, beside {:.0} MB/s; pinned: agent {a:.1} MB, proxy {p:.1} MB",
            without.value, with.value
        );
        beside.push(Sample::from(with.value));
        alone.push(Sample::from(without.value));
    }
    report.add("stall-isolation", &beside, &alone);
    report.add("stall-pinned", &pinned, &[]);
    Ok(())
}

/// Resident memory once it has stopped changing: the median of a second in which it moved less than 1 %.
pub fn settled(pid: u32) -> Result<u64> {
    for _ in 0..20 {
        let mut samples = Vec::new();
        for _ in 0..10 {
            samples.push(procfs::rss(pid)? as f64);
            std::thread::sleep(Duration::from_millis(100));
        }
        let (low, high) = samples
            .iter()
            .fold((f64::MAX, 0.0f64), |(l, h), s| (l.min(*s), h.max(*s)));
        if high - low < low / 100.0 {
            return Ok(median(samples.into_iter()) as u64);
        }
    }
    procfs::rss(pid)
}
