//! The proof of PostgreSQL through Postern: nothing is lost, nothing is changed, nothing hangs. [`postgres`](../postgres.rs)
//! beside this says what each part does; here real drivers, PostgreSQL's own tests and bad company say whether it holds.

mod audit;
mod bad_clients;
mod bad_servers;
mod crowd;
mod drivers;
mod regress;
mod replay;
mod restart;
mod rust_driver;
mod tls;

use anyhow::{Context, Result, ensure};
use postern_tests::{Database, procfs, wait};
use std::path::PathBuf;
use std::time::Duration;

/// No test has an outcome that takes longer than this, where it is about not hanging.
const SOON: Duration = Duration::from_secs(10);
/// Descriptors that come and go with nothing to do with sessions: a heartbeat, the channel to Auth.
const SLACK: usize = 12;

const NO_SERVER: &str = "no PostgreSQL (Debian: postgresql-15)";

fn runtime() -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.worker_threads(2).enable_all().build()?)
}

/// What the agent holds while nobody is connected.
fn at_rest(db: &Database) -> Result<usize> {
    wait::holds("no session to be open", wait::LONG, || {
        db.sessions().is_ok_and(|n| n == 0.0)
    })?;
    Ok(procfs::open_files(db.agent.pid()?))
}

/// The agent holds no more than it did, but the tunnel's connections of the `most` sessions that were open together: those are
/// kept for the next ones, for a minute, and none of them for longer than it is used.
fn rests_as_before(db: &Database, before: usize, most: usize) -> Result<usize> {
    at_rest(db)?;
    let now = || db.agent.pid().map_or(usize::MAX, procfs::open_files);
    wait::holds("descriptors to be given back", wait::LONG, || {
        now() <= before + most + SLACK
    })
    .with_context(|| format!("{before} before, {} now, {most} sessions at once", now()))?;
    // And the service counts none: a reload would drain at once.
    let service = db.agent.service("db")?;
    ensure!(service["sessions"] == 0, "{service}");
    Ok(now())
}

/// What `cargo xtask test` has installed below `target/tools`, or what this variable names.
fn tool(variable: &str, file: &str) -> Option<PathBuf> {
    if let Some(named) = std::env::var_os(variable) {
        return Some(named.into());
    }
    let tools = postern_tests::bin_dir().ok()?.parent()?.join("tools");
    let mut dirs = std::fs::read_dir(tools).ok()?.flatten();
    dirs.find_map(|e| Some(e.path().join(file)).filter(|p| p.exists()))
}
