//! The audit trail of one connection.

use crate::flow::Totals;
use crate::{Admitted, SessionContext, SessionSummary};
use postern_audit::{Emitter, Event, names};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Makes events that say who, where and in which session.
pub struct Trail {
    audit: Emitter,
    ctx: SessionContext,
    who: OnceLock<Arc<Admitted>>,
}

impl Trail {
    pub fn new(audit: Emitter, ctx: SessionContext) -> Self {
        Trail {
            audit,
            ctx,
            who: OnceLock::new(),
        }
    }

    /// From now on events name this user.
    pub fn admitted(&self, who: Arc<Admitted>) {
        let _ = self.who.set(who);
    }

    pub fn event(&self, name: &str) -> Event {
        let who = self.who.get();
        Event::new(name)
            .with("cluster", &self.ctx.cluster)
            .with("session_id", &self.ctx.session_id)
            .with("kind", "ssh")
            .with("resource", &self.ctx.resource)
            .with("host_id", &self.ctx.host_id)
            .with("source", &self.ctx.source)
            .with("user", who.map(|w| &w.user.name))
            .with("roles", who.map(|w| &w.user.roles))
            .with("role", who.map(|w| &w.role))
            .with("login", who.map(|w| &w.login))
    }

    /// Durable when it returns. The error is for the user.
    pub async fn emit(&self, event: Event) -> Result<(), String> {
        self.audit
            .emit(event)
            .await
            .map_err(|e| format!("the audit log of this host cannot be written: {e}"))
    }

    pub fn later(&self, event: Event) {
        self.audit.emit_later(event);
    }
}

/// What a connection came to; writes `session.end` for every session that was started, however it ends.
pub struct Ledger {
    trail: Arc<Trail>,
    totals: Arc<Totals>,
    begun: Instant,
    started: bool,
    pub summary: SessionSummary,
}

impl Ledger {
    pub fn new(trail: Arc<Trail>, totals: Arc<Totals>) -> Self {
        Ledger {
            trail,
            totals,
            begun: Instant::now(),
            started: false,
            summary: SessionSummary {
                // Says so if the future is dropped: whoever does that knows why.
                reason: "ended by the agent".into(),
                ..Default::default()
            },
        }
    }

    pub fn start(&mut self) {
        self.started = true;
        if let Some(who) = self.trail.who.get() {
            self.summary.user = Some(who.user.name.clone());
            self.summary.login = Some(who.login.clone());
        }
    }

    fn close(&mut self) -> Option<Event> {
        let s = &mut self.summary;
        s.duration = self.begun.elapsed();
        s.bytes_in = self.totals.bytes_in.load(Relaxed);
        s.bytes_out = self.totals.bytes_out.load(Relaxed);
        std::mem::take(&mut self.started).then(|| {
            self.trail
                .event(names::SESSION_END)
                .with("bytes_in", s.bytes_in)
                .with("bytes_out", s.bytes_out)
                .with(
                    "duration_ms",
                    u64::try_from(s.duration.as_millis()).unwrap_or(u64::MAX),
                )
                .with("exits", &s.exits)
                .with("reason", &s.reason)
        })
    }

    pub async fn finish(mut self) -> SessionSummary {
        if let Some(event) = self.close()
            && let Err(why) = self.trail.emit(event).await
        {
            tracing::error!(
                session = self.trail.ctx.session_id,
                "session.end is lost: {why}"
            );
        }
        std::mem::take(&mut self.summary)
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        if let Some(event) = self.close() {
            self.trail.later(event);
        }
    }
}
