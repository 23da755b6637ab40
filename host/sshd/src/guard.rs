//! What may happen on a connection: asked of the plugin, once per event.

use postern_plugin::{Plugin, SshEvent, SshGuard, SshSessionInfo, Verdict};
use std::future::Future;

/// Decides about one connection. The real one is a plugin's instance.
pub trait Guard: Send + 'static {
    /// May this happen? An error is worded for the operator and ends what was asked.
    fn decide(
        &mut self,
        channel: u32,
        event: SshEvent,
    ) -> impl Future<Output = Result<Verdict, String>> + Send;
}

/// Makes a [`Guard`] for a session once its user is known.
pub trait GuardSource: Send + Sync + 'static {
    type Guard: Guard;
    /// The error is worded for the user (a refusal) or the operator (a failure).
    fn open(
        &self,
        session: &SshSessionInfo,
    ) -> impl Future<Output = Result<Self::Guard, String>> + Send;
}

impl Guard for SshGuard {
    async fn decide(&mut self, channel: u32, event: SshEvent) -> Result<Verdict, String> {
        SshGuard::decide(self, channel, event)
            .await
            .map_err(|e| e.to_string())
    }
}

/// A plugin and its settings (JSON).
impl GuardSource for (Plugin, String) {
    type Guard = SshGuard;

    async fn open(&self, session: &SshSessionInfo) -> Result<SshGuard, String> {
        self.0
            .ssh(&self.1, session)
            .await
            .map_err(|e| match e.refusal() {
                Some(words) => words.to_owned(),
                None => e.to_string(),
            })
    }
}
