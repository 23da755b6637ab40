//! How much CPU time one instance uses, and when that is too much.
//!
//! Time is counted from the moment the guest's fiber is polled to the moment it comes back. A poll lasts a tick at most
//! (the epoch makes the guest yield), so a poll that took much longer lost the CPU to other processes meanwhile, and is
//! charged two ticks.

use crate::ticker::TICK;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A call may take this many times its CPU budget by the clock (a guest that sleeps through WASI; many that take turns).
const WAIT_FACTOR: u32 = 50;

/// One instance's meter. Shared by the call (which polls) and the epoch callback (which runs inside that poll), hence
/// atomics; they are never contended.
pub(crate) struct Meter {
    base: Instant,
    budget: u64,
    max_wait: Duration,
    /// Nanoseconds since `base`.
    poll_started: AtomicU64,
    spent: AtomicU64,
}

/// The guest waited for so long instead of answering.
#[derive(Debug)]
pub(crate) struct WaitedTooLong(pub(crate) Duration);

/// Raised by the epoch callback.
#[derive(Debug)]
pub(crate) struct CpuExceeded;
impl std::fmt::Display for CpuExceeded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CPU budget exceeded")
    }
}
impl std::error::Error for CpuExceeded {}

impl Meter {
    pub(crate) fn new(budget: Duration) -> Self {
        Meter {
            base: Instant::now(),
            budget: nanos(budget),
            max_wait: (budget * WAIT_FACTOR).max(Duration::from_secs(1)),
            poll_started: AtomicU64::new(0),
            spent: AtomicU64::new(0),
        }
    }

    /// Nanoseconds since the instance was made.
    pub(crate) fn nanos(&self) -> u64 {
        nanos(self.base.elapsed())
    }

    fn this_poll(&self) -> u64 {
        let elapsed = self.nanos().saturating_sub(self.poll_started.load(Relaxed));
        elapsed.min(2 * nanos(TICK))
    }

    /// Asked by the epoch callback, in the middle of a poll.
    pub(crate) fn exceeded(&self) -> bool {
        self.spent.load(Relaxed) + self.this_poll() > self.budget
    }

    /// Runs one call; returns also the CPU time that it took.
    pub(crate) async fn run<F: Future>(
        &self,
        call: F,
    ) -> (Result<F::Output, WaitedTooLong>, Duration) {
        self.spent.store(0, Relaxed);
        let mut call = pin!(call);
        // Only for a call that does not answer at once, which is nearly none.
        let mut deadline = None;
        let out = std::future::poll_fn(|cx| {
            self.poll_started.store(self.nanos(), Relaxed);
            let polled = call.as_mut().poll(cx);
            self.spent.fetch_add(self.this_poll(), Relaxed);
            if let std::task::Poll::Ready(out) = polled {
                return std::task::Poll::Ready(Ok(out));
            }
            let deadline =
                deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.max_wait)));
            deadline
                .as_mut()
                .poll(cx)
                .map(|()| Err(WaitedTooLong(self.max_wait)))
        })
        .await;
        (out, Duration::from_nanos(self.spent.load(Relaxed)))
    }
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}
