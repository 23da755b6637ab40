//! What a service shall be: its part of the configuration, the plugin that was loaded for it, and what `[agent]` says
//! to all services. Made by [`crate::plan`], carried out by [`super::actor`].

use super::health::{Report, unreachable};
use crate::AgentError;
use crate::decide::Offered;
use postern_config as config;
use postern_identity::ResourceId;
use postern_membership::RootOfTrust;
use postern_plugin::{Endpoint, Plugin};
use postern_tunnel::{AnnouncedResource, Announcement, Transport};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// What all services of the host are told alike.
#[derive(Clone, PartialEq)]
pub struct Common {
    pub proxy_addr: String,
    pub transport: Transport,
    pub warm: usize,
    pub lock_mode: config::LockMode,
    pub root: RootOfTrust,
    pub join_params: Option<config::JoinParams>,
    /// How long the sessions of a removed service, or of an old tunnel, may go on.
    pub drain_timeout: Duration,
    /// How long the keys of a removed service are kept.
    pub forget_after: Duration,
    /// posternd's own sockets: no session may reach them by forwarding.
    pub own_sockets: Vec<SocketAddr>,
    pub http_proxy: Option<String>,
}

/// One service as it shall be.
pub struct Spec {
    pub name: String,
    pub service: config::Service,
    pub common: Arc<Common>,
    /// Loaded, and asked whether it accepts the settings.
    pub plugin: Plugin,
    /// The file on disk is a version that was taken back; this is the one before.
    pub held_back: bool,
    /// JSON
    pub settings: String,
    pub kind: String,
    pub offered: Vec<Offered>,
}

impl Spec {
    pub fn new(
        name: &str,
        service: config::Service,
        common: Arc<Common>,
        plugin: Plugin,
    ) -> Result<Self, AgentError> {
        let kind = service
            .kind
            .clone()
            .unwrap_or_else(|| plugin.description().kind.clone());
        unused(name, &service, &plugin)?;
        let offered = service
            .resources
            .iter()
            .map(|r| {
                let id = ResourceId::new(&kind, &r.name)
                    .map_err(|e| AgentError::Service(format!("service {name:?}: {e}")))?;
                Ok(Offered {
                    id,
                    labels: r.labels.clone(),
                    direct: r.direct.unwrap_or(kind == "kubernetes"),
                    address: r.address.clone(),
                    tls: r.tls.clone(),
                    auth: r.auth.clone().unwrap_or_default(),
                    admin: r.admin.clone(),
                })
            })
            .collect::<Result<_, AgentError>>()?;
        Ok(Spec {
            name: name.to_owned(),
            settings: service.settings_json(),
            service,
            common,
            plugin,
            held_back: false,
            kind,
            offered,
        })
    }

    /// The names of its resources, as Auth is asked for them.
    pub fn names(&self) -> Vec<String> {
        self.offered.iter().map(|o| o.id.name.clone()).collect()
    }

    pub fn join_params(&self) -> Option<&config::JoinParams> {
        self.service
            .join_params
            .as_ref()
            .or(self.common.join_params.as_ref())
    }

    /// `ssh 0.1.0`, for people.
    pub fn plugin_label(&self) -> String {
        format!(
            "{} {}",
            self.service.plugin,
            self.plugin.description().version
        )
    }

    /// What the proxy is told; `named`: the names in the certificate held, all others would be refused there.
    pub fn announcement(&self, named: &[String], health: &Report) -> Announcement {
        Announcement {
            kind: self.kind.clone(),
            resources: self
                .offered
                .iter()
                .filter(|o| named.contains(&o.id.name))
                .map(|o| AnnouncedResource {
                    name: o.id.name.clone(),
                    direct: o.direct,
                    unhealthy: unreachable(health, &o.id.name).is_some(),
                })
                .collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// A key that does nothing would be a trap: whoever sets it takes the server for verified, or the account for logged in.
fn unused(name: &str, service: &config::Service, plugin: &Plugin) -> Result<(), AgentError> {
    let wants = &plugin.description().wants;
    let logs_in = wants.start_tls || wants.send_secret || !wants.challenges.is_empty();
    let admin = wants.endpoints.contains(&Endpoint::Admin);
    for resource in &service.resources {
        for (key, set, used) in [
            ("tls", resource.tls.is_some(), wants.start_tls),
            ("auth", resource.auth.is_some(), logs_in),
            ("admin", resource.admin.is_some(), admin),
        ] {
            if set && !used {
                return Err(AgentError::Service(format!(
                    "service {name:?}: resource {:?} has `{key}`, but plugin {} makes no use of it; remove it",
                    resource.name, service.plugin
                )));
            }
        }
    }
    Ok(())
}
