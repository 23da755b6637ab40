//! How much those who have not said who they are may occupy: connections in all, connections per source, and
//! how often a source may be passed through to an agent, or ask one to cancel something.

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// Anonymous connections at the same time.
const MAX_TOTAL: usize = 4096;
/// From one source. Many agents may sit behind one address and come back together.
const MAX_PER_SOURCE: usize = 256;
/// Connections passed through to Auth, members' and strangers' alike (only Auth can tell them apart).
const MAX_PASSED: usize = 16_384;
/// From one source: every service of every agent behind an address keeps two.
const MAX_PASSED_PER_SOURCE: usize = 1024;
/// ClientHellos passed through to agents, per source: each costs an agent about half a millisecond of CPU and one of its 64 places,
/// and an application without a pool makes as many connections as it answers requests.
const DIRECT_PER_SECOND: NonZeroU32 = NonZeroU32::new(100).unwrap();
const DIRECT_BURST: NonZeroU32 = NonZeroU32::new(200).unwrap();
/// How long one that comes too early waits for its turn, as one of its source's anonymous connections.
const DIRECT_WAIT: Duration = Duration::from_secs(5);
/// Cancel requests passed on to agents, per source.
const CANCEL_PER_SECOND: NonZeroU32 = NonZeroU32::new(10).unwrap();
const CANCEL_BURST: NonZeroU32 = NonZeroU32::new(100).unwrap();
/// Sources remembered by the rate limiter before it forgets the idle ones.
const FORGET_ABOVE: usize = 10_000;

/// An address as rate limits see it: IPv6 hosts have whole /64 networks to themselves.
pub(crate) fn source(peer: SocketAddr) -> IpAddr {
    match peer.ip().to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip) & (u128::MAX << 64))),
    }
}

pub(crate) struct Budget {
    held: Arc<Mutex<Held>>,
    max_total: usize,
    max_per_source: usize,
    direct: DefaultKeyedRateLimiter<IpAddr>,
    cancel: DefaultKeyedRateLimiter<IpAddr>,
    direct_wait: Duration,
}

#[derive(Default)]
struct Held {
    total: usize,
    by_source: HashMap<IpAddr, usize>,
}

/// Held while a connection is anonymous.
pub(crate) struct Permit {
    held: Arc<Mutex<Held>>,
    source: IpAddr,
}

impl Budget {
    /// For those who have not said who they are.
    pub fn new() -> Self {
        Self::of(MAX_TOTAL, MAX_PER_SOURCE)
    }

    /// For what is passed through to Auth.
    pub fn passed() -> Self {
        Self::of(MAX_PASSED, MAX_PASSED_PER_SOURCE)
    }

    fn of(max_total: usize, max_per_source: usize) -> Self {
        Budget {
            held: Arc::default(),
            max_total,
            max_per_source,
            direct: RateLimiter::keyed(
                Quota::per_second(DIRECT_PER_SECOND).allow_burst(DIRECT_BURST),
            ),
            cancel: RateLimiter::keyed(
                Quota::per_second(CANCEL_PER_SECOND).allow_burst(CANCEL_BURST),
            ),
            direct_wait: DIRECT_WAIT,
        }
    }

    /// Room for one more anonymous connection, or which limit is reached.
    pub fn enter(&self, peer: SocketAddr) -> Result<Permit, &'static str> {
        let source = source(peer);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.total >= self.max_total {
            return Err("too many anonymous connections");
        }
        let of_source = held.by_source.entry(source).or_default();
        if *of_source >= self.max_per_source {
            return Err("too many anonymous connections from this address");
        }
        *of_source += 1;
        held.total += 1;
        Ok(Permit {
            held: self.held.clone(),
            source,
        })
    }

    /// Waits until this source may be passed through to an agent; false if it would have to wait for too long.
    pub async fn direct(&self, peer: SocketAddr) -> bool {
        forget(&self.direct);
        let source = source(peer);
        timeout(self.direct_wait, self.direct.until_key_ready(&source))
            .await
            .is_ok()
    }

    /// Whether a cancel request of this source may be passed on now: its keys must not be guessed.
    pub fn cancel(&self, peer: SocketAddr) -> bool {
        allowed(&self.cancel, peer)
    }
}

fn allowed(limit: &DefaultKeyedRateLimiter<IpAddr>, peer: SocketAddr) -> bool {
    forget(limit);
    limit.check_key(&source(peer)).is_ok()
}

fn forget(limit: &DefaultKeyedRateLimiter<IpAddr>) {
    if limit.len() > FORGET_ABOVE {
        limit.retain_recent();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.total = held.total.saturating_sub(1);
        if let Some(n) = held.by_source.get_mut(&self.source) {
            *n = n.saturating_sub(1);
            if *n == 0 {
                held.by_source.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(ip: &str) -> SocketAddr {
        SocketAddr::new(ip.parse().unwrap(), 1)
    }

    #[test]
    fn one_source_does_not_take_all_and_gives_back() {
        let budget = Budget::new();
        let held: Vec<_> = (0..MAX_PER_SOURCE)
            .map(|_| budget.enter(peer("10.0.0.1")).unwrap())
            .collect();
        assert!(budget.enter(peer("10.0.0.1")).is_err());
        assert!(budget.enter(peer("10.0.0.2")).is_ok());
        drop(held);
        assert!(budget.enter(peer("10.0.0.1")).is_ok());
    }

    #[tokio::test]
    async fn direct_is_limited_per_network() {
        let budget = Budget {
            direct_wait: Duration::from_millis(50),
            ..Budget::new()
        };
        let tries = (0..2000).map(|i| peer(&format!("2001:db8::{i:x}")));
        let tries = futures::future::join_all(tries.map(|p| budget.direct(p))).await;
        let passed = tries.into_iter().filter(|passed| *passed).count();
        assert!((200..1000).contains(&passed), "{passed}");
        assert!(budget.direct(peer("2001:db8:0:1::1")).await);
        assert_eq!(source(peer("::ffff:10.0.0.1")), source(peer("10.0.0.1")));
    }
}
