//! How often somebody may fail. Token buckets by key: an attempt takes, a success gives back.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Keys remembered at most; beyond that, full buckets are forgotten and then, if need be, all.
const MAX_KEYS: usize = 20_000;

/// See the module.
pub struct Limiter<K> {
    burst: f64,
    refill: Duration,
    // Held for a lookup, never across an await.
    buckets: Mutex<HashMap<K, Bucket>>,
}

struct Bucket {
    left: f64,
    at: Instant,
}

impl<K: Hash + Eq> Limiter<K> {
    /// `burst` attempts at once, then one each `refill`.
    pub fn new(burst: u32, refill: Duration) -> Self {
        Limiter {
            burst: f64::from(burst),
            refill,
            buckets: Mutex::new(HashMap::new()),
        }
    }

    /// Takes an attempt; `Err` says how long to wait for the next.
    pub fn take(&self, key: K) -> Result<(), Duration> {
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MAX_KEYS {
            buckets.retain(|_, b| self.level(b, now) < self.burst);
            if buckets.len() >= MAX_KEYS {
                buckets.clear();
            }
        }
        let bucket = buckets.entry(key).or_insert(Bucket {
            left: self.burst,
            at: now,
        });
        bucket.left = self.level(bucket, now);
        bucket.at = now;
        if bucket.left < 1.0 {
            return Err(self.refill.mul_f64(1.0 - bucket.left));
        }
        bucket.left -= 1.0;
        Ok(())
    }

    /// The attempt succeeded: it does not count.
    pub fn give_back(&self, key: &K) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = buckets.get_mut(key) {
            bucket.left = (bucket.left + 1.0).min(self.burst);
        }
    }

    fn level(&self, bucket: &Bucket, now: Instant) -> f64 {
        let gained =
            now.saturating_duration_since(bucket.at).as_secs_f64() / self.refill.as_secs_f64();
        (bucket.left + gained).min(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_run_out_and_successes_do_not_count() {
        let limiter = Limiter::new(2, Duration::from_secs(3600));
        for _ in 0..10 {
            limiter.take("alice").unwrap();
            limiter.give_back(&"alice");
        }
        limiter.take("alice").unwrap();
        limiter.take("alice").unwrap();
        let wait = limiter.take("alice").unwrap_err();
        assert!(
            wait > Duration::from_secs(3500) && wait <= Duration::from_secs(3600),
            "{wait:?}"
        );
        limiter.take("bob").unwrap();
    }

    #[test]
    fn it_refills_and_never_grows_without_bound() {
        let limiter = Limiter::new(1, Duration::from_millis(1));
        for key in 0..MAX_KEYS as u32 * 2 {
            limiter.take(key).unwrap();
        }
        assert!(limiter.buckets.lock().unwrap().len() <= MAX_KEYS);
    }
}
