//! `bench db`: a PostgreSQL server reached through Postern, against the same server reached directly, by `ssh -J … -L`, through
//! PgBouncer and through stunnel. TLS everywhere, real clients.

mod bulk;
mod connections;
mod queries;
mod world;

use super::Args;
use super::rows::{Bar, Report};
use anyhow::Result;
use world::World;

const SSH: &str = "ssh -J … -L";
const BOUNCER: &str = "PgBouncer";
const DIRECT: &str = "direct";
const STUNNEL: &str = "stunnel";

pub const BARS: &[Bar] = &[
    Bar::ratio("pgbench-1", SSH, "TPS", 0.9, 1.3).per_transaction(),
    Bar::ratio("pgbench-16", SSH, "TPS", 0.9, 1.3).per_transaction(),
    Bar::ratio("pgbench-1-vs-pgbouncer", BOUNCER, "TPS", 0.45, 0.8).per_transaction(),
    Bar::ratio("pgbench-16-vs-pgbouncer", BOUNCER, "TPS", 0.45, 0.8).per_transaction(),
    Bar::limit("added-p50", "µs", 250.0, 100.0),
    Bar::ratio("copy-out", DIRECT, "MB/s", 0.45, 0.8),
    Bar::ratio("copy-in", DIRECT, "MB/s", 0.45, 0.8),
    Bar::at_most("connect", STUNNEL, "ms", 2.5, 1.3).per_transaction(),
    Bar::at_most("connect-by-certificate", STUNNEL, "ms", 2.5, 1.3).per_transaction(),
    Bar::limit("idle-connection-rss", "KB", 200.0, 80.0),
    Bar::limit("hold-1000-failed", "", 0.0, 0.0),
    Bar::limit("hold-1000", "ms", 50.0, 50.0),
];

pub fn measure(args: &Args, report: &mut Report) -> Result<()> {
    let mb = args.mb.unwrap_or(1000);
    let mut world = World::start(report)?;
    queries::run(&world, args.rounds, report)?;
    queries::added(&world, args.rounds, report)?;
    connections::connect(&world, args.rounds, report)?;
    bulk::run(&world, args.rounds, mb, report)?;
    // Last: they restart the agent.
    connections::idle(&mut world, args.rounds, report)
}
