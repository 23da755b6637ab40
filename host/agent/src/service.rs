//! One entry of `[services]` while it runs: its plugin, credentials, tunnel, heartbeat and
//! sessions. Services share nothing but the host key and the cache, so that adding or
//! removing one disturbs no other (D1).

use crate::AgentError;
use crate::decide::{Decider, Offered};
use crate::plugins::PluginDirs;
use crate::session::{Served, Sessions};
use crate::status::{ServiceState, ServiceStatus, set_state};
use postern_api::v1::HeartbeatRequest;
use postern_audit::Spool;
use postern_config as config;
use postern_identity::{HostKey, ResourceId};
use postern_membership::{
    Cache, Credentials, Holding, Joiner, MemberDir, RootOfTrust, TokenSource, heartbeat, hold,
    hostname,
};
use postern_plugin::{Limits, Plugin, PluginSource, Runtime};
use postern_tunnel::{
    AnnouncedResource, Announcement, Credentials as TunnelCredentials, TunnelClient,
    TunnelClientOptions, TunnelState,
};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// Spooled audit events of one service take no more disk than this.
const SPOOL_BYTES: u64 = 256 << 20;
/// At an orderly end, for Auth to take the last events.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// What all services of the host have in common.
pub struct Shared {
    pub cluster: String,
    pub data_dir: PathBuf,
    pub proxy_addr: String,
    pub transport: config::Transport,
    pub warm: u32,
    pub lock_mode: config::LockMode,
    pub root: RootOfTrust,
    pub join_params: Option<config::JoinParams>,
    pub host_key: Arc<HostKey>,
    pub runtime: Runtime,
    pub plugin_dirs: PluginDirs,
    pub cache: Cache,
    /// Where the watch of roles and locks finds a way to Auth.
    pub auth: watch::Sender<Option<Channel>>,
    /// posternd's own sockets: no session may reach them by forwarding.
    pub own_sockets: Vec<SocketAddr>,
    pub http_proxy: Option<String>,
}

/// A running service.
pub struct Service {
    status: watch::Receiver<ServiceStatus>,
    drain: CancellationToken,
    task: JoinHandle<()>,
}

impl Service {
    pub fn start(name: String, service: config::Service, shared: Arc<Shared>) -> Self {
        let (tx, status) = watch::channel(ServiceStatus {
            name: name.clone(),
            plugin: service.plugin.clone(),
            resources: service.resources.iter().map(|r| r.name.clone()).collect(),
            ..ServiceStatus::default()
        });
        let drain = CancellationToken::new();
        let task = tokio::spawn({
            let drain = drain.clone();
            async move {
                if let Err(e) = run(&name, service, shared, &tx, drain).await {
                    tracing::error!(service = name, "{e}");
                    set_state(&tx, ServiceState::PluginFailed, Some(e.to_string()));
                    // The status must go on saying so.
                    tx.closed().await;
                }
            }
        });
        Service {
            status,
            drain,
            task,
        }
    }

    pub fn status(&self) -> ServiceStatus {
        self.status.borrow().clone()
    }

    /// No new sessions; returns when the last one has ended or the time is up.
    pub async fn drain(mut self, timeout: Duration) {
        self.drain.cancel();
        if self.status().state == ServiceState::PluginFailed {
            return;
        }
        if tokio::time::timeout(timeout, &mut self.task).await.is_err() {
            let left = self.status().sessions;
            tracing::warn!(
                service = self.status().name,
                "{left} sessions were still open after {timeout:?} and are ended"
            );
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    name: &str,
    service: config::Service,
    shared: Arc<Shared>,
    status: &watch::Sender<ServiceStatus>,
    drain: CancellationToken,
) -> Result<(), AgentError> {
    let dir = MemberDir::open(shared.data_dir.join("services").join(name))?;
    let (spool, audit) = Spool::open(&dir.path().join("spool"), SPOOL_BYTES).await?;
    let settings = service.settings_json();
    let plugin = load_plugin(name, &service, &settings, &shared).await?;
    let kind = service
        .kind
        .clone()
        .unwrap_or_else(|| plugin.description().kind.clone());
    status.send_modify(|s| {
        s.kind = kind.clone();
        s.plugin = format!("{} {}", service.plugin, plugin.description().version);
    });
    let offered = offered(name, &kind, &service)?;
    let joiner = Joiner {
        cluster: shared.cluster.clone(),
        addr: shared.proxy_addr.clone(),
        service: name.to_owned(),
        kind: kind.clone(),
        names: offered.iter().map(|o| o.id.name.clone()).collect(),
        host_key: shared.host_key.clone(),
        token: service
            .join_params
            .clone()
            .or_else(|| shared.join_params.clone())
            .map_or(TokenSource::None, TokenSource::Params),
        root: shared.root.clone(),
        dir,
    };
    let host_id = shared.host_key.host_id();
    set_state(status, ServiceState::Joining, None);
    let (tx, mut held) = watch::channel(Holding::default());
    // Everything below lives in this task: dropping it ends all of it.
    let rejoin = Arc::new(Notify::new());
    let holding = hold(joiner, tx, rejoin.clone());
    let joining = follow_joining(held.clone(), status);
    let serving = async {
        let first = Holding::first(&mut held).await;
        let auth_channel = |c: &Credentials| c.auth_channel(&shared.proxy_addr, &shared.cluster);
        let (auth_tx, auth) = watch::channel(auth_channel(&first)?);
        shared.auth.send_modify(|c| {
            c.get_or_insert_with(|| auth.borrow().clone());
        });
        until_roles_known(&shared.cache, status).await;
        let (tunnel_tx, tunnel_rx) = watch::channel(tunnel_credentials(&first));
        let (_announce, announced) = watch::channel(announcement(&kind, &offered));
        let (tunnel, incoming) = postern_tunnel::client(
            TunnelClientOptions {
                proxy_addr: shared.proxy_addr.clone(),
                transport: transport(shared.transport),
                cluster: shared.cluster.clone(),
                host_id: host_id.clone(),
                service: name.to_owned(),
                warm: shared.warm as usize,
                http_proxy: shared.http_proxy.clone(),
                ..TunnelClientOptions::default()
            },
            tunnel_rx,
            announced,
        );
        let decider = Decider {
            cluster: shared.cluster.clone(),
            host_id: host_id.clone(),
            service: name.to_owned(),
            lock_mode: shared.lock_mode,
            cache: shared.cache.clone(),
        };
        let sessions = Sessions::new(Served {
            decider,
            plugin,
            settings,
            offered: offered.clone(),
            held: held.clone(),
            audit: audit.clone(),
            options: service.clone(),
            own_sockets: shared.own_sockets.clone(),
        });
        let renewing = async {
            let mut held = held.clone();
            loop {
                let fresh = Holding::next(&mut held).await;
                match auth_channel(&fresh) {
                    Ok(channel) => {
                        shared.auth.send_replace(Some(channel.clone()));
                        auth_tx.send_replace(channel);
                    }
                    Err(e) => tracing::error!(service = name, "{e}"),
                }
                tunnel_tx.send_replace(tunnel_credentials(&fresh));
            }
        };
        let deliver = spool.deliver(|events| submit(auth.clone(), events));
        tokio::select! {
            () = async {
                sessions.run(incoming, &tunnel, drain.clone(), status).await;
                // What the last sessions ended with shall not wait on disk for the next start.
                let _ = tokio::time::timeout(LAST_EVENTS, audit.drained()).await;
            } => {}
            () = renewing => {}
            () = heartbeat(auth.clone(), rejoin.clone(), || beat(&kind, &service.plugin, &offered, &tunnel)) => {}
            () = deliver => {}
            () = follow_tunnel(&tunnel, &sessions, status) => {}
        }
        Ok(())
    };
    tokio::select! {
        () = holding => Ok(()),
        () = joining => Ok(()),
        served = serving => served,
        () = drained_before_serving(&drain, status) => Ok(()),
    }
}

/// Before Auth was heard once there are no roles to decide by: who came in would be refused for no reason.
async fn until_roles_known(cache: &Cache, status: &watch::Sender<ServiceStatus>) {
    let mut cache = cache.clone();
    if cache.borrow().heard_unix == 0 {
        let waiting = "waiting for the roles from Auth".to_owned();
        set_state(status, ServiceState::Connecting, Some(waiting));
    }
    if cache.wait_for(|s| s.heard_unix > 0).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// A service that never got to serve has nothing to drain.
async fn drained_before_serving(drain: &CancellationToken, status: &watch::Sender<ServiceStatus>) {
    drain.cancelled().await;
    if matches!(
        status.borrow().state,
        ServiceState::Up | ServiceState::Connecting | ServiceState::Draining
    ) {
        std::future::pending::<()>().await;
    }
}

async fn load_plugin(
    name: &str,
    service: &config::Service,
    settings: &str,
    shared: &Shared,
) -> Result<Plugin, AgentError> {
    let path = shared
        .plugin_dirs
        .find(name, &service.plugin)
        .map_err(AgentError::Service)?;
    let source = PluginSource::file(&service.plugin, path).pinned(service.sha256.clone());
    let limits = Limits {
        memory: Some(service.limits.memory_mb as usize * (1 << 20)),
        cpu_ms_per_call: service.limits.cpu_ms_per_call,
    };
    let plugin = shared
        .runtime
        .load(&source, limits)
        .await
        .map_err(|e| AgentError::Service(format!("service {name:?}: {e}")))?;
    plugin
        .validate(settings)
        .await
        .map_err(|e| AgentError::Service(format!("service {name:?}: {e}")))?;
    Ok(plugin)
}

fn offered(name: &str, kind: &str, service: &config::Service) -> Result<Vec<Offered>, AgentError> {
    service
        .resources
        .iter()
        .map(|r| {
            let id = ResourceId::new(kind, &r.name)
                .map_err(|e| AgentError::Service(format!("service {name:?}: {e}")))?;
            Ok(Offered {
                id,
                labels: r.labels.clone(),
                direct: r.direct.unwrap_or(kind == "kubernetes"),
                address: r.address.clone(),
            })
        })
        .collect()
}

/// Shows in the status how the joining goes, until the tunnel has something to say.
async fn follow_joining(mut held: watch::Receiver<Holding>, status: &watch::Sender<ServiceStatus>) {
    loop {
        let now = held.borrow_and_update().clone();
        match (&now.credentials, now.failed) {
            (Some(c), failed) => status.send_modify(|s| {
                s.generation = c.generation;
                s.not_after_unix = c.not_after_unix;
                s.renewal_failed = failed;
                if matches!(s.state, ServiceState::Joining | ServiceState::JoinFailed) {
                    s.state = ServiceState::Connecting;
                    s.reason = None;
                }
            }),
            (None, Some(failed)) => set_state(status, ServiceState::JoinFailed, Some(failed)),
            (None, None) => {}
        }
        if held.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

fn beat(kind: &str, plugin: &str, offered: &[Offered], tunnel: &TunnelClient) -> HeartbeatRequest {
    let rtt = match tunnel.state() {
        TunnelState::Up { rtt, .. } => rtt.as_secs_f64() * 1e3,
        _ => 0.0,
    };
    HeartbeatRequest {
        kind: kind.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        resources: offered
            .iter()
            .map(|o| postern_api::v1::AnnouncedResource {
                name: o.id.name.clone(),
                labels: o.labels.clone().into_iter().collect(),
                direct: o.direct,
            })
            .collect(),
        hostname: hostname(),
        plugin: plugin.to_owned(),
        tunnel_rtt_ms: rtt,
        ..HeartbeatRequest::default()
    }
}

fn tunnel_credentials(c: &Credentials) -> TunnelCredentials {
    TunnelCredentials {
        ssh_key: c.ssh_key(),
        ssh_cert: c.ssh_client_cert.clone(),
        trust: c.trust.clone(),
    }
}

fn announcement(kind: &str, offered: &[Offered]) -> Announcement {
    Announcement {
        kind: kind.to_owned(),
        resources: offered
            .iter()
            .map(|o| AnnouncedResource {
                name: o.id.name.clone(),
                direct: o.direct,
            })
            .collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

fn transport(t: config::Transport) -> postern_tunnel::Transport {
    match t {
        config::Transport::Auto => postern_tunnel::Transport::Auto,
        config::Transport::Ssh => postern_tunnel::Transport::Ssh,
        config::Transport::Tls => postern_tunnel::Transport::Tls,
    }
}

async fn submit(
    auth: watch::Receiver<Channel>,
    events: Vec<postern_audit::Event>,
) -> Result<(), String> {
    let channel = auth.borrow().clone();
    let events_json = events
        .iter()
        .filter_map(|e| serde_json::to_string(e).ok())
        .collect();
    let stored = postern_api::v1::agent_service_client::AgentServiceClient::new(channel)
        .submit_events(postern_api::v1::SubmitEventsRequest { events_json })
        .await
        .map_err(|s| postern_api::status::describe(&s))?
        .into_inner()
        .stored_uids;
    // Sending such an event again would not help, but it must not vanish without a word.
    for lost in events.iter().filter(|e| !stored.contains(&e.uid)) {
        tracing::error!(
            uid = lost.uid,
            event = lost.event,
            "Auth did not store an audit event"
        );
    }
    Ok(())
}

/// Shows in the status what the tunnel does.
async fn follow_tunnel(
    tunnel: &TunnelClient,
    sessions: &Sessions,
    status: &watch::Sender<ServiceStatus>,
) {
    let mut states = tunnel.watch();
    loop {
        let state = states.borrow_and_update().clone();
        status.send_modify(|s| {
            s.sessions = sessions.open();
            match state {
                TunnelState::Connecting { last_error, .. } => {
                    s.state = ServiceState::Connecting;
                    s.reason = last_error;
                    s.tunnel_rtt_ms = None;
                }
                TunnelState::Up { rtt, .. } => {
                    s.state = ServiceState::Up;
                    s.reason = None;
                    s.tunnel_rtt_ms = Some(rtt.as_secs_f64() * 1e3);
                }
                TunnelState::Draining => s.state = ServiceState::Draining,
            }
        });
        // The session count has no change signal of its own.
        let changed = tokio::time::timeout(Duration::from_secs(1), states.changed()).await;
        if matches!(changed, Ok(Err(_))) {
            return std::future::pending().await;
        }
    }
}
