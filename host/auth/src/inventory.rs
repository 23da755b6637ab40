//! Which services are there and when they were last heard of. What they announced is stored when it changes; the
//! time of the last heartbeat lives in memory, and after a restart every service is unheard of for some seconds.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

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
}

impl Seen {
    pub fn healthy(&self) -> bool {
        self.last.is_some_and(|(at, _)| at.elapsed() <= HEALTHY)
    }
}

/// See the module.
pub struct Inventory {
    kv: SharedKv,
    // Held for a lookup or a copy, never across an await.
    seen: RwLock<HashMap<AgentIdentity, Seen>>,
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
                },
            );
        }
        Ok(Inventory {
            kv,
            seen: RwLock::new(seen),
        })
    }

    /// A heartbeat.
    pub async fn heard(
        &self,
        id: &AgentIdentity,
        announced: Announced,
        rtt_ms: f64,
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

    /// Forgets a service; its record is deleted by who removed it.
    pub fn forget(&self, id: &AgentIdentity) {
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
