//! What a member decides from while Auth is away (D11): roles, trust and locks, fed by
//! a watch and kept on disk.

use crate::{backoff, unix_now};
use futures::StreamExt;
use postern_access::{Lock, Role};
use postern_api::v1::{self, watch_event::Change};
use postern_identity::{TrustBundle, store};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// One consistent state of what Auth published.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Snapshot {
    pub revision: u64,
    pub trust: Option<TrustBundle>,
    pub roles: BTreeMap<String, Role>,
    pub locks: BTreeMap<String, Lock>,
    /// When Auth was last heard, Unix seconds.
    pub heard_unix: u64,
}

impl Snapshot {
    /// Since when Auth has been silent.
    pub fn age(&self) -> Duration {
        Duration::from_secs(unix_now().saturating_sub(self.heard_unix))
    }

    /// The lock that stops any of these targets (`user:alice`, `host:…`), if one does.
    pub fn locked<'a>(&'a self, targets: &[String]) -> Option<&'a Lock> {
        targets
            .iter()
            .filter_map(|t| self.locks.get(t))
            .find(|l| l.expires_unix.is_none_or(|t| t > unix_now()))
    }

    /// The roles of these names; a role that no longer exists allows nothing.
    pub fn roles(&self, names: &[String]) -> Vec<Role> {
        names
            .iter()
            .filter_map(|n| self.roles.get(n))
            .cloned()
            .collect()
    }

    fn apply(&mut self, event: v1::WatchEvent) -> bool {
        self.revision = self.revision.max(event.revision);
        match event.change {
            Some(Change::Reset(_)) => {
                self.roles.clear();
                self.locks.clear();
            }
            Some(Change::RoleJson(json)) => match serde_json::from_str::<Role>(&json) {
                Ok(role) => {
                    self.roles.insert(role.name.clone(), role);
                }
                Err(e) => {
                    tracing::error!("a role from Auth can't be read, its users are refused: {e}");
                    if let Some(role) = deny_all(&json) {
                        self.roles.insert(role.name.clone(), role);
                    }
                }
            },
            Some(Change::RoleRemoved(name)) => {
                self.roles.remove(&name);
            }
            Some(Change::TrustJson(json)) => match serde_json::from_str(&json) {
                Ok(trust) => self.trust = Some(trust),
                Err(e) => tracing::error!("the trust bundle from Auth can't be read: {e}"),
            },
            Some(Change::LockJson(json)) => match serde_json::from_str::<Lock>(&json) {
                Ok(lock) => {
                    self.locks.insert(lock.target.clone(), lock);
                }
                Err(e) => {
                    tracing::error!("a lock from Auth can't be read, its target is locked: {e}");
                    if let Some(lock) = unreadable_lock(&json) {
                        self.locks.insert(lock.target.clone(), lock);
                    }
                }
            },
            Some(Change::LockRemoved(target)) => {
                self.locks.remove(&target);
            }
            Some(Change::SnapshotEnd(_)) => return true,
            Some(Change::Alive(_)) | None => {}
        }
        false
    }
}

/// What stands for a role that this version can't read: a deny rule may be in it, so all is denied.
fn deny_all(json: &str) -> Option<Role> {
    let name = serde_json::from_str::<serde_json::Value>(json).ok()?["name"]
        .as_str()?
        .to_owned();
    let everything = postern_access::Rule {
        labels: [("*".to_owned(), vec!["*".to_owned()])].into(),
        ..Default::default()
    };
    Some(Role {
        name,
        deny: [("*".to_owned(), everything)].into(),
        ..Role::default()
    })
}

/// What stands for a lock that this version can't read: it locks, without an end.
fn unreadable_lock(json: &str) -> Option<Lock> {
    let value: serde_json::Value = serde_json::from_str(json).ok()?;
    Some(Lock {
        target: value["target"].as_str()?.to_owned(),
        reason: "a lock that this version of Postern can't read".into(),
        expires_unix: None,
    })
}

/// The newest snapshot, for those who decide.
pub type Cache = watch::Receiver<Arc<Snapshot>>;

/// Channels to Auth, by the service that they authenticate.
pub type Ways = BTreeMap<String, Channel>;

/// Keeps the cache: reads it from disk, then follows Auth until dropped.
pub struct Feed {
    path: PathBuf,
    /// Another process owns the file now; this one goes on following.
    handed_over: CancellationToken,
    tx: watch::Sender<Arc<Snapshot>>,
}

impl Feed {
    /// Starts from what is on disk. A file that can't be read is put aside: the watch brings a new one.
    pub fn open(path: PathBuf) -> (Self, Cache) {
        let snapshot = match store::read_json::<Snapshot>(&path) {
            Ok(s) => s.unwrap_or_default(),
            Err(e) => {
                tracing::warn!("the cache of roles and locks is not used: {e}");
                let _ = std::fs::rename(&path, path.with_extension("bad"));
                Snapshot::default()
            }
        };
        let (tx, rx) = watch::channel(Arc::new(snapshot));
        let feed = Feed {
            path,
            handed_over: CancellationToken::new(),
            tx,
        };
        (feed, rx)
    }

    /// Cancelled, the file is written no more.
    pub fn handed_over(&self) -> CancellationToken {
        self.handed_over.clone()
    }

    /// Follows Auth through one of the channels that there are, and where it fails through the next: one of several
    /// services may be locked, and must not keep the others from hearing. Empty: no service has joined yet.
    pub async fn run(self, mut auth: watch::Receiver<Ways>) {
        let mut pause = backoff();
        let mut turn = 0usize;
        loop {
            let channel = loop {
                let way = {
                    let ways = auth.borrow_and_update();
                    ways.values().nth(turn % ways.len().max(1)).cloned()
                };
                if let Some(channel) = way {
                    break channel;
                }
                if auth.changed().await.is_err() {
                    return;
                }
            };
            match self.follow(channel).await {
                Ok(()) => pause = backoff(),
                Err(e) => {
                    turn = turn.wrapping_add(1);
                    tracing::debug!("watch of roles and locks: {e}");
                }
            }
            let wait = pause.next().unwrap_or(Duration::from_secs(8));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                r = auth.changed() => if r.is_err() { return },
            }
        }
    }

    /// One stream, until it ends. Ok if it brought a whole snapshot.
    async fn follow(&self, channel: Channel) -> Result<(), String> {
        let mut client = v1::agent_service_client::AgentServiceClient::new(channel);
        let mut stream = client
            .watch(v1::WatchRequest { from_revision: 0 })
            .await
            .map_err(|s| postern_api::status::describe(&s))?
            .into_inner();
        // A snapshot is applied as a whole: between Reset and SnapshotEnd a deny rule may be missing.
        let mut building: Option<Snapshot> = Some(Snapshot {
            trust: self.tx.borrow().trust.clone(),
            ..Snapshot::default()
        });
        let mut complete = false;
        loop {
            // Auth says "alive" every 10 s; three missed ones are a dead connection.
            let next = tokio::time::timeout(Duration::from_secs(35), stream.next()).await;
            let event = match next {
                Ok(Some(Ok(event))) => event,
                _ if complete => return Ok(()),
                Ok(Some(Err(s))) => return Err(postern_api::status::describe(&s)),
                Ok(None) => return Err("Auth ended the watch".into()),
                Err(_) => return Err("Auth has been silent for 35 s".into()),
            };
            if matches!(event.change, Some(Change::Reset(_))) && building.is_none() {
                building = Some(self.tx.borrow().as_ref().clone());
            }
            let heartbeat = matches!(event.change, Some(Change::Alive(_)));
            match &mut building {
                Some(snapshot) => {
                    if snapshot.apply(event) {
                        snapshot.heard_unix = unix_now();
                        let done = std::mem::take(snapshot);
                        building = None;
                        complete = true;
                        self.publish(done, true).await;
                    }
                }
                None => {
                    let mut snapshot = self.tx.borrow().as_ref().clone();
                    snapshot.apply(event);
                    snapshot.heard_unix = unix_now();
                    self.publish(snapshot, !heartbeat).await;
                }
            }
        }
    }

    async fn publish(&self, snapshot: Snapshot, save: bool) {
        if save && !self.handed_over.is_cancelled() {
            let (path, copy) = (self.path.clone(), snapshot.clone());
            let written =
                tokio::task::spawn_blocking(move || store::write_json(&path, &copy)).await;
            if let Ok(Err(e)) = written {
                tracing::error!(
                    "the cache of roles and locks can't be stored: {e}; after a restart without Auth the older one applies"
                );
            }
        }
        self.tx.send_replace(Arc::new(snapshot));
    }
}

#[cfg(test)]
mod tests;
