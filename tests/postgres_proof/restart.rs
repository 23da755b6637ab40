//! The database server goes and comes back while it is used: everybody is told, nobody waits, others are not touched.

use crate::{NO_SERVER, SOON, at_rest, crowd, rests_as_before, runtime};
use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use postern_tests::{DatabaseSpec, Login, Postgres, skip_unless, wait};
use std::process::Stdio;
use std::time::Instant;

#[test]
fn a_server_restarted_under_load() -> Result<()> {
    skip_unless!(Postgres::is_there(), NO_SERVER);
    let mut db = DatabaseSpec::new(Login::Scram).server("stock").start()?;
    let (orders, stock) = (db.helper("orders")?, db.helper("stock")?);
    let initialised = orders.client(&db, "pgbench").args(["-i", "-q", "orders"]);
    initialised.ok()?;
    let before = at_rest(&db)?;
    let runtime = runtime()?;
    let other = runtime.block_on(crowd::open(stock.port))?;
    let lives = || {
        runtime.block_on(async {
            tokio::time::timeout(SOON, other.query_one("select $1::int4", &[&1])).await
        })
    };
    // As an operator stops it, and as a crash does.
    for how in [Signal::SIGINT, Signal::SIGQUIT] {
        let mut load = orders
            .client(&db, "pgbench")
            .args(["-n", "-c", "8", "-T", "100", "orders"])
            .background(Stdio::null())?;
        wait::holds("the load to run", wait::LONG, || {
            db.sessions().is_ok_and(|n| n == 9.0)
        })?;
        let done = "select sum(xact_commit) from pg_stat_database where datname = 'orders'";
        let count = |db: &postern_tests::Database| -> Result<u64> {
            Ok(db.server().sql("postgres", done)?.trim().parse()?)
        };
        let began = count(&db)?;
        wait::until("transactions", wait::LONG, || {
            Ok((count(&db)? > began + 50).then_some(()))
        })?;
        db.servers[0].down(how)?;
        let status = load.wait(SOON)?;
        ensure!(!status.success(), "{how}: pgbench ended with {status}");
        lives()??;
        let started = Instant::now();
        let away = orders
            .psql(&db)
            .args(["-c", "select 1"])
            .timeout(SOON)
            .run()?;
        away.refused("connection refused")?;
        ensure!(started.elapsed() < SOON);
        db.servers[0].up()?;
        let back = orders
            .psql(&db)
            .args(["-c", "select 41 + 1"])
            .timeout(SOON)
            .ok()?;
        ensure!(back.trim() == "42", "{back}");
        lives()??;
        wait::holds("its sessions to be over", SOON, || {
            db.sessions().is_ok_and(|n| n == 1.0)
        })?;
    }
    drop(other);
    rests_as_before(&db, before, 9).map(drop)
}
