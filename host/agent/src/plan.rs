//! From a configuration to what each service shall be. Everything that can fail fails here, before anything is
//! changed: plugins are read, compiled and asked about their settings. What an edit changes is told as a person reads it.

use crate::plugins::PluginDirs;
use crate::service::{Common, Desired, Service, Spec};
use crate::{AgentError, Local};
use futures::StreamExt;
use postern_config::{self as config, Config};
use postern_membership::RootOfTrust;
use postern_plugin::{Limits, Plugin, PluginSource, Runtime, Wants};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// Plugins compiled side by side.
const COMPILE: usize = 2;

/// What an agent shall do, checked as a whole.
pub struct Plan {
    pub(crate) common: Arc<Common>,
    pub(crate) services: BTreeMap<String, Result<Arc<Spec>, Broken>>,
    /// New plugin versions, and what they want beyond the old ones.
    pub plugins: Vec<PluginChange>,
}

/// A service that can't run with what is on this host. Only at the start, or where it was so before.
#[derive(Clone)]
pub(crate) struct Broken {
    pub service: config::Service,
    pub why: String,
}

/// `! plugin tcp 0.1.0 → 0.1.1 (sha256 …)`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginChange {
    pub service: String,
    pub plugin: String,
    pub from: String,
    pub to: String,
    /// Of the new file, hex.
    pub sha256: String,
    /// What the new version may ask of the host and the old one did not.
    pub wants: Vec<String>,
}

impl fmt::Display for PluginChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = self.sha256.get(..12).unwrap_or(&self.sha256);
        write!(
            f,
            "! service {}: plugin {} {} → {} (sha256 {digest}…)",
            self.service, self.plugin, self.from, self.to
        )?;
        if !self.wants.is_empty() {
            write!(f, "; it now also wants: {}", self.wants.join(", "))?;
        }
        Ok(())
    }
}

/// What running services have to do with a plan.
pub(crate) struct Before<'a> {
    pub services: &'a BTreeMap<String, Service>,
    pub broken: &'a BTreeMap<String, Broken>,
    pub common: Option<Arc<Common>>,
    /// At the start a service that can't run keeps no other from running; later it refuses the edit.
    pub start: bool,
}

/// Plans every enabled service. Errors: all that is wrong.
pub(crate) async fn plan(
    config: &Config,
    local: &Local,
    runtime: &Runtime,
    before: Before<'_>,
) -> Result<Plan, Vec<AgentError>> {
    let common = common(config, local).map_err(|e| vec![e])?;
    let common = match before.common.clone() {
        Some(old) if *old == common => old,
        _ => Arc::new(common),
    };
    let dirs = plugin_dirs(config);
    let enabled = config.services.iter().filter(|(_, s)| s.enabled);
    let mut asked = Vec::new();
    for (name, service) in enabled {
        let (common, dirs, before) = (common.clone(), &dirs, &before);
        asked.push(async move {
            let one = one(name, service, common, dirs, runtime, before).await;
            (name, service, one)
        });
    }
    let planned: Vec<_> = futures::stream::iter(asked)
        .buffered(COMPILE)
        .collect()
        .await;
    let mut plan = Plan {
        common,
        services: BTreeMap::new(),
        plugins: Vec::new(),
    };
    let mut errors = Vec::new();
    for (name, service, planned) in planned {
        let planned = match planned {
            Ok((spec, change)) => {
                plan.plugins.extend(change);
                Ok(spec)
            }
            Err(e) => {
                let was_so = before
                    .broken
                    .get(name)
                    .is_some_and(|b| b.service == *service);
                if !before.start && !was_so {
                    errors.push(e);
                    continue;
                }
                Err(Broken {
                    service: service.clone(),
                    why: e.to_string(),
                })
            }
        };
        plan.services.insert(name.clone(), planned);
    }
    if errors.is_empty() {
        Ok(plan)
    } else {
        Err(errors)
    }
}

async fn one(
    name: &str,
    service: &config::Service,
    common: Arc<Common>,
    dirs: &PluginDirs,
    runtime: &Runtime,
    before: &Before<'_>,
) -> Result<(Arc<Spec>, Option<PluginChange>), AgentError> {
    let running = before.services.get(name);
    let spec = running.map(Service::desired).and_then(|d| match d {
        Desired::Run(spec) => Some(spec),
        _ => None,
    });
    let (current, rejected) = running.map(Service::serves).unwrap_or_default();
    let named = |e: &dyn fmt::Display| AgentError::Service(format!("service {name:?}: {e}"));
    let path = dirs
        .find(name, &service.plugin)
        .map_err(AgentError::Service)?;
    let source = PluginSource::file(&service.plugin, path)
        .pinned(service.sha256.clone())
        .replacing(current.is_some());
    let limits = Limits {
        memory: Some(service.limits.memory_mb as usize * (1 << 20)),
        cpu_ms_per_call: service.limits.cpu_ms_per_call,
    };
    let digest = runtime.digest(&source).await.map_err(|e| named(&e))?;
    // What was taken back stays away until another file is in its place.
    let held_back = rejected.as_ref() == Some(&digest);
    let same = |spec: &&Arc<Spec>| {
        let plugin = if spec.held_back {
            held_back
        } else {
            spec.plugin.digest() == digest
        };
        plugin && spec.service == *service && Arc::ptr_eq(&spec.common, &common)
    };
    if let Some(spec) = spec.as_ref().filter(same) {
        return Ok((spec.clone(), None));
    }
    if let Some(good) = current.as_ref().filter(|_| held_back) {
        // As it was loaded, and with the settings it works with: its file is no longer there to be asked anew.
        let mut new = Spec::new(name, service.clone(), common, good.plugin.clone())?;
        new.held_back = true;
        new.settings.clone_from(&good.settings);
        return Ok((Arc::new(new), None));
    }
    let current = current.map(|spec| spec.plugin.clone());
    let keep = |p: &&Plugin| p.limits() == limits && p.digest() == digest;
    let plugin = match current.as_ref().filter(keep) {
        Some(plugin) => plugin.clone(),
        None => runtime.load(&source, limits).await.map_err(|e| named(&e))?,
    };
    let new = Spec::new(name, service.clone(), common, plugin)?;
    new.plugin
        .validate(&new.settings)
        .await
        .map_err(|e| named(&e))?;
    let change = current
        .as_ref()
        .filter(|old| old.digest() != new.plugin.digest())
        .map(|old| change(name, service, old, &new.plugin));
    Ok((Arc::new(new), change))
}

fn change(name: &str, service: &config::Service, old: &Plugin, new: &Plugin) -> PluginChange {
    PluginChange {
        service: name.to_owned(),
        plugin: service.plugin.clone(),
        from: old.description().version.clone(),
        to: new.description().version.clone(),
        sha256: new.digest().to_owned(),
        wants: beyond(&old.description().wants, &new.description().wants),
    }
}

/// What `new` wants and `old` did not.
fn beyond(old: &Wants, new: &Wants) -> Vec<String> {
    let mut out: Vec<String> = new
        .endpoints
        .iter()
        .filter(|e| !old.endpoints.contains(e))
        .map(|e| format!("endpoint {}", format!("{e:?}").to_lowercase()))
        .collect();
    let challenges = new.challenges.iter();
    out.extend(
        challenges
            .filter(|c| !old.challenges.contains(c))
            .map(|c| format!("challenge {c}")),
    );
    for (word, had, has) in [
        ("start-tls", old.start_tls, new.start_tls),
        ("send-secret", old.send_secret, new.send_secret),
        ("body filters", old.body_filters, new.body_filters),
    ] {
        if has && !had {
            out.push(word.to_owned());
        }
    }
    out
}

fn common(config: &Config, local: &Local) -> Result<Common, AgentError> {
    let agent = config.agent.clone().unwrap_or_default();
    let root = match (agent.ca_pin.is_empty(), &local.trust) {
        (true, Some(trust)) => RootOfTrust::Local(trust.clone()),
        (true, None) => RootOfTrust::FetchedOnce(config.data_dir.join("trust.json")),
        (false, _) => RootOfTrust::Pins(
            agent
                .ca_pin
                .iter()
                .map(|p| p.parse().map_err(|e| AgentError::Config(format!("{e}"))))
                .collect::<Result<_, _>>()?,
        ),
    };
    Ok(Common {
        proxy_addr: match &local.proxy_addr {
            Some(addr) if agent.proxy.is_empty() => addr.clone(),
            _ => agent.proxy,
        },
        transport: match agent.transport {
            config::Transport::Auto => postern_tunnel::Transport::Auto,
            config::Transport::Ssh => postern_tunnel::Transport::Ssh,
            config::Transport::Tls => postern_tunnel::Transport::Tls,
        },
        warm: agent.warm_connections as usize,
        lock_mode: agent.lock_mode,
        root,
        join_params: agent.join_params,
        drain_timeout: agent.drain_timeout,
        forget_after: agent.forget_after,
        own_sockets: local.own_sockets.clone(),
        http_proxy: local.http_proxy.clone(),
    })
}

fn plugin_dirs(config: &Config) -> PluginDirs {
    PluginDirs::new(config.agent.as_ref().and_then(|a| a.plugin_dir.as_deref()))
}

/// The plugin files that the enabled services load, for those who watch them.
pub fn plugin_files(config: &Config) -> Vec<PathBuf> {
    let dirs = plugin_dirs(config);
    let enabled = config.services.iter().filter(|(_, s)| s.enabled);
    let mut files: Vec<PathBuf> = enabled
        .filter_map(|(name, s)| dirs.find(name, &s.plugin).ok())
        .collect();
    files.sort();
    files.dedup();
    files
}

/// The plan of a process without services.
pub(crate) fn nothing(config: &Config, local: &Local) -> Result<Plan, AgentError> {
    Ok(Plan {
        common: Arc::new(common(config, local)?),
        services: BTreeMap::new(),
        plugins: Vec::new(),
    })
}
