//! How many connections whom: a pool for each kind of caller, and in the pools of strangers a share for each
//! address, so that nobody can take all there is. Behind a proxy everybody has the proxy's address, so that an
//! address from which a proxy is connected has a larger share; the proxy sees to it that nobody takes all of that.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::network;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The TLS handshake has not ended.
    Handshake,
    /// No certificate, and no call yet.
    Stranger,
    Join,
    Login,
    /// With an agent's or a proxy's certificate.
    Agent,
    User,
}

/// The pools of the TLS port.
pub struct Budgets {
    handshakes: Pool,
    strangers: Pool,
    joins: Pool,
    logins: Pool,
    agents: Pool,
    users: Pool,
    /// Addresses of connected proxies.
    proxies: Arc<PerAddress>,
}

struct Pool {
    slots: Arc<Semaphore>,
    held: Arc<PerAddress>,
    /// Of one address; of one where a proxy is.
    shares: (usize, usize),
}

/// A place in a pool; dropping gives it back.
#[derive(Debug)]
pub struct Slot {
    _permit: OwnedSemaphorePermit,
    _share: Counted,
}

impl Budgets {
    pub fn new() -> Self {
        Budgets {
            handshakes: Pool::new(1024, 128, 768),
            strangers: Pool::new(1024, 128, 768),
            joins: Pool::new(512, 128, 384),
            logins: Pool::new(512, 128, 384),
            agents: Pool::new(8192, 8192, 8192),
            users: Pool::new(4096, 4096, 4096),
            proxies: Arc::default(),
        }
    }

    /// `None`: the pool is full, or the address has its share of it.
    pub fn take(&self, purpose: Purpose, ip: IpAddr) -> Option<Slot> {
        let pool = match purpose {
            Purpose::Handshake => &self.handshakes,
            Purpose::Stranger => &self.strangers,
            Purpose::Join => &self.joins,
            Purpose::Login => &self.logins,
            Purpose::Agent => &self.agents,
            Purpose::User => &self.users,
        };
        let ip = network(ip);
        let share = if self.proxies.of(ip) > 0 {
            pool.shares.1
        } else {
            pool.shares.0
        };
        let counted = PerAddress::count(&pool.held, ip, share)?;
        let permit = Arc::clone(&pool.slots).try_acquire_owned().ok()?;
        Some(Slot {
            _permit: permit,
            _share: counted,
        })
    }

    /// A proxy is connected from this address as long as the answer is kept.
    pub fn proxy_at(&self, ip: IpAddr) -> Option<Counted> {
        PerAddress::count(&self.proxies, network(ip), usize::MAX)
    }
}

impl Pool {
    fn new(all: usize, of_one: usize, of_proxy: usize) -> Self {
        Pool {
            slots: Arc::new(Semaphore::new(all)),
            held: Arc::default(),
            shares: (of_one, of_proxy),
        }
    }
}

#[derive(Debug, Default)]
struct PerAddress {
    // Held for a lookup, never across an await. An address is in it as long as it holds something.
    held: Mutex<HashMap<IpAddr, usize>>,
}

impl PerAddress {
    fn of(&self, ip: IpAddr) -> usize {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.get(&ip).copied().unwrap_or(0)
    }

    fn count(this: &Arc<Self>, ip: IpAddr, most: usize) -> Option<Counted> {
        let mut held = this.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.entry(ip).or_insert(0);
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Counted {
            of: Arc::clone(this),
            ip,
        })
    }
}

/// One of what an address holds.
#[derive(Debug)]
pub struct Counted {
    of: Arc<PerAddress>,
    ip: IpAddr,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut held = self.of.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.ip);
            }
        }
    }
}

/// The place of a stranger's connection: his first call says which pool he belongs into.
#[derive(Clone)]
pub struct Seat {
    budgets: Arc<Budgets>,
    ip: IpAddr,
    held: Arc<Mutex<(Purpose, Slot)>>,
}

impl std::fmt::Debug for Seat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seat").field("ip", &self.ip).finish()
    }
}

impl Seat {
    pub fn stranger(budgets: &Arc<Budgets>, ip: IpAddr) -> Option<Self> {
        let slot = budgets.take(Purpose::Stranger, ip)?;
        Some(Seat {
            budgets: Arc::clone(budgets),
            ip,
            held: Arc::new(Mutex::new((Purpose::Stranger, slot))),
        })
    }

    /// Whether there is a place for this purpose.
    pub fn change(&self, purpose: Purpose) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.0 == purpose {
            return true;
        }
        let Some(slot) = self.budgets.take(purpose, self.ip) else {
            return false;
        };
        *held = (purpose, slot);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_cannot_take_all() {
        let budgets = Arc::new(Budgets::new());
        let mut held = Vec::new();
        while let Some(slot) = budgets.take(Purpose::Stranger, ip("2001:db8::1")) {
            held.push(slot);
        }
        assert_eq!(held.len(), 128);
        assert!(budgets.take(Purpose::Stranger, ip("2001:db8::2")).is_none());
        assert!(budgets.take(Purpose::Stranger, ip("192.0.2.1")).is_some());
        held.clear();
        assert!(budgets.take(Purpose::Stranger, ip("2001:db8::2")).is_some());
        assert!(budgets.strangers.held.held.lock().unwrap().is_empty());
    }

    #[test]
    fn a_proxys_address_has_more_while_it_is_connected() {
        let budgets = Arc::new(Budgets::new());
        let proxy = budgets.proxy_at(ip("192.0.2.9")).unwrap();
        let take = || budgets.take(Purpose::Login, ip("192.0.2.9"));
        let held: Vec<Slot> = std::iter::from_fn(take).collect();
        assert_eq!(held.len(), 384);
        let elsewhere = || budgets.take(Purpose::Login, ip("192.0.2.1"));
        assert_eq!(
            std::iter::from_fn(elsewhere)
                .take(200)
                .collect::<Vec<_>>()
                .len(),
            128
        );
        drop((proxy, held));
        let held: Vec<Slot> = std::iter::from_fn(take).collect();
        assert_eq!(held.len(), 128);
    }

    #[test]
    fn joins_do_not_take_the_places_of_logins() {
        let budgets = Arc::new(Budgets::new());
        let mut seats = Vec::new();
        for _ in 0..128 {
            let seat = Seat::stranger(&budgets, ip("192.0.2.1")).unwrap();
            assert!(seat.change(Purpose::Join) && seat.change(Purpose::Join));
            seats.push(seat);
        }
        let late = Seat::stranger(&budgets, ip("192.0.2.1")).unwrap();
        assert!(!late.change(Purpose::Join));
        assert!(late.change(Purpose::Login));
    }
}
