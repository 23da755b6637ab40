//! One entry of `[services]` while it runs. Services share nothing but the host key and the cache of roles, so that
//! adding, changing or removing one disturbs no other (D1).
//!
//! - `spec`: what a service shall be;
//! - `actor`: brings what is there to what shall be, for as long as the service lives;
//! - `member`, `front`, `beat`: its parts, each replaced when what it depends on changes;
//! - `health`: whether the addresses of its resources answer;
//! - `trial`: a new plugin version, and the way back;
//! - `leave`: what remains to be done for a removed service.

mod actor;
mod beat;
mod front;
mod health;
mod leave;
mod member;
mod spec;
mod trial;

pub use actor::Desired;
pub use spec::{Common, Spec};

use crate::AgentError;
use crate::status::{ServiceState, ServiceStatus};
use postern_audit::Event;
use postern_identity::HostKey;
use postern_membership::{Cache, Ways};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

/// For what is left to be done behind sessions that were ended.
const CUT: Duration = Duration::from_secs(5);
/// Notes that wait to be written; more are lost, and said to be.
const NOTES: usize = 64;

/// What all services of the host share for the life of the process.
pub struct Shared {
    pub cluster: String,
    pub data_dir: PathBuf,
    pub host_key: Arc<HostKey>,
    pub cache: Cache,
    /// Where the watch of roles and locks finds a way to Auth.
    pub auth: watch::Sender<Ways>,
}

/// A running service, or one that is going.
pub struct Service {
    desired: watch::Sender<Desired>,
    status: watch::Receiver<ServiceStatus>,
    /// As it is served: after a rollback with the old plugin.
    served: watch::Receiver<Option<Arc<Spec>>>,
    notes: mpsc::Sender<Event>,
    task: AbortOnDropHandle<()>,
}

impl Service {
    pub fn start(name: &str, desired: Desired, shared: Arc<Shared>) -> Self {
        let (status_tx, status) = watch::channel(ServiceStatus {
            name: name.to_owned(),
            ..ServiceStatus::default()
        });
        let (desired, desired_rx) = watch::channel(desired);
        let (served_tx, served) = watch::channel(None);
        let (notes, notes_rx) = mpsc::channel(NOTES);
        let name = name.to_owned();
        let task = tokio::spawn(async move {
            let outlet = actor::Outlet {
                status: status_tx,
                served: served_tx,
            };
            if let Err(e) = actor::run(&name, shared, desired_rx, notes_rx, &outlet).await {
                tracing::error!(service = name, "{e}");
                outlet.state(ServiceState::Failed, Some(e.to_string()));
                // The status must go on saying so.
                outlet.status.closed().await;
            }
        });
        Service {
            desired,
            status,
            served,
            notes,
            task: AbortOnDropHandle::new(task),
        }
    }

    /// What it shall be from now on. False: it is gone altogether, start another one.
    #[must_use]
    pub fn set(&self, desired: Desired) -> bool {
        self.lives() && self.desired.send(desired).is_ok()
    }

    /// What it shall be, as last said.
    pub fn desired(&self) -> Desired {
        self.desired.borrow().clone()
    }

    /// Another process takes over: what is open is served on, nothing else is done.
    pub fn hand_over(&self) {
        if let Desired::Run(spec) = self.desired() {
            let _ = self.desired.send(Desired::HandedOver(spec));
        } else {
            let _ = self.desired.send(Desired::Stop);
        }
    }

    /// Writes an event into the service's audit spool.
    pub fn note(&self, event: Event) {
        if let Err(e) = self.notes.try_send(event) {
            tracing::error!("audit event lost: {e}");
        }
    }

    pub fn status(&self) -> watch::Receiver<ServiceStatus> {
        self.status.clone()
    }

    /// What new connections get, and the digest of a plugin that was taken back.
    pub fn serves(&self) -> (Option<Arc<Spec>>, Option<String>) {
        let rejected = self.status.borrow().rolled_back.clone().map(|r| r.sha256);
        let wanted = match &*self.desired.borrow() {
            Desired::Run(spec) | Desired::HandedOver(spec) => Some(spec.clone()),
            Desired::Gone(_) | Desired::Stop | Desired::Cut => None,
        };
        let back = wanted
            .as_ref()
            .is_some_and(|spec| rejected.as_deref() == Some(spec.plugin.digest()));
        if back {
            return (self.served.borrow().clone().or(wanted), rejected);
        }
        (wanted, rejected)
    }

    /// Its work is done, or its task failed altogether.
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    /// Neither finished nor failed.
    pub fn lives(&self) -> bool {
        !self.task.is_finished() && self.status.borrow().state != ServiceState::Failed
    }

    /// No new sessions; returns when the last one has ended or the time is up. Its place in the cluster stays.
    pub async fn stop(mut self, timeout: Duration) {
        if self.status.borrow().state == ServiceState::Failed
            || self.desired.send(Desired::Stop).is_err()
        {
            return;
        }
        if tokio::time::timeout(timeout, &mut self.task).await.is_err() {
            {
                let status = self.status.borrow();
                tracing::warn!(
                    service = status.name,
                    "{} sessions were still open after {timeout:?} and are ended",
                    status.sessions
                );
            }
            // What they have left at servers is still to be taken back.
            if self.desired.send(Desired::Cut).is_ok() {
                let _ = tokio::time::timeout(CUT, &mut self.task).await;
            }
        }
    }
}

/// Why the actor of a service ended, for [`AgentError::Service`].
fn of_service(name: &str, why: impl std::fmt::Display) -> AgentError {
    AgentError::Service(format!("service {name:?}: {why}"))
}
