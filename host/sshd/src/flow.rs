//! Flow control towards the client, for processes that read slowly or not at all.
//!
//! russh gives a channel's window back when bytes *arrive*, not when they are consumed, and its loop, which moves everything of a
//! connection, waits when a channel's queue is full. Left alone, a process that waits for its output to be read before it reads its
//! input (`cat`, `gzip -c`, `rsync`) stops the loop, and with it its own output: for ever. So a channel's task takes in whatever
//! comes at once, and the loop is slowed here instead, for moments:
//!
//! - more than [`SOFT`] bytes wait: the loop pauses up to 10 ms for the process, unless output is waiting to go;
//! - more than [`HARD`] wait: windows are given back two bytes at a time ([`TRICKLE`]), so that the client stops but for a probe
//!   now and then, each of which tells us to look whether the process has moved on. The window is the connection's, as russh has
//!   it: other uploads of that connection wait too.
//!
//! What can wait in memory is [`HARD`] and what the client's windows still held.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::Notify;

/// A channel's window, and what the connection begins with.
pub const WINDOW: u32 = 2 << 20;
/// The window while the client is to stop.
pub const TRICKLE: u32 = 2;
const SOFT: i64 = 1 << 20;
const HARD: i64 = 2 << 20;

/// One channel's account.
#[derive(Default)]
pub struct Flow {
    /// Arrived and not written yet. The loop adds after the channel's task may have subtracted: briefly below zero at times.
    queued: AtomicI64,
    /// Sends to the client under way.
    sending: AtomicU32,
    /// Waits in a row that brought nothing.
    in_vain: AtomicU32,
    moved: Notify,
    totals: Arc<Totals>,
}

/// Payload bytes of a whole connection.
#[derive(Default)]
pub struct Totals {
    /// From the client.
    pub bytes_in: AtomicU64,
    /// To the client.
    pub bytes_out: AtomicU64,
}

impl Flow {
    pub fn new(totals: Arc<Totals>) -> Self {
        Flow {
            totals,
            ..Default::default()
        }
    }

    /// The loop has passed `n` bytes of the client on: waits until more are welcome, but never long.
    pub async fn arrived(&self, n: usize, trickling: bool) {
        self.totals.bytes_in.fetch_add(n as u64, Relaxed);
        let queued = self.queued.fetch_add(n as i64, Relaxed) + n as i64;
        if queued <= SOFT {
            return;
        }
        let patience = if trickling {
            Duration::from_millis(1 << self.in_vain.load(Relaxed).min(5))
        } else {
            Duration::from_millis(10)
        };
        let room = async {
            while self.queued.load(Relaxed) > SOFT && (trickling || self.sending.load(Relaxed) == 0)
            {
                self.moved.notified().await;
            }
        };
        if tokio::time::timeout(patience, room).await.is_err() {
            self.in_vain.fetch_add(1, Relaxed);
        }
    }

    /// The process has read (or will never read) `n` bytes.
    pub fn written(&self, n: usize) {
        self.queued.fetch_sub(n as i64, Relaxed);
        self.in_vain.store(0, Relaxed);
        self.moved.notify_one();
    }

    /// Output is on its way to the loop.
    pub fn sending(&self) {
        self.sending.fetch_add(1, Relaxed);
        self.moved.notify_one();
    }

    pub fn sent(&self, n: usize) {
        self.sending.fetch_sub(1, Relaxed);
        self.totals.bytes_out.fetch_add(n as u64, Relaxed);
    }

    /// Whether the client should stop for this channel.
    pub fn is_stuck(&self) -> bool {
        self.queued.load(Relaxed) > HARD
    }

    /// Nothing waits any more: the channel ended.
    pub fn close(&self) {
        self.queued.store(i64::MIN / 2, Relaxed);
        self.moved.notify_one();
    }

    pub fn is_closed(&self) -> bool {
        self.queued.load(Relaxed) < i64::MIN / 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waits_for_the_process_but_never_long() {
        let flow = Flow::default();
        flow.arrived(SOFT as usize, false).await;
        let before = tokio::time::Instant::now();
        flow.arrived(1, false).await;
        assert!(before.elapsed() >= Duration::from_millis(10));
        assert_eq!(flow.in_vain.load(Relaxed), 1);
        assert!(!flow.is_stuck());
        flow.arrived(HARD as usize, false).await;
        assert!(flow.is_stuck());
        flow.written(HARD as usize);
        assert!(!flow.is_stuck());
    }

    #[tokio::test]
    async fn goes_on_as_soon_as_there_is_room() {
        let flow = Arc::new(Flow::default());
        flow.arrived(SOFT as usize, false).await;
        let waiting = tokio::spawn({
            let flow = flow.clone();
            async move { flow.arrived(100, false).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        flow.written(200);
        waiting.await.unwrap();
        assert_eq!(flow.in_vain.load(Relaxed), 0, "not by its patience");
    }

    #[tokio::test]
    async fn does_not_hold_up_output() {
        let flow = Flow::default();
        flow.sending();
        flow.arrived(2 * SOFT as usize, false).await;
        flow.arrived(1, false).await;
        assert_eq!(flow.in_vain.load(Relaxed), 0);
        // But a probe is not answered in a hurry: that would be a busy loop over the network.
        let before = tokio::time::Instant::now();
        flow.arrived(1, true).await;
        flow.arrived(1, true).await;
        assert!(before.elapsed() >= Duration::from_millis(3));
    }
}
