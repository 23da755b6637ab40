//! Takes streams from a service's tunnel and gives each to the right front: SSH for
//! plugins of world `ssh`, TLS for the others. Owns the limits on how many there are.

use crate::codec;
use crate::decide::{Decider, Offered};
use crate::ssh;
use crate::status::{ServiceState, ServiceStatus, set_state};
use postern_audit::Emitter;
use postern_config as config;
use postern_membership::{Credentials, Holding};
use postern_plugin::{Plugin, World};
use postern_tunnel::{Incoming, StreamHeader, TunnelClient, TunnelStream};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// Anonymous handshakes (`direct = true`) under way at once, apart from sessions.
const HANDSHAKES: usize = 64;
/// For the proxy to hear that no new streams are wanted.
const TOLD: Duration = Duration::from_secs(1);
/// What an anonymous peer has for its TLS handshake.
pub const HANDSHAKE: Duration = Duration::from_secs(5);

/// What a service serves its sessions with.
pub struct Served {
    pub decider: Decider,
    pub plugin: Plugin,
    /// JSON
    pub settings: String,
    pub offered: Vec<Offered>,
    pub held: watch::Receiver<Holding>,
    pub audit: Emitter,
    pub options: config::Service,
    pub own_sockets: Vec<SocketAddr>,
}

/// One stream on its way to becoming a session.
pub struct Arrival {
    pub header: StreamHeader,
    pub stream: TunnelStream,
    pub resource: Offered,
    pub credentials: Arc<Credentials>,
    pub session_id: String,
}

/// The open sessions of a service.
pub struct Sessions {
    served: Arc<Served>,
    tracker: TaskTracker,
    handshakes: Arc<Semaphore>,
    slots: Slots,
    /// Ends the sessions when the service goes without waiting for them.
    cut: CancellationToken,
}

impl Sessions {
    pub fn new(served: Served) -> Self {
        Sessions {
            handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
            slots: Slots {
                free: Arc::new(Semaphore::new(served.options.limits.max_sessions as usize)),
                max: served.options.limits.max_sessions,
            },
            tracker: TaskTracker::new(),
            cut: CancellationToken::new(),
            served: Arc::new(served),
        }
    }

    pub fn open(&self) -> u64 {
        self.tracker.len() as u64
    }

    /// Accepts until drained, then waits for the sessions that are open.
    pub async fn run(
        &self,
        mut incoming: mpsc::Receiver<Incoming>,
        tunnel: &TunnelClient,
        drain: CancellationToken,
        status: &watch::Sender<ServiceStatus>,
    ) {
        loop {
            let next = tokio::select! {
                next = incoming.recv() => next,
                () = drain.cancelled() => break,
            };
            match next {
                Some(Incoming { header, stream }) => self.accept(header, stream),
                None => break,
            }
        }
        set_state(status, ServiceState::Draining, None);
        // What the proxy sent before it heard of the drain is served all the same.
        let late = async {
            while let Some(Incoming { header, stream }) = incoming.recv().await {
                self.accept(header, stream);
            }
            std::future::pending().await
        };
        let drained = async {
            // By then the proxy has been told and sends nothing more; how long the sessions take is for the tracker.
            let _ = tokio::time::timeout(TOLD, tunnel.drain()).await;
            self.tracker.close();
            self.tracker.wait().await;
        };
        tokio::select! {
            () = drained => {}
            () = late => {}
        }
    }

    fn accept(&self, header: StreamHeader, stream: TunnelStream) {
        let Some(resource) = self.resource(&header) else {
            tracing::warn!(
                resource = header.resource,
                kind = header.kind,
                "the proxy asked for a resource that this service does not offer"
            );
            return;
        };
        let Some(credentials) = self.served.held.borrow().credentials.clone() else {
            return;
        };
        // The proxy is not trusted for more than routing: what it says ends up in audit events and checks.
        if header.source.parse::<SocketAddr>().is_err() {
            tracing::warn!("the proxy opened a stream without the client's address");
            return;
        }
        let handshake = if header.direct {
            match self.handshakes.clone().try_acquire_owned() {
                Ok(permit) => Some(permit),
                Err(_) => return,
            }
        } else {
            None
        };
        let arrival = Arrival {
            session_id: Uuid::now_v7().to_string(),
            header,
            stream,
            resource,
            credentials,
        };
        self.spawn(arrival, handshake);
    }

    fn spawn(&self, arrival: Arrival, handshake: Option<OwnedSemaphorePermit>) {
        let (served, cut) = (self.served.clone(), self.cut.clone());
        let slots = self.slots.clone();
        let kind = arrival.resource.id.kind.clone();
        self.tracker.spawn(async move {
            let live = metrics::gauge!("postern_agent_sessions", "kind" => kind.clone());
            live.increment(1.0);
            let session = async {
                match served.plugin.description().world {
                    World::Ssh => ssh::serve(&served, arrival, slots).await,
                    World::Codec => codec::serve(&served, arrival, slots, handshake).await,
                }
            };
            let outcome = tokio::select! {
                r = session => r,
                () = cut.cancelled() => Err("the service was stopped".to_owned()),
            };
            live.decrement(1.0);
            let word = if outcome.is_ok() { "ok" } else { "error" };
            metrics::counter!("postern_agent_sessions_total", "kind" => kind, "outcome" => word)
                .increment(1);
            if let Err(e) = outcome {
                tracing::info!(service = served.decider.service, "session: {e}");
            }
        });
    }

    fn resource(&self, header: &StreamHeader) -> Option<Offered> {
        self.served
            .offered
            .iter()
            .find(|o| o.id.kind == header.kind && o.id.name == header.resource)
            .cloned()
    }
}

/// How many sessions a service may have.
#[derive(Clone)]
pub struct Slots {
    free: Arc<Semaphore>,
    max: u32,
}

impl Slots {
    pub fn take(&self) -> Result<OwnedSemaphorePermit, String> {
        let max = self.max;
        self.free.clone().try_acquire_owned().map_err(|_| {
            format!("refused: {max} sessions are open, and limits.max_sessions allows no more")
        })
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        self.cut.cancel();
    }
}

/// The address in a header's `source`, where it is one.
pub fn source_ip(source: &str) -> Option<std::net::IpAddr> {
    source.parse::<SocketAddr>().ok().map(|a| a.ip())
}
