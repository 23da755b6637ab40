//! The parts of one daemon, started in the order in which they need each other (Auth,
//! Proxy, agent) and drained in the opposite one.

use crate::diag::{self, Diag, Status};
use crate::lockfile::DataDirLock;
use crate::log;
use crate::reload::{Reload, Reloading};
use anyhow::Context;
use metrics_exporter_prometheus::PrometheusHandle;
use postern_agent::{Agent, AgentView, Local};
use postern_auth::{AuthOptions, AuthServer};
use postern_config::Config;
use postern_proxy::{JoinSource, ProxyOptions, ProxyServer};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Everything that runs in this process. Dropping it stops all of it at once.
pub struct Daemon {
    parts: Arc<Parts>,
    reloading: Reloading,
    diag: Diag,
    stop: CancellationToken,
    auth_stop: CancellationToken,
    metrics: PrometheusHandle,
    _lock: DataDirLock,
}

/// What goes on in a process that has handed over: live sessions, and the tunnels that carry them.
pub struct Remains {
    proxy: Option<ProxyServer>,
    agent: Option<Agent>,
    stop: CancellationToken,
    /// What was in force, for taking everything back.
    config: Option<Config>,
    metrics: PrometheusHandle,
}

impl Remains {
    /// What it takes to begin again in this process: the configuration that was in force, and the process's metrics.
    pub fn again(&self) -> Option<(Config, PrometheusHandle)> {
        Some((self.config.clone()?, self.metrics.clone()))
    }

    /// Sends the agents over to the new process; their live streams go on here.
    pub async fn send_agents_over(&self) {
        if let Some(proxy) = &self.proxy {
            proxy.say_goodbye().await;
        }
    }

    /// Waits for the sessions to end.
    pub async fn drain(self, timeout: Duration) {
        let proxy = async {
            if let Some(proxy) = &self.proxy {
                proxy.drain(timeout).await;
            }
        };
        let agent = async {
            if let Some(agent) = self.agent {
                agent.drain(timeout).await;
            }
        };
        tokio::join!(proxy, agent);
        self.stop.cancel();
    }
}

/// What the diagnostic socket tells about.
pub struct Parts {
    pub cluster: String,
    pub config: String,
    pub since: jiff::Timestamp,
    pub auth: Option<AuthServer>,
    pub proxy: Option<ProxyServer>,
    pub agent: AgentView,
    pub reload: Reload,
}

/// The sockets that survive a change of processes.
#[derive(Default)]
pub struct Listeners {
    pub auth: Option<OwnedFd>,
    pub proxy: Option<OwnedFd>,
}

/// An inherited listener, unless the configuration asks for another address by now.
fn usable(inherited: Option<OwnedFd>, listen: &str) -> Option<TcpListener> {
    let listener = TcpListener::from(inherited?);
    let now = listener.local_addr().ok()?;
    let wanted: Result<SocketAddr, _> = listen.parse();
    // Names and port 0 can't be compared: they were what they are.
    let another = wanted.is_ok_and(|w| w.port() != 0 && w != now);
    (!another).then_some(listener)
}

/// What the agent is told of the process around it.
pub struct Surroundings {
    trust: Option<postern_identity::TrustBundle>,
    proxy_addr: Option<String>,
    listeners: Vec<SocketAddr>,
}

impl Surroundings {
    /// For this configuration.
    pub async fn local(&self, config: &Config) -> Local {
        let diag = diag::tcp_addresses(config).await;
        Local {
            trust: self.trust.clone(),
            proxy_addr: self.proxy_addr.clone(),
            own_sockets: self.listeners.iter().copied().chain(diag).collect(),
            http_proxy: config.agent.as_ref().and_then(|a| http_proxy(&a.proxy)),
        }
    }
}

impl Daemon {
    /// `log`: where a changed `[log]` is applied. `inherited`: what the process before listened on.
    pub async fn start(
        config: &Config,
        path: &Path,
        log: Option<log::Handle>,
        inherited: Listeners,
        metrics: PrometheusHandle,
    ) -> anyhow::Result<Self> {
        let lock = DataDirLock::take(&config.data_dir)?;
        let stop = CancellationToken::new();
        let auth_stop = stop.child_token();
        let auth = match &config.auth {
            None => None,
            Some(a) => {
                let options = AuthOptions {
                    cluster: config.cluster.clone(),
                    data_dir: config.data_dir.clone(),
                    listen: a.listen.clone(),
                    cert_ttl: a.cert_ttl,
                    rejoin_window: a.rejoin_window,
                    proxy_public_addr: config.proxy.as_ref().map(|p| p.public_addr.clone()),
                };
                let listener = usable(inherited.auth, &a.listen);
                let server = AuthServer::start_on(options, listener, auth_stop.clone()).await?;
                tracing::info!("Auth Service listens on {}", server.local_addr());
                Some(server)
            }
        };
        let proxy = match &config.proxy {
            None => None,
            Some(p) => {
                let listener = usable(inherited.proxy, &p.listen);
                Some(start_proxy(config, auth.as_ref(), listener, stop.child_token()).await?)
            }
        };
        let surroundings = Surroundings {
            trust: auth.as_ref().map(AuthServer::trust),
            proxy_addr: proxy.as_ref().map(|p| dialable(p.local_addr())),
            listeners: auth
                .iter()
                .map(AuthServer::local_addr)
                .chain(proxy.iter().map(ProxyServer::local_addr))
                .collect(),
        };
        let agent = Agent::new(config)?;
        let view = agent.view();
        let (reloading, reload) = Reloading::start(config.clone(), path, agent, surroundings, log);
        let parts = Arc::new(Parts {
            cluster: config.cluster.clone(),
            config: path.display().to_string(),
            since: jiff::Timestamp::now(),
            auth,
            proxy,
            agent: view,
            reload,
        });
        let diag = Diag::start(&diag::address(config), &parts, metrics.clone()).await?;
        Ok(Daemon {
            parts,
            reloading,
            diag,
            stop,
            auth_stop,
            metrics,
            _lock: lock,
        })
    }

    pub fn proxy(&self) -> Option<&ProxyServer> {
        self.parts.proxy.as_ref()
    }

    pub fn status(&self) -> Status {
        self.parts.status()
    }

    /// For those who look on without keeping it alive.
    pub fn watch(&self) -> Weak<Parts> {
        Arc::downgrade(&self.parts)
    }

    /// Where a reload is asked for.
    pub fn reload(&self) -> Reload {
        self.parts.reload.clone()
    }

    /// Resolves when the diagnostic socket can't go on; the other parts heal themselves.
    pub async fn died(&mut self) -> anyhow::Error {
        self.diag.died().await
    }

    /// Everything that only one process may do ends here: Auth, accepting, renewing, writing, the data directory. What
    /// is open goes on in what is returned, the sockets are for the process that takes over.
    pub async fn hand_over(self) -> (Remains, Listeners) {
        let Daemon {
            parts,
            mut reloading,
            diag,
            stop,
            auth_stop,
            metrics,
            _lock,
        } = self;
        drop(diag);
        let (agent, config) = reloading.stop().await.unzip();
        if let Some(agent) = &agent {
            agent.hand_over();
        }
        let mut parts = alone(parts).await;
        let proxy = match parts.proxy.as_mut() {
            Some(proxy) => proxy.hand_over().await,
            None => None,
        };
        let auth = parts.auth.as_mut().and_then(AuthServer::listener);
        let listeners = Listeners { auth, proxy };
        auth_stop.cancel();
        if let Some(auth) = parts.auth {
            auth.stopped().await;
        }
        let proxy = parts.proxy;
        let remains = Remains {
            proxy,
            agent,
            stop,
            config,
            metrics,
        };
        (remains, listeners)
    }

    /// Lets sessions end: the agent's own first, then those that pass through the proxy.
    pub async fn drain(self, timeout: Duration) {
        let Daemon {
            parts,
            mut reloading,
            diag,
            stop,
            ..
        } = self;
        drop(diag);
        let agent = reloading.stop().await.map(|(agent, _)| agent);
        let parts = alone(parts).await;
        if let Some(proxy) = &parts.proxy
            && parts.agent.status().is_none()
        {
            proxy.drain(timeout).await;
        }
        if let Some(agent) = agent {
            agent.drain(timeout).await;
        }
        stop.cancel();
        if let Some(auth) = parts.auth {
            auth.stopped().await;
        }
    }
}

/// The diagnostic tasks are gone: who still looks on does so for a moment.
async fn alone(mut parts: Arc<Parts>) -> Parts {
    loop {
        match Arc::try_unwrap(parts) {
            Ok(parts) => return parts,
            Err(shared) => parts = shared,
        }
        tokio::task::yield_now().await;
    }
}

impl Parts {
    pub fn status(&self) -> Status {
        let not_ready = self.not_ready();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: self.cluster.clone(),
            pid: std::process::id(),
            since: self.since.to_string(),
            config: self.config.clone(),
            config_state: self.reload.state(),
            auth: self.auth.as_ref().map(|a| a.local_addr().to_string()),
            proxy: self.proxy.as_ref().map(|p| p.local_addr().to_string()),
            agent: self.agent.status(),
            ready: not_ready.is_empty(),
            not_ready,
        }
    }

    pub fn not_ready(&self) -> Vec<String> {
        let proxy = self.proxy.iter().flat_map(ProxyServer::readiness);
        proxy.chain(self.agent.not_ready()).collect()
    }
}

async fn start_proxy(
    config: &Config,
    auth: Option<&AuthServer>,
    listener: Option<TcpListener>,
    stop: CancellationToken,
) -> anyhow::Result<ProxyServer> {
    let p = config.proxy.as_ref().context("[proxy]")?;
    let (auth_addr, join) = match auth {
        Some(auth) => (
            dialable(auth.local_addr()),
            JoinSource::Local {
                token: auth.mint_proxy_token().await?,
                trust: auth.trust(),
            },
        ),
        None => (
            p.auth_server
                .clone()
                .context("[proxy] needs auth_server where [auth] is in another process")?,
            JoinSource::Remote {
                params: p.join_params.clone(),
                pins: p
                    .ca_pin
                    .iter()
                    .map(|s| s.parse())
                    .collect::<Result<_, _>>()?,
            },
        ),
    };
    let options = ProxyOptions {
        cluster: config.cluster.clone(),
        listen: p.listen.clone(),
        public_addr: p.public_addr.clone(),
        auth_addr,
        tls: p.tls.clone(),
        data_dir: config.data_dir.clone(),
        join,
    };
    let server = ProxyServer::start_on(options, listener, stop).await?;
    tracing::info!("Proxy Service listens on {}", server.local_addr());
    Ok(server)
}

/// What this host dials to reach a listener of its own.
fn dialable(addr: SocketAddr) -> String {
    if addr.ip().is_unspecified() {
        return format!("127.0.0.1:{}", addr.port());
    }
    addr.to_string()
}

/// The HTTP proxy to leave the network by, from the variables that curl and git read.
fn http_proxy(proxy_addr: &str) -> Option<String> {
    let var = |names: [&str; 2]| names.iter().find_map(|n| std::env::var(n).ok());
    postern_tunnel::http_proxy_for(
        proxy_addr,
        var(["https_proxy", "HTTPS_PROXY"]).as_deref(),
        var(["no_proxy", "NO_PROXY"]).as_deref(),
    )
}
