//! What `posternd status` says of a service.

use super::{Actor, Parts};
use crate::service::front::Front;
use crate::status::ServiceState;
use postern_membership::Holding;
use postern_tunnel::TunnelState;
use std::sync::Arc;
use std::time::Duration;

impl Actor<'_> {
    /// Tells the status how things are.
    pub(super) fn show(&self, parts: &Parts) {
        let holding = self.home.holding.borrow().clone();
        let (state, reason, rtt) = state_of(parts, &holding);
        if let (Some(beat), Some(rtt)) = (&parts.beat, rtt) {
            beat.rtt(rtt);
        }
        let spec = &parts.spec;
        let health = parts.probes.report();
        let renewal_failed = holding.failed.filter(|_| holding.credentials.is_some());
        self.outlet.status.send_modify(|s| {
            s.kind.clone_from(&spec.kind);
            s.plugin = spec.plugin_label();
            s.sha256 = spec.plugin.digest().to_owned();
            s.resources = spec.names();
            if s.health != *health {
                s.health.clone_from(&health);
            }
            s.sessions = parts.sessions.open();
            s.state = state;
            s.reason = reason;
            s.renewal_failed = renewal_failed;
            s.tunnel_rtt_ms = rtt.map(|r| r.as_secs_f64() * 1e3);
            s.until_unix = None;
            if let Some(c) = &holding.credentials {
                s.generation = c.generation;
                s.not_after_unix = c.not_after_unix;
            }
        });
        self.outlet.served.send_if_modified(|s| {
            let differs = !s.as_ref().is_some_and(|s| Arc::ptr_eq(s, spec));
            *s = Some(spec.clone());
            differs
        });
    }
}

/// The state in a word, why, and the round trip of the tunnel.
fn state_of(parts: &Parts, holding: &Holding) -> (ServiceState, Option<String>, Option<Duration>) {
    let tunnel = parts.front.as_ref().map(Front::state);
    if let Some(TunnelState::Up { rtt, .. }) = tunnel {
        let next = parts.next.as_ref().and_then(|next| match next.state() {
            TunnelState::Connecting {
                last_error: Some(e),
                ..
            } => Some(format!(
                "the new tunnel to {} is not up: {e}",
                next.proxy_addr()
            )),
            _ => None,
        });
        return (ServiceState::Up, next, Some(rtt));
    }
    let (state, reason) = match (&holding.credentials, &holding.failed, tunnel) {
        (None, Some(why), _) => (ServiceState::JoinFailed, Some(why.clone())),
        (None, None, _) => (ServiceState::Joining, None),
        (Some(_), _, Some(TunnelState::Connecting { last_error, .. })) => {
            (ServiceState::Connecting, last_error)
        }
        (Some(_), ..) if !parts.roles_known => (
            ServiceState::Connecting,
            Some("waiting for the roles from Auth".to_owned()),
        ),
        (Some(held), Some(why), None) if held.kind != parts.spec.kind => {
            (ServiceState::JoinFailed, Some(why.clone()))
        }
        (Some(_), ..) => (ServiceState::Connecting, None),
    };
    (state, reason, None)
}
