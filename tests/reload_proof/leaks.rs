//! Services that come and go leave nothing in the process.

use crate::count;
use crate::draft::Service;
use crate::world::{World, homes, server};
use anyhow::{Result, ensure};
use postern_tests::{procfs, wait};
use std::collections::BTreeMap;
use std::time::Duration;

/// Of resident memory, over the last half of the rounds.
const GROWTH: u64 = 2 << 20;

#[test]
fn services_that_come_and_go_leave_nothing() -> Result<()> {
    let rounds = count("POSTERN_ROUNDS", 60);
    let port = server()?;
    let stays = Service::new("tcp", &[]).with("stays", Some(port));
    let mut w = World::start("", BTreeMap::from([("stays".to_owned(), stays)]))?;
    let pid = w.agent.pid()?;
    let mut round = |i: u32| -> Result<()> {
        let name = format!("comes-{i}");
        let service = Service::new("tcp", &[]).with(&name, Some(port));
        w.draft.services.insert(name.clone(), service);
        w.apply()?;
        w.agent.service_state(&name, "up", wait::LONG)?;
        if i.is_multiple_of(10) {
            w.reachable(&name)?;
        }
        w.draft.services.remove(&name);
        w.apply()?;
        wait::holds("the service to be gone", wait::LONG, || {
            homes(&w.agent).is_ok_and(|homes| homes == ["stays"])
        })
    };
    let now = || -> Result<(usize, usize, u64)> {
        Ok((
            procfs::open_files(pid),
            procfs::threads(pid),
            procfs::rss(pid)?,
        ))
    };
    // Warm: pools and buffers have their size.
    for i in 0..rounds / 2 {
        round(i)?;
    }
    let (files, threads, memory) = now()?;
    for i in rounds / 2..rounds {
        round(i)?;
    }
    // Connections to Auth and idle threads end a moment later.
    let mut last = (0, 0, 0);
    wait::holds("what is left to be gone", Duration::from_secs(60), || {
        last = now().unwrap_or((usize::MAX, 0, 0));
        last.0 <= files && last.1 <= threads
    })
    .map_err(|e| e.context(format!("{files} files, {threads} threads; now {last:?}")))?;
    println!(
        "{rounds} rounds: files {files} → {}, threads {threads} → {}, {:.1} → {:.1} MB",
        last.0,
        last.1,
        memory as f64 / 1e6,
        last.2 as f64 / 1e6
    );
    ensure!(
        last.2 <= memory + GROWTH,
        "grew from {memory} to {} bytes",
        last.2
    );
    Ok(())
}
