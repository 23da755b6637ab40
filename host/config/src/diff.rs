//! What changed between two configurations, as events a person reads and the reload applies.

use crate::{Agent, Config, Resource, Service};
use std::{collections::BTreeMap, fmt};

/// One difference. A disabled service counts as absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// `+ service databases`
    ServiceAdded {
        /// Its name in `[services]`.
        name: String,
    },
    /// `- service old`, also when it was disabled.
    ServiceRemoved {
        /// Its name in `[services]`.
        name: String,
        /// It is still in the file, with `enabled = false`.
        disabled: bool,
    },
    /// `~ service ssh: labels, settings`
    ServiceChanged {
        /// Its name in `[services]`.
        name: String,
        /// Which keys differ: `plugin`, `kind`, `sha256`, `settings`, `limits`, `rollback`, `health_check`, `join_params`,
        /// `ssh`, and of its resources `resources` (one more or less), `labels`, `direct`, `address`,
        /// `tls`, `auth`, `admin`.
        what: Vec<&'static str>,
    },
    /// `~ agent: ca_pin`: concerns all services, without a restart.
    AgentChanged {
        /// Which keys differ.
        what: Vec<&'static str>,
    },
    /// `~ log: level`: applied at once.
    LogChanged,
    /// `! proxy: listen (needs a restart)`: sections that a running process can't change.
    NeedsRestart {
        /// `cluster`, `data_dir`, `diag`, `auth`, `proxy`, `agent`, …
        section: &'static str,
        /// Which keys differ; empty for a section that came, went, or is a key itself.
        what: Vec<&'static str>,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::ServiceAdded { name } => write!(f, "+ service {name}"),
            Change::ServiceRemoved {
                name,
                disabled: false,
            } => write!(f, "- service {name}"),
            Change::ServiceRemoved {
                name,
                disabled: true,
            } => {
                write!(f, "- service {name} (disabled)")
            }
            Change::ServiceChanged { name, what } => {
                write!(f, "~ service {name}: {}", what.join(", "))
            }
            Change::AgentChanged { what } => write!(f, "~ agent: {}", what.join(", ")),
            Change::LogChanged => f.write_str("~ log"),
            Change::NeedsRestart { section, what } if what.is_empty() => {
                write!(f, "! {section} (needs a restart)")
            }
            Change::NeedsRestart { section, what } => {
                write!(f, "! {section}: {} (needs a restart)", what.join(", "))
            }
        }
    }
}

/// What has to be done to get from `old` to `new`; empty when nothing. Sections first, then services by name.
pub fn diff(old: &Config, new: &Config) -> Vec<Change> {
    let mut out = Vec::new();
    let mut restart = |section, what: Vec<&'static str>, differs: bool| {
        if differs {
            out.push(Change::NeedsRestart { section, what });
        }
    };
    restart("version", vec![], old.version != new.version);
    restart("cluster", vec![], old.cluster != new.cluster);
    restart("data_dir", vec![], old.data_dir != new.data_dir);
    restart(
        "shutdown_timeout",
        vec![],
        old.shutdown_timeout != new.shutdown_timeout,
    );
    restart("diag", vec!["listen"], old.diag != new.diag);
    let auth = match (&old.auth, &new.auth) {
        (Some(a), Some(b)) => changed(&[
            ("listen", a.listen == b.listen),
            ("cert_ttl", a.cert_ttl == b.cert_ttl),
            ("rejoin_window", a.rejoin_window == b.rejoin_window),
        ]),
        _ => vec![],
    };
    restart("auth", auth, old.auth != new.auth);
    let proxy = match (&old.proxy, &new.proxy) {
        (Some(a), Some(b)) => changed(&[
            ("listen", a.listen == b.listen),
            ("public_addr", a.public_addr == b.public_addr),
            ("auth_server", a.auth_server == b.auth_server),
            ("tls", a.tls == b.tls),
            ("join_params", a.join_params == b.join_params),
            ("ca_pin", a.ca_pin == b.ca_pin),
        ]),
        _ => vec![],
    };
    restart("proxy", proxy, old.proxy != new.proxy);
    if old.log != new.log {
        out.push(Change::LogChanged);
    }
    // An agent without services does nothing: its coming and going needs no restart.
    let nobody = Agent::default();
    let what = agent(
        old.agent.as_ref().unwrap_or(&nobody),
        new.agent.as_ref().unwrap_or(&nobody),
    );
    if !what.is_empty() {
        out.push(Change::AgentChanged { what });
    }
    services(&old.services, &new.services, &mut out);
    out
}

fn services(
    old: &BTreeMap<String, Service>,
    new: &BTreeMap<String, Service>,
    out: &mut Vec<Change>,
) {
    fn on<'c>(map: &'c BTreeMap<String, Service>, name: &str) -> Option<&'c Service> {
        map.get(name).filter(|service| service.enabled)
    }
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let change = match (on(old, name), on(new, name)) {
            (None, None) => continue,
            (None, Some(_)) => Change::ServiceAdded { name: name.clone() },
            (Some(_), None) => Change::ServiceRemoved {
                name: name.clone(),
                disabled: new.contains_key(name),
            },
            (Some(a), Some(b)) => match service(a, b) {
                what if what.is_empty() => continue,
                what => Change::ServiceChanged {
                    name: name.clone(),
                    what,
                },
            },
        };
        out.push(change);
    }
}

fn agent(a: &Agent, b: &Agent) -> Vec<&'static str> {
    changed(&[
        ("proxy", a.proxy == b.proxy),
        ("ca_pin", a.ca_pin == b.ca_pin),
        ("join_params", a.join_params == b.join_params),
        ("transport", a.transport == b.transport),
        ("lock_mode", a.lock_mode == b.lock_mode),
        ("warm_connections", a.warm_connections == b.warm_connections),
        ("drain_timeout", a.drain_timeout == b.drain_timeout),
        ("forget_after", a.forget_after == b.forget_after),
        ("plugin_dir", a.plugin_dir == b.plugin_dir),
    ])
}

fn service(a: &Service, b: &Service) -> Vec<&'static str> {
    let by_name = |service: &'_ Service| -> BTreeMap<String, Resource> {
        service
            .resources
            .iter()
            .map(|r| (r.name.clone(), r.clone()))
            .collect()
    };
    let (old, new) = (by_name(a), by_name(b));
    let same = |part: fn(&Resource, &Resource) -> bool| {
        old.iter()
            .all(|(name, resource)| new.get(name).is_none_or(|other| part(resource, other)))
    };
    changed(&[
        ("plugin", a.plugin == b.plugin),
        ("kind", a.kind == b.kind),
        ("sha256", a.sha256 == b.sha256),
        ("settings", a.settings == b.settings),
        ("limits", a.limits == b.limits),
        ("rollback", a.rollback == b.rollback),
        ("health_check", a.health_check == b.health_check),
        ("join_params", a.join_params == b.join_params),
        ("ssh", a.ssh == b.ssh),
        ("resources", old.keys().eq(new.keys())),
        ("labels", same(|x, y| x.labels == y.labels)),
        ("direct", same(|x, y| x.direct == y.direct)),
        ("address", same(|x, y| x.address == y.address)),
        ("tls", same(|x, y| x.tls == y.tls)),
        ("auth", same(|x, y| x.auth == y.auth)),
        ("admin", same(|x, y| x.admin == y.admin)),
    ])
}

fn changed(parts: &[(&'static str, bool)]) -> Vec<&'static str> {
    parts
        .iter()
        .filter(|(_, same)| !same)
        .map(|(name, _)| *name)
        .collect()
}

#[cfg(test)]
mod tests;
