//! What `posternd status` shows of the agent.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct AgentStatus {
    pub host_id: String,
    /// Since how many seconds Auth has been silent; `None` before it was first heard.
    pub auth_silent_secs: Option<u64>,
    pub services: Vec<ServiceStatus>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ServiceStatus {
    pub name: String,
    pub kind: String,
    /// Name and version, e.g. `ssh 0.1.0`.
    pub plugin: String,
    /// Of the plugin file that new connections get, hex.
    pub sha256: String,
    pub state: ServiceState,
    /// Why it is in that state, where there is something to say.
    pub reason: Option<String>,
    pub resources: Vec<String>,
    /// Of those of the resources that are probed.
    #[serde(default)]
    pub health: BTreeMap<String, ResourceHealth>,
    /// Why the last renewal failed, while the credentials held are still valid.
    pub renewal_failed: Option<String>,
    pub sessions: u64,
    pub generation: u64,
    pub not_after_unix: u64,
    pub tunnel_rtt_ms: Option<f64>,
    /// Draining: when open sessions are ended. Removed: when the keys are deleted. Unix seconds.
    pub until_unix: Option<u64>,
    /// The plugin version that was taken back because it trapped.
    pub rolled_back: Option<RolledBack>,
}

/// What the probes of a resource's address say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceHealth {
    pub state: Health,
    /// Why it is unhealthy.
    pub reason: Option<String>,
    /// Unix seconds; of an unhealthy one the first probe that failed.
    pub since_unix: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// No probe has come to an end yet. Counts as healthy.
    #[default]
    Unknown,
    Healthy,
    Unhealthy,
}

/// A plugin version that failed its trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBack {
    pub version: String,
    pub sha256: String,
    pub reason: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    #[default]
    Starting,
    Joining,
    /// Refused or unreachable; tried again with backoff.
    JoinFailed,
    /// Joined; the tunnel is being dialled.
    Connecting,
    Up,
    Draining,
    /// Gone from the configuration and drained; its keys are kept for a while, in case it is put back.
    Removed,
    /// The plugin can't be loaded; nothing is served.
    PluginFailed,
    /// Something on this host keeps it from running (`reason`); nothing is served.
    Failed,
}

impl ServiceState {
    pub const ALL: [ServiceState; 9] = [
        ServiceState::Starting,
        ServiceState::Joining,
        ServiceState::JoinFailed,
        ServiceState::Connecting,
        ServiceState::Up,
        ServiceState::Draining,
        ServiceState::Removed,
        ServiceState::PluginFailed,
        ServiceState::Failed,
    ];
}

impl std::fmt::Display for ServiceState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            ServiceState::Starting => "starting",
            ServiceState::Joining => "joining",
            ServiceState::JoinFailed => "join-failed",
            ServiceState::Connecting => "connecting",
            ServiceState::Up => "up",
            ServiceState::Draining => "draining",
            ServiceState::Removed => "removed",
            ServiceState::Failed => "failed",
            ServiceState::PluginFailed => "plugin-failed",
        })
    }
}
