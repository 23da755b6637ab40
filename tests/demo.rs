//! The demo is what a newcomer runs first; it must not rot.

use anyhow::{Result, ensure};
use postern_tests::{Run, bin};
use std::process::Command;
use std::time::Duration;

#[test]
fn the_demo_shows_all_of_it() -> Result<()> {
    let demo = Run::new(Command::new(bin("xtask")?))
        .args(["demo", "--no-build"])
        .timeout(Duration::from_secs(150))
        .run()?;
    let shown = format!("{}\n{}", demo.out(), demo.err());
    ensure!(demo.status.success(), "{shown}");
    for part in [
        "session.start",
        "session.rejected",
        "agent.join",
        "user.login",
        "session.end",
    ] {
        ensure!(shown.contains(part), "no {part} in:\n{shown}");
    }
    Ok(())
}
