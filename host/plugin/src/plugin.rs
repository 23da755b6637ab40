//! One version of one component, compiled and linked.

use crate::bindings::{base, codec as codec_world, ssh as ssh_world};
use crate::codec::Codec;
use crate::error::{Cause, PluginError, SettingsProblem};
use crate::instance::{Ctx, Live, call};
use crate::logging::Limiter;
use crate::metrics::Metrics;
use crate::ssh::SshGuard;
use crate::ticker::Ticker;
use crate::types::{Administrator, Description, Endpoint, Limits, SshSessionInfo, Task, World};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// One version of one component, ready to serve connections. Cheap to clone: sessions keep the version they began with.
#[derive(Clone)]
pub struct Plugin(pub(crate) Arc<Parts>);

pub(crate) struct Parts {
    pub(crate) loaded: Arc<Loaded>,
    pub(crate) base: base::BasePre<Ctx>,
    pub(crate) service: Service,
    /// It exports `accounts-service`.
    pub(crate) accounts: bool,
}

/// What can be instantiated, by world.
#[derive(Clone)]
pub(crate) enum Service {
    Codec(codec_world::CodecPre<Ctx>),
    Ssh(ssh_world::SshPre<Ctx>),
}

/// What all instances of one plugin share.
pub(crate) struct Loaded {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) digest: String,
    pub(crate) file: String,
    pub(crate) description: Description,
    pub(crate) engine: wasmtime::Engine,
    pub(crate) limits: Limits,
    /// `limits.memory` with the default filled in.
    pub(crate) memory_limit: usize,
    pub(crate) slots: u32,
    pub(crate) ticker: Arc<Ticker>,
    pub(crate) metrics: Metrics,
    pub(crate) log_limiter: Arc<Limiter>,
    pub(crate) first: First,
}

/// The first connections of a plugin, where somebody watches them.
#[derive(Default)]
pub(crate) struct First {
    watched: AtomicU64,
    begun: AtomicU64,
    ended: AtomicU64,
    trapped: AtomicU64,
}

/// One connection among the first; counts as ended when dropped.
pub(crate) struct FirstGuard(Arc<Loaded>);

impl First {
    /// `None` for one that is not among the watched.
    pub(crate) fn begin(plugin: &Arc<Loaded>) -> Option<FirstGuard> {
        let first = &plugin.first;
        let watched = first.watched.load(Relaxed);
        (watched > 0 && first.begun.fetch_add(1, Relaxed) < watched)
            .then(|| FirstGuard(plugin.clone()))
    }
}

impl FirstGuard {
    pub(crate) fn trapped(&self) {
        self.0.first.trapped.fetch_add(1, Relaxed);
    }
}

impl Drop for FirstGuard {
    fn drop(&mut self) {
        self.0.first.ended.fetch_add(1, Relaxed);
    }
}

/// What became of the connections that [`Plugin::watch_first`] watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstConnections {
    pub ended: u64,
    pub trapped: u64,
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let l = &self.0.loaded;
        write!(
            f,
            "Plugin({} {} {} {})",
            l.name,
            l.version,
            l.description.world.as_str(),
            &l.digest[..12]
        )
    }
}

impl Plugin {
    /// As in [`crate::PluginSource`].
    pub fn name(&self) -> &str {
        &self.0.loaded.name
    }

    /// What the plugin says of itself; checked at load.
    pub fn description(&self) -> &Description {
        &self.0.loaded.description
    }

    /// sha256 of the component, hex.
    pub fn digest(&self) -> &str {
        &self.0.loaded.digest
    }

    /// The file it came from, for messages.
    pub fn file(&self) -> &str {
        &self.0.loaded.file
    }

    /// What an instance may use.
    pub fn limits(&self) -> Limits {
        self.0.loaded.limits
    }

    /// Watches the next `n` connections from now on.
    pub fn watch_first(&self, n: u64) {
        let first = &self.0.loaded.first;
        for counter in [&first.begun, &first.ended, &first.trapped] {
            counter.store(0, Relaxed);
        }
        first.watched.store(n, Relaxed);
    }

    /// How the watched connections went so far.
    pub fn first_connections(&self) -> FirstConnections {
        let first = &self.0.loaded.first;
        FirstConnections {
            ended: first.ended.load(Relaxed),
            trapped: first.trapped.load(Relaxed),
        }
    }

    /// Asks the plugin whether it accepts these settings (a JSON object), on an instance of its own. Must be asked before
    /// they are used for connections. Errors: [`Cause::Settings`] with everything that is wrong, or a failure.
    pub async fn validate(&self, settings_json: &str) -> Result<(), PluginError> {
        let mut live = Live::new(self.0.loaded.clone(), "");
        let pre = &self.0.base;
        let verdict = call!(&mut live, "validate", |store| async {
            let b = pre.instantiate_async(&mut *store).await?;
            b.postern_plugin_manifest()
                .call_validate(store, settings_json)
                .await
        })?;
        verdict.map_err(|problems| {
            let problems = problems
                .into_iter()
                .map(|p| SettingsProblem {
                    path: p.path,
                    message: p.message,
                })
                .collect();
            live.error(Cause::Settings(problems))
        })
    }

    /// A fresh instance for one connection. `settings_json` has passed [`Plugin::validate`]; `session` is the id under which
    /// failures are reported.
    pub async fn codec(&self, settings_json: &str, session: &str) -> Result<Codec, PluginError> {
        let live = Live::new(self.0.loaded.clone(), session);
        match &self.0.service {
            Service::Codec(pre) => Codec::start(live, pre, settings_json).await,
            Service::Ssh(_) => Err(self.wrong_world(World::Codec)),
        }
    }

    /// Whether it makes accounts for users: see [`Plugin::task`].
    pub fn makes_accounts(&self) -> bool {
        let endpoints = &self.description().wants.endpoints;
        self.0.accounts && endpoints.contains(&Endpoint::Admin)
    }

    /// A fresh instance for work on a server's accounts, as [`Plugin::codec`]; for plugins that make accounts.
    pub async fn task(
        &self,
        settings_json: &str,
        session: &str,
        admin: &Administrator,
        task: Task,
    ) -> Result<Codec, PluginError> {
        let live = Live::new(self.0.loaded.clone(), session);
        match &self.0.service {
            Service::Codec(pre) if self.0.accounts => {
                Codec::start_task(live, pre, settings_json, (admin, task)).await
            }
            _ => {
                let why = "makes no accounts: it does not export accounts-service".to_owned();
                Err(live.error(Cause::Contract { why }))
            }
        }
    }

    /// A fresh instance for one SSH session. Errors: as for [`Plugin::codec`], and [`Cause::Refused`] if the plugin does not
    /// want the session.
    pub async fn ssh(
        &self,
        settings_json: &str,
        session: &SshSessionInfo,
    ) -> Result<SshGuard, PluginError> {
        let live = Live::new(self.0.loaded.clone(), &session.session);
        match &self.0.service {
            Service::Ssh(pre) => SshGuard::start(live, pre, settings_json, session).await,
            Service::Codec(_) => Err(self.wrong_world(World::Ssh)),
        }
    }

    fn wrong_world(&self, needed: World) -> PluginError {
        let l = &self.0.loaded;
        let why = format!(
            "implements world `{}`, but here one of world `{}` is needed: name another plugin",
            l.description.world.as_str(),
            needed.as_str()
        );
        PluginError::new(
            &l.name,
            Cause::WrongWorld {
                file: l.file.clone(),
                why,
            },
        )
        .version(&l.version)
    }
}
