//! Memory when nothing happens, and how long an agent takes from nothing to its first session.

use super::bulk::settled;
use super::world::{Way, World};
use crate::bench::rows::{Report, Sample};
use crate::sh;
use anyhow::{Context, Result, ensure};
use postern_tests::run::Background;
use postern_tests::{Run, bin, procfs, wait};
use std::io::Read;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// `idle-agent-rss` and `cold-start`: both restart a joined agent whose plugin is compiled already.
pub fn idle_agent(world: &mut World, rounds: usize, report: &mut Report) -> Result<()> {
    sh::phase("bench: idle-agent-rss, cold-start");
    let (mut memory, mut start) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        world.agent.stop(wait::LONG)?;
        let began = Instant::now();
        world.agent.launch()?;
        // Whoever waits for a session tries again at once; the first try that is served counts.
        let deadline = began + Duration::from_secs(30);
        loop {
            while !world
                .agent
                .get("/readyz")
                .is_ok_and(|(code, _)| code == 200)
            {
                ensure!(
                    Instant::now() < deadline,
                    "the agent is not ready after 30 s"
                );
                std::thread::sleep(Duration::from_millis(2));
            }
            let mut client = world.client(Way::Postern, "ssh", &["true"])?;
            if client
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .status()?
                .success()
            {
                break;
            }
            ensure!(Instant::now() < deadline, "no session within 30 s");
        }
        start.push(Sample::from(began.elapsed().as_secs_f64()));
        // Again, for an agent that has served nobody yet.
        world.agent.stop(wait::LONG)?;
        world.agent.launch()?;
        world.agent.ready()?;
        std::thread::sleep(Duration::from_secs(2));
        memory.push(Sample::from(settled(world.agent.pid()?)? as f64 / 1e6));
        eprintln!(
            "  round {round}: first session after {:.2} s, {:.1} MB",
            start[round - 1].value,
            memory[round - 1].value
        );
    }
    report.add("idle-agent-rss", &memory, &[]);
    report.add("cold-start", &start, &[]);
    Ok(())
}

/// Sessions at a time; what they add together is divided by them.
const SESSIONS: usize = 20;

/// What PTY sessions add in the agent and in processes of `posternd` below it; their shells are not ours. A fresh agent each
/// round, with one session behind it: a process that has served more reuses their memory, which would flatter.
pub fn idle_session(world: &mut World, rounds: usize, report: &mut Report) -> Result<()> {
    sh::phase("bench: idle-session-pss");
    let mut samples = Vec::new();
    for round in 1..=rounds {
        world.agent.stop(wait::LONG)?;
        world.agent.launch()?;
        world.agent.ready()?;
        drop(shells(world, 1)?);
        none_left(world)?;
        let before = ours(world)?;
        let sessions = shells(world, SESSIONS)?;
        std::thread::sleep(Duration::from_secs(2));
        let after = ours(world)?;
        let each = (after as f64 - before as f64) / 1e6 / SESSIONS as f64;
        eprintln!("  round {round}: {each:.2} MB each");
        samples.push(Sample::from(each.max(0.0)));
        drop(sessions);
        none_left(world)?;
    }
    report.add("idle-session-pss", &samples, &[]);
    Ok(())
}

fn shells(world: &World, count: usize) -> Result<Vec<Background>> {
    (0..count)
        .map(|_| {
            let mut session = Run::new(world.client(Way::Postern, "ssh", &[])?)
                .arg("-tt")
                .background(Stdio::piped())?;
            // Its prompt: the shell is there.
            let mut first = [0u8; 1];
            session
                .child()
                .stdout
                .as_mut()
                .context("stdout")?
                .read_exact(&mut first)?;
            Ok(session)
        })
        .collect()
}

fn none_left(world: &World) -> Result<()> {
    wait::holds("sessions to end", Duration::from_secs(20), || {
        world.agent.service("ssh").is_ok_and(|s| s["sessions"] == 0)
    })
}

/// Proportional memory of the agent and of whatever below it still is posternd.
fn ours(world: &World) -> Result<u64> {
    let program = bin("posternd")?.canonicalize()?;
    let mut sum = 0;
    for pid in procfs::tree(world.agent.pid()?) {
        if std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program) {
            sum += procfs::pss(pid).unwrap_or(0);
        }
    }
    Ok(sum)
}
