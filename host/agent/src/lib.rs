//! The agent: joins for every service, keeps its tunnels open, decides who may do what,
//! and serves sessions through plugins.
//!
//! The way of one connection: [`service`] takes a stream from the tunnel, [`session`]
//! ends the user's SSH or TLS on it, [`decide`] says yes or no, and `postern-sshd` or
//! `postern-relay` moves the bytes.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod codec;
mod decide;
mod dial;
mod plugins;
mod service;
mod session;
mod ssh;
mod status;

pub use plugins::PluginDirs;
pub use status::{AgentStatus, ServiceState, ServiceStatus};

use crate::service::{Service, Shared};
use postern_config::Config;
use postern_identity::{HostKey, TrustBundle, store};
use postern_membership::{Cache, Feed, RootOfTrust};
use postern_plugin::{Runtime, RuntimeOptions};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the agent can't read from its configuration.
#[derive(Default)]
pub struct Local {
    /// Set where Auth runs in this process: no pin is needed then.
    pub trust: Option<TrustBundle>,
    /// Set where the Proxy Service runs in this process and `[agent]` names none.
    pub proxy_addr: Option<String>,
    /// posternd's own listening sockets, which no forwarded connection may reach.
    pub own_sockets: Vec<SocketAddr>,
    /// `https_proxy` of the environment, read once by the daemon.
    pub http_proxy: Option<String>,
}

/// Why the agent or one of its services can't run. Worded for the operator.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Store(#[from] store::StoreError),
    #[error(transparent)]
    Spool(#[from] postern_audit::SpoolError),
    #[error(transparent)]
    Plugin(#[from] postern_plugin::PluginError),
    #[error(transparent)]
    Tls(#[from] postern_identity::tls::TlsError),
    #[error("{0}")]
    Service(String),
    #[error("agent: {0}")]
    Config(String),
}

/// A running agent. Dropping it ends every service at once; [`Agent::drain`] waits for sessions.
pub struct Agent {
    host_id: String,
    services: BTreeMap<String, Service>,
    cache: Cache,
    feed: JoinHandle<()>,
}

impl Agent {
    /// Starts every enabled service of the configuration. Returns once they are starting:
    /// joining and loading go on behind it, and show in [`Agent::status`].
    pub fn start(config: &Config, local: Local) -> Result<Self, AgentError> {
        store::private_dir(&config.data_dir)?;
        let host_key = Arc::new(HostKey::load_or_create(&config.data_dir.join("host.key"))?);
        let agent = config.agent.clone().unwrap_or_default();
        let proxy_addr = match local.proxy_addr {
            Some(addr) if agent.proxy.is_empty() => addr,
            _ => agent.proxy.clone(),
        };
        let root = match (agent.ca_pin.is_empty(), local.trust) {
            (true, Some(trust)) => RootOfTrust::Local(trust),
            (true, None) => RootOfTrust::FetchedOnce(config.data_dir.join("trust.json")),
            (false, _) => RootOfTrust::Pins(
                agent
                    .ca_pin
                    .iter()
                    .map(|p| p.parse().map_err(|e| AgentError::Config(format!("{e}"))))
                    .collect::<Result<_, _>>()?,
            ),
        };
        let (feed, cache) = Feed::open(config.data_dir.join("cache.json"));
        let (auth_tx, auth) = watch::channel(None);
        let feed = tokio::spawn(feed.run(auth));
        let shared = Arc::new(Shared {
            cluster: config.cluster.clone(),
            data_dir: config.data_dir.clone(),
            proxy_addr,
            transport: agent.transport,
            warm: agent.warm_connections,
            lock_mode: agent.lock_mode,
            root,
            join_params: agent.join_params.clone(),
            host_key: host_key.clone(),
            runtime: Runtime::new(RuntimeOptions::new(config.data_dir.join("plugins")))?,
            plugin_dirs: PluginDirs::new(agent.plugin_dir.as_deref()),
            cache: cache.clone(),
            auth: auth_tx,
            own_sockets: local.own_sockets,
            http_proxy: local.http_proxy,
        });
        let services = config
            .services
            .iter()
            .filter(|(_, s)| s.enabled)
            .map(|(name, s)| {
                (
                    name.clone(),
                    Service::start(name.clone(), s.clone(), shared.clone()),
                )
            })
            .collect();
        Ok(Agent {
            host_id: host_key.host_id(),
            services,
            cache,
            feed,
        })
    }

    pub fn status(&self) -> AgentStatus {
        let snapshot = self.cache.borrow();
        AgentStatus {
            host_id: self.host_id.clone(),
            auth_silent_secs: (snapshot.heard_unix > 0).then(|| snapshot.age().as_secs()),
            services: self.services.values().map(Service::status).collect(),
        }
    }

    /// What keeps this agent from being ready; empty when every service is up.
    pub fn not_ready(&self) -> Vec<String> {
        self.services
            .values()
            .map(Service::status)
            .filter(|s| s.state != ServiceState::Up)
            .map(|s| match &s.reason {
                Some(reason) => format!("service {:?} is {}: {reason}", s.name, s.state),
                None => format!("service {:?} is {}", s.name, s.state),
            })
            .collect()
    }

    /// No new sessions; waits for the open ones.
    pub async fn drain(mut self, timeout: Duration) {
        let services = std::mem::take(&mut self.services);
        futures::future::join_all(services.into_values().map(|s| s.drain(timeout))).await;
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.feed.abort();
    }
}
