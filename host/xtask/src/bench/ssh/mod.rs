//! `bench ssh`: sessions, files and agents against OpenSSH on the same machine.

mod bulk;
mod latency;
mod memory;
pub use bulk::settled;
pub mod world;

use super::Args;
use super::rows::{Bar, Report};
use anyhow::Result;

/// Bars with a baseline are for the ratio to it, the others for the figure itself.
pub const BARS: &[Bar] = &[
    Bar::ratio("cat-down", "OpenSSH direct", "MB/s", 0.6, 0.9),
    Bar::ratio("cat-up", "OpenSSH direct", "MB/s", 0.55, 0.9),
    Bar::ratio("scp-up", "OpenSSH direct", "MB/s", 0.55, 0.9),
    Bar::ratio("cat-down-vs-jump", "OpenSSH ProxyJump", "MB/s", 1.0, 1.5),
    Bar::ratio("cat-up-vs-jump", "OpenSSH ProxyJump", "MB/s", 1.5, 2.5),
    Bar::at_most("exec-true-vs-jump", "OpenSSH ProxyJump", "ms", 0.8, 0.4),
    Bar::ratio("plugin-vs-native", "native relay", "MB/s", 0.9, 0.98),
    Bar::ratio("stall-isolation", "alone", "MB/s", 0.8, 0.95),
    Bar::limit("stall-pinned", "MB", 8.0, 3.0),
    Bar::limit("idle-agent-rss", "MB", 50.0, 30.0),
    Bar::limit("idle-session-pss", "MB", 2.0, 0.7),
    Bar::limit("cold-start", "s", 2.0, 0.5),
    Bar::limit("open-1000", "ms", 400.0, 250.0),
];

pub fn measure(args: &Args, report: &mut Report) -> Result<()> {
    let mb = args.mb.unwrap_or(600);
    if report.wants_any(bulk::ROWS) || report.wants_any(&["exec-true-vs-jump"]) {
        let world = world::World::start()?;
        bulk::run(&world, args.rounds, mb, report)?;
        latency::exec_true(&world, args.rounds, report)?;
    }
    if report.wants_any(&["plugin-vs-native"]) {
        bulk::plugin_vs_native(args.rounds, report)?;
    }
    if report.wants_any(&["stall-isolation", "stall-pinned"]) {
        bulk::stalls(args.rounds, mb, report)?;
    }
    if report.wants_any(&["idle-agent-rss", "cold-start"]) {
        memory::idle_agent(&mut world::World::start()?, args.rounds, report)?;
    }
    if report.wants_any(&["idle-session-pss"]) {
        memory::idle_session(&mut world::World::start()?, args.rounds, report)?;
    }
    if report.wants_any(&["open-1000"]) {
        latency::open_many(&world::World::start()?, report)?;
    }
    Ok(())
}
