//! Sessions of plugins of world `codec`: the user's TLS ends here, then the relay drives the plugin and asks this host
//! before anything is dialled (D5).
//!
//! - `host`: what the relay may ask, for one session;
//! - `made`: the connection to the server;
//! - `upstream`: TLS towards the server, and the certificate for it;
//! - `login`: challenges and secrets;
//! - `accounts`: accounts that are made at the server for users;
//! - `cancel`: cancel keys, and connections that show one;
//! - `events`: how what a plugin says gets on record.

pub mod accounts;
pub mod cancel;
mod events;
mod host;
mod login;
mod made;
mod upstream;

use crate::session::{Arrival, HANDSHAKE, Served, Slots};
use accounts::Accounts;
use cancel::Cancels;
use events::Recorder;
use host::SessionHost;
use postern_identity::{CaKind, Peer, TrustBundle, UserIdentity, tls};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::task::TaskTracker;

/// Protocol names that clients of a kind may ask for in TLS (PostgreSQL's do where TLS comes first).
const ALPN: [(&str, &[&[u8]]); 1] = [("postgres", &[b"postgresql"])];

/// How long a user may take from TLS to what the session is authorized for (as long as PostgreSQL's authentication_timeout).
const START: Duration = Duration::from_secs(60);

/// Serves one connection from its ClientHello to its end. What remains to be done behind it is done on `tracker`.
pub async fn serve(
    served: &Arc<Served>,
    arrival: Arrival,
    cancels: Arc<Cancels>,
    tracker: &TaskTracker,
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
    let alpn = ALPN.iter().find(|(kind, _)| *kind == resource.id.kind);
    let config = tls::server(
        &credentials.tls_server(),
        tls::ClientAuth::Required(&trust, &[CaKind::User]),
        alpn.map_or(&[], |(_, names)| names),
    )
    .map_err(|e| e.to_string())?;
    // Both boxed: most sessions are idle most of the time, and whatever a task holds inline it holds until its end.
    let accepting = Box::pin(TlsAcceptor::from(config).accept(stream));
    let stream = tokio::time::timeout(HANDSHAKE, accepting)
        .await
        .map_err(|_| format!("{}: no TLS handshake within {HANDSHAKE:?}", header.source))?
        .map_err(|e| format!("{}: TLS handshake: {e}", header.source))?;
    let stream = Box::new(stream);
    let user = user_of(&stream, &trust)?;
    // From here on the peer is somebody: it counts as a session, no longer as an anonymous handshake.
    let _slot = slots.take()?;
    drop(handshake);
    check_name(&stream, &resource.id.dns(&served.decider.cluster))?;
    let built_in = !served.options.plugin_is_path();
    let host = SessionHost {
        decider: served.decider.clone(),
        audit: served.audit.clone(),
        recorder: Recorder::new(served.audit.clone(), &resource.id.kind, built_in),
        user,
        user_chain: stream
            .get_ref()
            .1
            .peer_certificates()
            .unwrap_or_default()
            .to_vec(),
        accounts: Accounts::of(served, &resource, &trust, tracker),
        automatic: Default::default(),
        admission: Default::default(),
        resource,
        trust: Arc::new(trust.only(CaKind::DbServer)),
        auth: served.auth.clone(),
        source: header.source,
        session_id,
        cancels,
        asked: watch::Sender::new(None),
        rejected: OnceLock::new(),
        made: Default::default(),
        cancel: Default::default(),
        since: Instant::now(),
        about: OnceLock::new(),
    };
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
        why = host.until_late(START) => Err(format!("ended: {why}")),
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

/// The name that the client asked for in TLS must be the resource that the proxy routed to.
fn check_name<S>(stream: &TlsStream<S>, wanted: &str) -> Result<(), String> {
    match stream.get_ref().1.server_name() {
        Some(name) if name.eq_ignore_ascii_case(wanted) => Ok(()),
        other => Err(format!(
            "the client asked for {} on the stream of {wanted}",
            other.unwrap_or("no name")
        )),
    }
}
