//! What may happen on a connection: asked of the plugin, once per event.

use postern_plugin::{Plugin, PluginError, SshEvent, SshGuard, SshSessionInfo, Verdict};
use std::future::Future;

/// Decides about one connection. The real one is a plugin's instance.
pub trait Guard: Send + 'static {
    /// May this happen? An error ends the connection.
    fn decide(
        &mut self,
        channel: u32,
        event: SshEvent,
    ) -> impl Future<Output = Result<Verdict, GuardError>> + Send;
}

/// Makes a [`Guard`] for a session once its user is known.
pub trait GuardSource: Send + Sync + 'static {
    type Guard: Guard;
    fn open(
        &self,
        session: &SshSessionInfo,
    ) -> impl Future<Output = Result<Self::Guard, GuardError>> + Send;
}

/// A guard that refused the session, or failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct GuardError {
    /// For the user (a refusal, in the plugin's words) or the operator (a failure).
    pub message: String,
    pub plugin: Option<String>,
    /// The limit or fault that made the plugin trap, in a word.
    pub trap: Option<&'static str>,
}

impl From<PluginError> for GuardError {
    fn from(e: PluginError) -> Self {
        GuardError {
            message: e.refusal().map_or_else(|| e.to_string(), str::to_owned),
            plugin: Some(e.plugin().to_owned()),
            trap: e.trap().map(|kind| kind.as_str()),
        }
    }
}

impl Guard for SshGuard {
    async fn decide(&mut self, channel: u32, event: SshEvent) -> Result<Verdict, GuardError> {
        Ok(SshGuard::decide(self, channel, event).await?)
    }
}

/// A plugin and its settings (JSON).
impl GuardSource for (Plugin, String) {
    type Guard = SshGuard;

    async fn open(&self, session: &SshSessionInfo) -> Result<SshGuard, GuardError> {
        Ok(self.0.ssh(&self.1, session).await?)
    }
}
