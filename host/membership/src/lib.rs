//! Being a member of a cluster: how one service (of an agent, or a proxy) gets its credentials,
//! keeps them alive, and follows what Auth publishes (D1, D3, D11).
//!
//! - `credentials`: keys, certificates and the unanswered join, on disk;
//! - `join`: the one call that joins and renews;
//! - `hold`: when to make it, and what to do when it is refused;
//! - `heartbeat`: what Auth hears of it;
//! - `cache`: roles, trust and locks, followed by a watch and kept on disk.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod cache;
mod credentials;
mod heartbeat;
mod hold;
mod join;
mod proof;

pub use cache::{Cache, Feed, Snapshot, Ways};
pub use credentials::{Credentials, MemberDir};
pub use heartbeat::{heartbeat, hostname};
pub use hold::{Holding, hold};
pub use join::{JoinError, Joiner, RootOfTrust};
pub use proof::{ProofError, TokenSource};

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Unix time in seconds.
pub fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

/// 0.2 s to 8 s, with jitter, without end.
pub fn backoff() -> impl Iterator<Item = Duration> + Send {
    use backon::BackoffBuilder;
    backon::ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(8))
        .with_jitter()
        .without_max_times()
        .build()
}
