//! The agent: joins for every service, keeps its tunnels open, decides who may do what,
//! and serves sessions through plugins.
//!
//! Two ways lead through it. A connection: [`service`] takes a stream from the tunnel, [`session`]
//! ends the user's SSH or TLS on it, [`decide`] says yes or no, and `postern-sshd` or
//! `postern-relay` moves the bytes. A configuration: [`plan`] checks what each service shall be, [`Agent::apply`]
//! tells those that differ, and each of them gets there by itself.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod codec;
mod decide;
mod dial;
mod plan;
mod plugins;
mod service;
mod session;
mod ssh;
mod status;

pub use plan::{Plan, PluginChange, plugin_files};
pub use plugins::PluginDirs;
pub use status::{AgentStatus, Health, ResourceHealth, RolledBack, ServiceState, ServiceStatus};

use crate::plan::{Before, Broken};
use crate::service::{Common, Desired, Service, Shared};
use postern_audit::{Event, names};
use postern_config::Config;
use postern_identity::{HostKey, TrustBundle, store};
use postern_membership::{Cache, Feed, Ways};
use postern_plugin::{Runtime, RuntimeOptions};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// What the agent can't read from its configuration.
#[derive(Clone, Default)]
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

/// The services of this host. Whoever owns it applies configurations; [`AgentView`] is for all who look on.
/// Dropping it ends every service at once; [`Agent::drain`] waits for sessions.
pub struct Agent {
    cluster: String,
    data_dir: PathBuf,
    /// Made with the first service: a process without any needs none of it.
    core: Option<Core>,
    common: Option<Arc<Common>>,
    services: BTreeMap<String, Service>,
    broken: BTreeMap<String, Broken>,
    view: watch::Sender<Shown>,
}

/// What lives as long as the agent.
struct Core {
    shared: Arc<Shared>,
    runtime: Runtime,
    handed_over: CancellationToken,
    _feed: AbortOnDropHandle<()>,
}

/// What is shown of an agent.
#[derive(Clone, Default)]
struct Shown {
    host_id: String,
    cache: Option<Cache>,
    services: Vec<watch::Receiver<ServiceStatus>>,
    /// Those that have no task: not planned yet, or broken.
    idle: Vec<ServiceStatus>,
}

impl Agent {
    /// An agent without services yet; those of `config` are shown as starting. Errors: what no service could run
    /// with, such as a host key that others can read.
    pub fn new(config: &Config) -> Result<Self, AgentError> {
        let starting = config.services.iter().filter(|(_, s)| s.enabled);
        let idle = starting
            .map(|(name, s)| ServiceStatus {
                name: name.clone(),
                plugin: s.plugin.clone(),
                resources: s.resources.iter().map(|r| r.name.clone()).collect(),
                ..ServiceStatus::default()
            })
            .collect();
        let mut agent = Agent {
            cluster: config.cluster.clone(),
            data_dir: config.data_dir.clone(),
            core: None,
            common: None,
            services: BTreeMap::new(),
            broken: BTreeMap::new(),
            view: watch::Sender::new(Shown {
                idle,
                ..Shown::default()
            }),
        };
        agent.need(config)?;
        Ok(agent)
    }

    pub fn view(&self) -> AgentView {
        AgentView(self.view.subscribe())
    }

    /// Checks what `config` asks for, without changing anything. `start`: a service that can't run keeps no other
    /// from running; otherwise it refuses the whole.
    pub async fn plan(
        &mut self,
        config: &Config,
        local: &Local,
        start: bool,
    ) -> Result<Plan, Vec<AgentError>> {
        self.need(config).map_err(|e| vec![e])?;
        let Some(core) = &self.core else {
            return plan::nothing(config, local).map_err(|e| vec![e]);
        };
        let before = Before {
            services: &self.services,
            broken: &self.broken,
            common: self.common.clone(),
            start,
        };
        plan::plan(config, local, &core.runtime, before).await
    }

    /// Carries a plan out: adds, changes and removes services. Returns at once; how it goes shows in the view.
    /// `edits` are written into the audit log by the services that they concern.
    pub fn apply(&mut self, config: &Config, plan: Plan, edits: &[(Option<String>, String)]) {
        self.common = Some(plan.common.clone());
        let Some(core) = &self.core else { return };
        let shared = core.shared.clone();
        let note = |service: &Service, name: &str, first: bool| {
            let concern = |of: &Option<String>| of.as_deref().map_or(first, |of| of == name);
            for (_, change) in edits.iter().filter(|(of, _)| concern(of)) {
                service.note(Event::new(names::AGENT_CONFIG).with("change", change));
            }
        };
        // Also those whose directory a removed service left behind when the process ended.
        let mut gone = self.left_behind(config);
        gone.extend(self.services.keys().cloned());
        gone.sort();
        gone.dedup();
        gone.retain(|name| !plan.services.contains_key(name));
        let mut first = true;
        self.broken.clear();
        for (name, planned) in plan.services {
            let spec = match planned {
                Ok(spec) => spec,
                Err(broken) => {
                    tracing::error!("{}", broken.why);
                    self.broken.insert(name, broken);
                    continue;
                }
            };
            let same = self.services.get(&name).is_some_and(|s| {
                !s.is_finished()
                    && matches!(s.desired(), Desired::Run(old) if Arc::ptr_eq(&old, &spec))
            });
            let told = same
                || self
                    .services
                    .get(&name)
                    .is_some_and(|s| s.set(Desired::Run(spec.clone())));
            if !told {
                let started = Service::start(&name, Desired::Run(spec), shared.clone());
                self.services.insert(name.clone(), started);
            }
            if let Some(service) = self.services.get(&name) {
                note(service, &name, std::mem::take(&mut first));
            }
        }
        for name in gone {
            let leaving = Desired::Gone(plan.common.clone());
            match self.services.get(&name) {
                Some(service) => {
                    if matches!(service.desired(), Desired::Run(_)) {
                        note(service, &name, false);
                        if !service.set(leaving.clone()) {
                            // It never ran, or ran no more: what it has on disk still has to go.
                            let started = Service::start(&name, leaving, shared.clone());
                            self.services.insert(name, started);
                        }
                    }
                }
                None => {
                    let started = Service::start(&name, leaving, shared.clone());
                    self.services.insert(name, started);
                }
            }
        }
        self.services.retain(|_, s| !s.is_finished());
        self.show();
    }

    /// Forgets services that are gone altogether, and starts those again that could not run.
    pub fn sweep(&mut self) {
        let Some(core) = &self.core else { return };
        let ended: Vec<String> = self
            .services
            .iter()
            .filter(|(_, s)| !s.lives())
            .map(|(name, _)| name.clone())
            .collect();
        for name in &ended {
            let Some(service) = self.services.remove(name) else {
                continue;
            };
            let desired = service.desired();
            // Gone for good is what a service that left is.
            let again = matches!(desired, Desired::Run(_)) || !service.is_finished();
            drop(service);
            if again {
                let started = Service::start(name, desired, core.shared.clone());
                self.services.insert(name.clone(), started);
            }
        }
        if !ended.is_empty() {
            self.show();
        }
    }

    /// Another process takes over: tunnels and sessions go on until [`Agent::drain`], but credentials are not renewed and
    /// nothing is written except what the sessions do.
    pub fn hand_over(&self) {
        if let Some(core) = &self.core {
            core.handed_over.cancel();
        }
        for service in self.services.values() {
            service.hand_over();
        }
    }

    /// No new sessions; waits for the open ones. Their places in the cluster stay.
    pub async fn drain(mut self, timeout: Duration) {
        let services = std::mem::take(&mut self.services);
        futures::future::join_all(services.into_values().map(|s| s.stop(timeout))).await;
    }

    /// Makes what all services share, where there is one.
    fn need(&mut self, config: &Config) -> Result<(), AgentError> {
        let wanted = config.services.values().any(|s| s.enabled);
        if self.core.is_none() && (wanted || !self.left_behind(config).is_empty()) {
            self.core = Some(self.open()?);
            self.view
                .send_modify(|shown| shown.host_id = self.host_id());
        }
        Ok(())
    }

    fn host_id(&self) -> String {
        let core = self.core.as_ref();
        core.map_or_else(String::new, |c| c.shared.host_key.host_id())
    }

    fn open(&self) -> Result<Core, AgentError> {
        store::private_dir(&self.data_dir)?;
        let host_key = Arc::new(HostKey::load_or_create(&self.data_dir.join("host.key"))?);
        let (feed, cache) = Feed::open(self.data_dir.join("cache.json"));
        let (auth_tx, auth) = watch::channel(Ways::new());
        let runtime = Runtime::new(RuntimeOptions::new(self.data_dir.join("plugins")))?;
        Ok(Core {
            handed_over: feed.handed_over(),
            shared: Arc::new(Shared {
                cluster: self.cluster.clone(),
                data_dir: self.data_dir.clone(),
                host_key,
                cache,
                auth: auth_tx,
            }),
            runtime,
            _feed: AbortOnDropHandle::new(tokio::spawn(feed.run(auth))),
        })
    }

    fn show(&self) {
        let core = self.core.as_ref();
        let idle = self.broken.iter().map(|(name, b)| ServiceStatus {
            name: name.clone(),
            plugin: b.service.plugin.clone(),
            state: ServiceState::PluginFailed,
            reason: Some(b.why.clone()),
            resources: b.service.resources.iter().map(|r| r.name.clone()).collect(),
            ..ServiceStatus::default()
        });
        self.view.send_replace(Shown {
            host_id: self.host_id(),
            cache: core.map(|c| c.shared.cache.clone()),
            services: self.services.values().map(Service::status).collect(),
            idle: idle.collect(),
        });
    }

    /// Directories of services that are in no configuration any more and have no task yet.
    fn left_behind(&self, config: &Config) -> Vec<String> {
        let enabled = |name: &String| config.services.get(name).is_some_and(|s| s.enabled);
        directories(&self.data_dir.join("services"))
            .into_iter()
            .filter(|name| !enabled(name) && !self.services.contains_key(name))
            .collect()
    }
}

fn directories(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let is_dir = |e: &std::fs::DirEntry| e.file_type().is_ok_and(|t| t.is_dir());
    entries
        .filter_map(Result::ok)
        .filter(is_dir)
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|name| postern_identity::check_label("service", name).is_ok())
        .collect()
}

/// For all who look on.
#[derive(Clone)]
pub struct AgentView(watch::Receiver<Shown>);

impl AgentView {
    /// `None` where this process runs no service.
    pub fn status(&self) -> Option<AgentStatus> {
        let services = self.services();
        if services.is_empty() {
            return None;
        }
        let shown = self.0.borrow();
        let silent = shown.cache.as_ref().and_then(|cache| {
            let snapshot = cache.borrow();
            (snapshot.heard_unix > 0).then(|| snapshot.age().as_secs())
        });
        Some(AgentStatus {
            host_id: shown.host_id.clone(),
            auth_silent_secs: silent,
            services,
        })
    }

    /// What keeps this agent from being ready; empty when every service is up (or on its way out).
    pub fn not_ready(&self) -> Vec<String> {
        let fine = [
            ServiceState::Up,
            ServiceState::Draining,
            ServiceState::Removed,
        ];
        self.services()
            .into_iter()
            .filter(|s| !fine.contains(&s.state))
            .map(|s| match &s.reason {
                Some(reason) => format!("service {:?} is {}: {reason}", s.name, s.state),
                None => format!("service {:?} is {}", s.name, s.state),
            })
            .collect()
    }

    fn services(&self) -> Vec<ServiceStatus> {
        let shown = self.0.borrow();
        // Closed: gone altogether, and not swept yet.
        let living = shown.services.iter().filter(|s| s.has_changed().is_ok());
        let running = living.map(|s| s.borrow().clone());
        let mut all: Vec<_> = running.chain(shown.idle.iter().cloned()).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}
