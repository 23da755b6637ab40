//! How often somebody may fail. Token buckets by key: an attempt takes, a success gives back.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Keys remembered at most; beyond that, full buckets are forgotten and then, if need be, those longest untouched.
const MAX_KEYS: usize = 20_000;

/// See the module. A key is kept as its (keyed) hash: what strangers send takes no more room the longer it is.
pub struct Limiter {
    burst: f64,
    refill: Duration,
    hasher: RandomState,
    // Held for a lookup, never across an await.
    buckets: Mutex<HashMap<u64, Bucket>>,
}

struct Bucket {
    left: f64,
    at: Instant,
}

/// What counts as one address: a whole /64 of IPv6, which is what one machine has.
pub fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

impl Limiter {
    /// `burst` attempts at once, then one each `refill`.
    pub fn new(burst: u32, refill: Duration) -> Self {
        Limiter {
            burst: f64::from(burst),
            refill,
            hasher: RandomState::new(),
            buckets: Mutex::new(HashMap::new()),
        }
    }

    /// Takes an attempt; `Err` says how long to wait for the next.
    pub fn take(&self, key: impl Hash) -> Result<(), Duration> {
        let now = Instant::now();
        let key = self.hasher.hash_one(key);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MAX_KEYS && !buckets.contains_key(&key) {
            self.make_room(&mut buckets, now);
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
    pub fn give_back(&self, key: impl Hash) {
        let key = self.hasher.hash_one(key);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = buckets.get_mut(&key) {
            bucket.left = (bucket.left + 1.0).min(self.burst);
        }
    }

    /// Forgets a quarter at once, so that a flood of new keys does not pay for this each time.
    fn make_room(&self, buckets: &mut HashMap<u64, Bucket>, now: Instant) {
        buckets.retain(|_, b| self.level(b, now) < self.burst);
        if buckets.len() > MAX_KEYS * 3 / 4 {
            let mut ages: Vec<Instant> = buckets.values().map(|b| b.at).collect();
            let (_, oldest_kept, _) = ages.select_nth_unstable(MAX_KEYS / 4);
            let oldest_kept = *oldest_kept;
            buckets.retain(|_, b| b.at > oldest_kept);
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
            limiter.give_back("alice");
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

    #[test]
    fn a_flood_of_keys_does_not_forgive_the_latest() {
        let limiter = Limiter::new(1, Duration::from_secs(3600));
        for key in 0..MAX_KEYS {
            limiter.take(key).unwrap();
        }
        limiter.take("mallory").unwrap();
        for key in 0..MAX_KEYS / 8 {
            limiter.take(("more", key)).unwrap();
        }
        limiter.take("mallory").unwrap_err();
        assert!(limiter.buckets.lock().unwrap().len() <= MAX_KEYS);
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let of = |ip: &str| network(ip.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
