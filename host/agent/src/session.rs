//! Takes streams from a service's tunnels and gives each to the right end: SSH for
//! plugins of world `ssh`, TLS for the others. Owns the limits on how many there are.

use crate::codec::{self, cancel::Cancels};
use crate::decide::{Decider, Offered};
use crate::ssh;
use postern_audit::Emitter;
use postern_config as config;
use postern_identity::AgentIdentity;
use postern_membership::{Credentials, Holding};
use postern_plugin::{Endpoint, Plugin, World};
use postern_tunnel::{StreamHeader, TunnelStream};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;
use uuid::Uuid;

/// Anonymous handshakes (`direct = true`) under way at once, apart from sessions.
const HANDSHAKES: usize = 64;
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
    /// The channel to Auth, once there is one.
    pub auth: watch::Receiver<Option<Channel>>,
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

/// The open sessions of a service, whatever tunnel they came through. Each keeps what it began with; what is served
/// next is exchanged by [`Sessions::serve`]. Cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    served: watch::Sender<Arc<Served>>,
    tracker: TaskTracker,
    handshakes: Arc<Semaphore>,
    open: Arc<AtomicU64>,
    /// The keys by which open sessions can be cancelled.
    cancels: Arc<Cancels>,
    /// Told whenever a session has ended.
    ended: Arc<Notify>,
    /// Ends the sessions when the service goes without waiting for them.
    cut: CancellationToken,
}

impl Sessions {
    pub fn new(served: Served) -> Self {
        let identity = AgentIdentity {
            host_id: served.decider.host_id.clone(),
            service: served.decider.service.clone(),
        };
        let (served, tracker) = (watch::Sender::new(Arc::new(served)), TaskTracker::new());
        tokio::spawn(codec::accounts::rounds(served.subscribe(), tracker.clone()));
        Sessions {
            cancels: Arc::new(Cancels::new(identity.cancel_route())),
            served,
            tracker,
            handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
            open: Arc::default(),
            ended: Arc::default(),
            cut: CancellationToken::new(),
        }
    }

    /// From now on sessions begin with this.
    pub fn serve(&self, served: Served) {
        self.served.send_replace(Arc::new(served));
    }

    pub fn open(&self) -> u64 {
        self.tracker.len() as u64
    }

    /// Resolves after a session has ended.
    pub async fn ended(&self) {
        self.ended.notified().await;
    }

    /// Waits until no session is open. Sessions may still be accepted meanwhile.
    pub async fn none_open(&self) {
        self.tracker.close();
        self.tracker.wait().await;
        self.tracker.reopen();
    }

    /// Ends all sessions, now and for good.
    pub fn cut(&self) {
        self.cut.cancel();
    }

    /// Begins a session for a stream of the tunnel, or refuses it.
    pub fn accept(&self, header: StreamHeader, stream: TunnelStream) {
        let served = self.served.borrow().clone();
        if header.cancel {
            return self.cancel(served, header, stream);
        }
        let Some(resource) = served.resource(&header) else {
            tracing::warn!(
                resource = header.resource,
                kind = header.kind,
                "the proxy asked for a resource that this service does not offer"
            );
            return;
        };
        let Some(credentials) = served.held.borrow().credentials.clone() else {
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
        self.spawn(served, arrival, handshake);
    }

    /// A cancel request that came in plaintext, from anybody.
    fn cancel(&self, served: Arc<Served>, header: StreamHeader, stream: TunnelStream) {
        let description = served.plugin.description();
        let may = description.world == World::Codec
            && description.wants.endpoints.contains(&Endpoint::Cancel);
        if !may || header.source.parse::<SocketAddr>().is_err() {
            tracing::warn!("the proxy passed on a cancel request that this service has no use for");
            return;
        }
        let Ok(permit) = self.handshakes.clone().try_acquire_owned() else {
            return;
        };
        let (cut, cancels) = (self.cut.clone(), self.cancels.clone());
        // Not one of the sessions: nobody waits for it.
        tokio::spawn(async move {
            let _permit = permit;
            let outcome = tokio::select! {
                r = codec::cancel::serve(&served, &cancels, header, stream) => r,
                () = cut.cancelled() => return,
            };
            if let Err(e) = outcome {
                tracing::info!(service = served.decider.service, "cancel request: {e}");
            }
        });
    }

    fn spawn(
        &self,
        served: Arc<Served>,
        arrival: Arrival,
        handshake: Option<OwnedSemaphorePermit>,
    ) {
        let (cut, ended) = (self.cut.clone(), self.ended.clone());
        let (cancels, tracker) = (self.cancels.clone(), self.tracker.clone());
        let slots = Slots {
            open: self.open.clone(),
            max: served.options.limits.max_sessions,
        };
        let kind = arrival.resource.id.kind.clone();
        self.tracker.spawn(async move {
            let live = metrics::gauge!("postern_agent_sessions", "kind" => kind.clone());
            live.increment(1.0);
            let session = async {
                match served.plugin.description().world {
                    World::Ssh => ssh::serve(&served, arrival, slots).await,
                    World::Codec => {
                        codec::serve(&served, arrival, cancels, &tracker, slots, handshake).await
                    }
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
            ended.notify_one();
        });
    }
}

impl Served {
    fn resource(&self, header: &StreamHeader) -> Option<Offered> {
        self.offered
            .iter()
            .find(|o| o.id.kind == header.kind && o.id.name == header.resource)
            .cloned()
    }
}

/// How many sessions a service may have.
pub struct Slots {
    open: Arc<AtomicU64>,
    max: u32,
}

/// One session's place among them.
pub struct Slot(Arc<AtomicU64>);

impl Slots {
    pub fn take(&self) -> Result<Slot, String> {
        let max = self.max;
        let room = |open| (open < u64::from(max)).then_some(open + 1);
        match self.open.fetch_update(Relaxed, Relaxed, room) {
            Ok(_) => Ok(Slot(self.open.clone())),
            Err(_) => Err(format!(
                "refused: {max} sessions are open, and limits.max_sessions allows no more"
            )),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The address in a header's `source`, where it is one.
pub fn source_ip(source: &str) -> Option<std::net::IpAddr> {
    source.parse::<SocketAddr>().ok().map(|a| a.ip())
}
