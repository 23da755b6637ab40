//! What `posternd status` shows of the agent.

use serde::{Deserialize, Serialize};

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
    pub plugin: String,
    pub state: ServiceState,
    /// Why it is in that state, where there is something to say.
    pub reason: Option<String>,
    pub resources: Vec<String>,
    /// Why the last renewal failed, while the credentials held are still valid.
    pub renewal_failed: Option<String>,
    pub sessions: u64,
    pub generation: u64,
    pub not_after_unix: u64,
    pub tunnel_rtt_ms: Option<f64>,
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
    /// The plugin can't be loaded; nothing is served.
    PluginFailed,
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
            ServiceState::PluginFailed => "plugin-failed",
        })
    }
}

pub(crate) fn set_state(
    status: &tokio::sync::watch::Sender<ServiceStatus>,
    state: ServiceState,
    reason: Option<String>,
) {
    status.send_modify(|s| {
        s.state = state;
        s.reason = reason;
    });
}
