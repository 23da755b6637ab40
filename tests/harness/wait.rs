//! Waiting for a condition, never for a while.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// Long enough for a loaded two-core machine; nothing waits this long when it works.
pub const LONG: Duration = Duration::from_secs(30);

/// Asks until the answer is `Some`, an error, or too late. `what` completes "waited 30 s for …".
pub fn until<T>(
    what: &str,
    timeout: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if started.elapsed() > timeout {
            bail!("waited {timeout:?} for {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits for a condition.
pub fn holds(what: &str, timeout: Duration, mut ask: impl FnMut() -> bool) -> Result<()> {
    until(what, timeout, || Ok(ask().then_some(())))
}

/// The condition must hold all the time, for so long: for things that must not happen.
pub fn stays(what: &str, time: Duration, mut ask: impl FnMut() -> bool) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < time {
        if !ask() {
            bail!("{what}: no longer so after {:?}", started.elapsed());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
