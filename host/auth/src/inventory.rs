//! Which services are there and when they were last heard of. What they announced is stored when it changes; the
//! time of the last heartbeat, and what it said of the servers behind the resources, lives in memory, and after a restart
//! every service is unheard of for some seconds.

use std::collections::{BTreeMap, HashMap};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use postern_api::v1::Unreachable;
use postern_identity::AgentIdentity;

use crate::kv::{KvError, KvExt, SharedKv};
use crate::records::{self, Announced, Record};

/// A service is healthy if it was heard of this recently: three heartbeats.
pub const HEALTHY: Duration = Duration::from_secs(30);

/// What is known of one service.
#[derive(Debug, Clone)]
pub struct Seen {
    pub announced: Announced,
    /// `None`: not since this Auth Service started.
    pub last: Option<(Instant, SystemTime)>,
    pub rtt_ms: f64,
    /// Resources whose addresses do not answer this service, by name.
    pub unreachable: BTreeMap<String, Unreachable>,
}

impl Seen {
    pub fn healthy(&self) -> bool {
        self.last.is_some_and(|(at, _)| at.elapsed() <= HEALTHY)
    }
}

/// A refusal is shown for so long after its last repetition; agents ask again at least every minute.
const REFUSED: Duration = Duration::from_secs(300);
/// Refusals remembered of one host, and of all.
const REFUSED_PER_HOST: usize = 64;
const REFUSED_AT_ALL: usize = 10_000;

/// Why a service of a known host has not joined, or can't renew.
#[derive(Debug, Clone)]
pub struct Refused {
    pub kind: String,
    pub message: String,
    pub at: SystemTime,
    seen: Instant,
}

/// See the module.
pub struct Inventory {
    kv: SharedKv,
    // Held for a lookup or a copy, never across an await.
    seen: RwLock<HashMap<AgentIdentity, Seen>>,
    refused: RwLock<HashMap<AgentIdentity, Refused>>,
}

impl Inventory {
    pub async fn open(kv: SharedKv) -> Result<Self, KvError> {
        let mut seen = HashMap::new();
        for record in records::all::<Announced>(&kv).await? {
            let announced = record.value;
            let id = AgentIdentity {
                host_id: announced.host_id.clone(),
                service: announced.service.clone(),
            };
            seen.insert(
                id,
                Seen {
                    announced,
                    last: None,
                    rtt_ms: 0.0,
                    unreachable: BTreeMap::new(),
                },
            );
        }
        Ok(Inventory {
            kv,
            seen: RwLock::new(seen),
            refused: RwLock::default(),
        })
    }

    /// A heartbeat.
    pub async fn heard(
        &self,
        id: &AgentIdentity,
        announced: Announced,
        rtt_ms: f64,
        unreachable: BTreeMap<String, Unreachable>,
    ) -> Result<(), KvError> {
        let last = Some((Instant::now(), SystemTime::now()));
        let changed = {
            let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
            let previous = seen.insert(
                id.clone(),
                Seen {
                    announced: announced.clone(),
                    last,
                    rtt_ms,
                    unreachable,
                },
            );
            previous.is_none_or(|p| p.announced != announced)
        };
        if changed {
            self.kv
                .put(
                    &Announced::key(&id.host_id, &id.service),
                    announced.encode(),
                )
                .await?;
        }
        Ok(())
    }

    /// A join of a host that is known here was refused.
    pub fn join_refused(&self, id: AgentIdentity, kind: &str, message: &str) {
        let mut refused = self.refused.write().unwrap_or_else(PoisonError::into_inner);
        refused.retain(|_, r| r.seen.elapsed() < REFUSED);
        let of_host = refused.keys().filter(|k| k.host_id == id.host_id).count();
        let room = of_host < REFUSED_PER_HOST && refused.len() < REFUSED_AT_ALL;
        if room || refused.contains_key(&id) {
            let why = Refused {
                kind: kind.to_owned(),
                message: message.to_owned(),
                at: SystemTime::now(),
                seen: Instant::now(),
            };
            refused.insert(id, why);
        }
    }

    pub fn joined(&self, id: &AgentIdentity) {
        self.refused
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }

    /// The services whose last join was refused.
    pub fn refused(&self) -> HashMap<AgentIdentity, Refused> {
        let refused = self.refused.read().unwrap_or_else(PoisonError::into_inner);
        let recent = refused.iter().filter(|(_, r)| r.seen.elapsed() < REFUSED);
        recent.map(|(id, r)| (id.clone(), r.clone())).collect()
    }

    /// Forgets a service; its record is deleted by who removed it.
    pub fn forget(&self, id: &AgentIdentity) {
        self.joined(id);
        self.seen
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }

    pub fn get(&self, id: &AgentIdentity) -> Option<Seen> {
        self.seen
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned()
    }

    pub fn all(&self) -> Vec<(AgentIdentity, Seen)> {
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        seen.iter().map(|(id, s)| (id.clone(), s.clone())).collect()
    }
}
