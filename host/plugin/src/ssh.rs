//! World `ssh`: one SSH session's instance.

use crate::bindings::{self, ssh as world};
use crate::error::{Cause, PluginError};
use crate::instance::{Live, call};
use crate::types::{SshEvent, SshSessionInfo, Verdict};

/// Decides what one SSH session may do. After an error the instance is gone: refuse, and end the session.
pub struct SshGuard {
    live: Live,
    bindings: world::Ssh,
}

impl SshGuard {
    pub(crate) async fn start(
        mut live: Live,
        pre: &world::SshPre<crate::instance::Ctx>,
        settings: &str,
        session: &SshSessionInfo,
    ) -> Result<Self, PluginError> {
        let session = bindings::wit_session(session);
        let (bindings, opened) = call!(&mut live, "open", |store| async {
            let bindings = pre.instantiate_async(&mut *store).await?;
            let service = bindings.postern_plugin_ssh_service();
            let opened = service.call_open(store, settings, &session).await?;
            wasmtime::Result::Ok((bindings, opened))
        })?;
        match opened {
            Ok(()) => Ok(SshGuard { live, bindings }),
            Err(reason) => Err(live.error(Cause::Refused { reason })),
        }
    }

    /// May this happen on this channel? A verdict narrows what RBAC allows, never widens it.
    pub async fn decide(&mut self, channel: u32, event: SshEvent) -> Result<Verdict, PluginError> {
        let event = bindings::wit_event(event);
        let b = &self.bindings;
        let verdict = call!(&mut self.live, "decide", |store| b
            .postern_plugin_ssh_service()
            .call_decide(store, channel, &event))?;
        Ok(bindings::verdict(verdict))
    }
}
