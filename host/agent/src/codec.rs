//! Sessions of plugins of world `codec`: the user's TLS ends here, then the relay drives
//! the plugin and asks this host before anything is dialled (D5).

use crate::decide::{Decider, Offered};
use crate::dial::dial;
use crate::session::{Arrival, HANDSHAKE, Served, Slots};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use postern_audit::{Emitter, Event, names};
use postern_identity::{CaKind, Peer, TrustBundle, UserIdentity, check_label, tls};
use postern_plugin::{Endpoint, PluginEvent};
use postern_relay::{BoxedStream, CodecHost};
use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// Audit events that the plugin of one session may word in a second.
const PLUGIN_EVENTS: NonZeroU32 = NonZeroU32::new(100).unwrap();

/// Serves one connection from its ClientHello to its end.
pub async fn serve(
    served: &Arc<Served>,
    arrival: Arrival,
    slots: Slots,
    handshake: Option<OwnedSemaphorePermit>,
) -> Result<(), String> {
    let Arrival {
        header,
        stream,
        resource,
        credentials,
        session_id,
    } = arrival;
    let trust = served.decider.trust(&credentials.trust);
    let config = tls::server(
        &credentials.tls_server(),
        tls::ClientAuth::Required(&trust, &[CaKind::User]),
        &[],
    )
    .map_err(|e| e.to_string())?;
    let accepting = TlsAcceptor::from(config).accept(stream);
    let stream = tokio::time::timeout(HANDSHAKE, accepting)
        .await
        .map_err(|_| format!("{}: no TLS handshake within {HANDSHAKE:?}", header.source))?
        .map_err(|e| format!("{}: TLS handshake: {e}", header.source))?;
    let user = user_of(&stream, &trust)?;
    // From here on the peer is somebody: it counts as a session, no longer as an anonymous handshake.
    let _slot = slots.take()?;
    drop(handshake);
    let host = SessionHost {
        decider: served.decider.clone(),
        audit: served.audit.clone(),
        user,
        resource,
        source: header.source,
        session_id,
        asked: OnceLock::new(),
        rejected: OnceLock::new(),
        plugin_events: RateLimiter::direct(Quota::per_second(PLUGIN_EVENTS)),
        since: Instant::now(),
    };
    host.check_name(&stream)?;
    // Before the plugin sees a byte: certificate, locks and labels (D5).
    if let Err(why) = host.decider.check(&host.user, &host.resource, &[]) {
        host.reject(&why);
        return Err(why);
    }
    let codec = served
        .plugin
        .codec(&served.settings, &host.session_id)
        .await
        .map_err(|e| e.to_string())?;
    let outcome = tokio::select! {
        r = postern_relay::run_codec(stream, codec, &host) => r.map_err(|e| e.to_string()),
        why = host.until_refused() => Err(format!("ended: {why}")),
    };
    host.ended(&outcome).await;
    outcome.map(drop)
}

fn user_of<S>(stream: &TlsStream<S>, trust: &TrustBundle) -> Result<UserIdentity, String> {
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    match Peer::from_chain(chain, trust).map_err(|e| e.to_string())? {
        (Peer::User(user), _) => Ok(user),
        (Peer::Agent(_), _) => Err("an agent's certificate was offered as a user's".into()),
    }
}

fn pairs(asked: &[(String, String)]) -> Vec<(&str, &str)> {
    asked
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect()
}

/// What the relay may ask of this host, for one session.
struct SessionHost {
    decider: Decider,
    audit: Emitter,
    user: UserIdentity,
    resource: Offered,
    source: String,
    session_id: String,
    /// The principals that were allowed; set when the session has started.
    asked: OnceLock<Vec<(String, String)>>,
    /// Set when it is on record that the session was refused.
    rejected: OnceLock<()>,
    plugin_events: DefaultDirectRateLimiter,
    since: Instant,
}

impl SessionHost {
    /// The name that the client asked for in TLS must be the resource that the proxy routed to.
    fn check_name<S>(&self, stream: &TlsStream<S>) -> Result<(), String> {
        let wanted = self.resource.id.dns(&self.decider.cluster);
        match stream.get_ref().1.server_name() {
            Some(name) if name.eq_ignore_ascii_case(&wanted) => Ok(()),
            other => Err(format!(
                "the client asked for {} on the stream of {wanted}",
                other.unwrap_or("no name")
            )),
        }
    }

    fn event(&self, name: &str) -> Event {
        Event::new(name)
            .with("session_id", &self.session_id)
            .with("kind", &self.resource.id.kind)
            .with("resource", &self.resource.id.name)
            .with("user", &self.user.name)
            .with("roles", &self.user.roles)
            .with("source", &self.source)
    }

    fn reject(&self, why: &str) {
        tracing::info!(
            resource = self.resource.id.name,
            user = self.user.name,
            "refused: {why}"
        );
        let _ = self.rejected.set(());
        self.audit
            .emit_later(self.event(names::SESSION_REJECTED).with("reason", why));
    }

    async fn until_refused(&self) -> String {
        let asked = self.asked.get().map(Vec::as_slice).unwrap_or_default();
        self.decider
            .until_refused(&self.user, &self.resource, &pairs(asked))
            .await
    }

    async fn ended(&self, outcome: &Result<postern_relay::RelayStats, String>) {
        if self.asked.get().is_none() {
            // The plugin closed it before it asked, or failed. A client that just went away is nothing to tell of.
            let why = match outcome {
                Ok(stats) => stats.closed.as_deref(),
                Err(e) => Some(e.as_str()),
            };
            if let Some(why) = why.filter(|_| self.rejected.get().is_none()) {
                self.reject(why);
            }
            return;
        }
        let mut event = self
            .event(names::SESSION_END)
            .with("duration_ms", self.since.elapsed().as_millis() as u64);
        event = match outcome {
            Ok(stats) => event
                .with("bytes_up", stats.to_upstream)
                .with("bytes_down", stats.to_client)
                .with("reason", &stats.closed),
            Err(e) => event.with("error", e),
        };
        if let Err(e) = self.audit.emit(event).await {
            tracing::error!("session.end of {} is not recorded: {e}", self.session_id);
        }
    }
}

impl CodecHost for SessionHost {
    async fn authorize(&self, asked: &[(String, String)]) -> Result<(), String> {
        let role = self
            .decider
            .check(&self.user, &self.resource, &pairs(asked))
            .inspect_err(|why| self.reject(why))?;
        let mut event = self.event(names::SESSION_START).with("role", role);
        for (principal, value) in asked {
            event = event.with(principal, value);
        }
        // Nothing is dialled for a session that could not be recorded.
        self.audit.emit(event).await.map_err(|e| {
            tracing::error!("{e}");
            "this host can't record the session; ask its operator to look at the log".to_owned()
        })?;
        let _ = self.asked.set(asked.to_vec());
        Ok(())
    }

    async fn connect(&self, endpoint: Endpoint) -> Result<BoxedStream, String> {
        if self.asked.get().is_none() {
            return Err("the plugin asked to connect before it asked for authorization".into());
        }
        match (&endpoint, &self.resource.address) {
            (Endpoint::Main, Some(address)) => dial(address).await,
            (Endpoint::Main, None) => Err(format!(
                "resource {:?} has no address; set it in [[services.{}.resources]]",
                self.resource.id.name, self.decider.service
            )),
            (other, _) => Err(format!("endpoint {other:?} is not configured")),
        }
    }

    fn event(&self, event: PluginEvent) {
        // Other sessions' events wait in the same queue.
        if self.plugin_events.check().is_err() {
            metrics::counter!("postern_agent_plugin_events_dropped_total").increment(1);
            return;
        }
        // The plugin's words stand apart: it can neither name an event of the host's nor replace a field.
        let name = match check_label("event", &event.name) {
            Ok(()) => format!("plugin.{}.{}", self.resource.id.kind, event.name),
            Err(_) => format!("plugin.{}", self.resource.id.kind),
        };
        let said: serde_json::Map<_, _> = event
            .fields
            .into_iter()
            // Values are JSON documents; what is none is kept as text rather than lost.
            .map(|(k, v)| (k, serde_json::from_str(&v).unwrap_or(v.into())))
            .collect();
        self.audit
            .emit_later(SessionHost::event(self, &name).with("plugin", said));
    }
}
