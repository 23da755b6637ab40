//! `bench reload`: how long an edit takes, and what those who are connected notice of it; against the old way, which is
//! to stop the agent, delete its state and start it with a new token.

mod add;
mod old_way;
mod swap;
mod world;

use super::Args;
use super::rows::{Bar, Report};
use anyhow::Result;
use world::{Sessions, World};

const OLD_WAY: &str = "stop, delete state, new token";

/// For the figure itself, except where a row says that it is a ratio.
pub const BARS: &[Bar] = &[
    Bar::limit("add-one", "s", 1.0, 0.5).beside(OLD_WAY),
    Bar::limit("add-fifty", "s", 5.0, 2.0),
    Bar::limit("swap-failed-connections", "", 0.0, 0.0),
    Bar::at_most("swap-p99", "quiet", "ms", 3.0, 1.5),
    Bar::limit("lost-sessions", "", 0.0, 0.0).beside(OLD_WAY),
];

pub fn measure(args: &Args, report: &mut Report) -> Result<()> {
    let mut world = World::start()?;
    let mut sessions = Sessions::open(&world)?;
    let one = add::one(&mut world, args.rounds)?;
    if report.wants("add-fifty") {
        let fifty = add::fifty(&mut world, args.rounds)?;
        report.add("add-fifty", &fifty, &[]);
    }
    if report.wants_any(&["swap-p99", "swap-failed-connections"]) {
        swap::run(&world, args.rounds, report)?;
    }
    let lost = sessions.lost();
    // Last: it ends all that is there, each time.
    let old = old_way::run(&mut world, args.rounds)?;
    report.add("add-one", &one, &old.outages);
    report.add("lost-sessions", &[lost.into()], &old.lost);
    Ok(())
}
