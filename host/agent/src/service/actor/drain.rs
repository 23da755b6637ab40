//! The end of serving: no new sessions, and time for the open ones.

use super::{Actor, COUNT, Desired, LAST_EVENTS, Parts};
use crate::service::member::Member;
use crate::status::ServiceState;
use tokio::sync::watch;

impl Actor<'_> {
    /// No new sessions; returns when the last one has ended, the time is up, or the service shall run again.
    pub(super) async fn drain(&mut self, mut parts: Parts, desired: &mut watch::Receiver<Desired>) {
        // Waited for: what it was writing must not be read half by who comes after it.
        Member::stop(&mut parts.member).await;
        drop(parts.probes);
        let timeout = parts.spec.common.drain_timeout;
        let until = postern_membership::unix_now() + timeout.as_secs();
        self.outlet.status.send_modify(|s| {
            s.state = ServiceState::Draining;
            s.reason = None;
            s.until_unix = Some(until);
            s.tunnel_rtt_ms = None;
            s.health.clear();
        });
        if let Some(front) = parts.front {
            // By then nothing more is sent; how long the sessions take is for the tracker.
            front.told().await;
            self.retiring.spawn(front.retire(timeout));
        }
        let sessions = parts.sessions;
        let mut count = tokio::time::interval(COUNT);
        let deadline = tokio::time::Instant::now() + timeout;
        loop {
            self.outlet
                .status
                .send_modify(|s| s.sessions = sessions.open());
            tokio::select! {
                () = sessions.none_open() => break,
                changed = desired.changed() => {
                    // Put back in time: the caller sees it, and the sessions go on under it.
                    let now = desired.borrow_and_update().clone();
                    if changed.is_err() || matches!(now, Desired::Run(_)) {
                        return;
                    }
                    if matches!(now, Desired::Cut) {
                        sessions.cut();
                    }
                }
                Some(event) = self.notes.recv() => self.home.audit.emit_later(event),
                () = tokio::time::sleep_until(deadline) => {
                    tracing::warn!(service = self.name, "{} sessions were still open after {timeout:?} and are ended", sessions.open());
                    sessions.cut();
                    let _ = tokio::time::timeout(LAST_EVENTS, sessions.none_open()).await;
                    break;
                }
                _ = count.tick() => {}
            }
        }
        self.sessions = None;
        self.trial = None;
        while let Ok(event) = self.notes.try_recv() {
            self.home.audit.emit_later(event);
        }
        // What the sessions sent last may still be on its way to the proxy.
        let sent = async { while self.retiring.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(LAST_EVENTS, sent).await;
        self.retiring.abort_all();
        self.outlet.status.send_modify(|s| s.sessions = 0);
    }
}
