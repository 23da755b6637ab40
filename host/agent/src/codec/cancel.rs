//! Cancelling a session from another connection: the keys that clients get in the place of the server's, and the connection
//! of a client that shows one. It has no user: who has a key may cancel that one session, and can do nothing else.

use super::upstream;
use crate::decide::{Decider, Offered};
use crate::dial::dial;
use crate::session::Served;
use postern_audit::{Event, names};
use postern_identity::TrustBundle;
use postern_plugin::{Endpoint, PluginEvent};
use postern_relay::{BoxedStream, CodecHost, Secured};
use postern_tunnel::{StreamHeader, TunnelStream};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq;

/// Random bytes of a key, where there is room for so many.
const SECRET: usize = 32;
/// The route id ahead of them.
const ROUTE: usize = 4;
/// A whole cancel connection: the request is there when it comes.
const TOGETHER: Duration = Duration::from_secs(10);

/// Keys of no session that may be shown to a service within a [`WINDOW`]; short keys could be guessed otherwise.
const MISSES: u32 = 20;
const WINDOW: Duration = Duration::from_secs(1);

/// The cancel keys of a service's live sessions.
pub struct Cancels {
    route: u32,
    live: Mutex<Vec<Live>>,
    /// Keys of no session that were shown since; whoever showed them, with TLS or without.
    misses: Mutex<(Instant, u32)>,
}

struct Live {
    key: Vec<u8>,
    of: Arc<Target>,
}

/// Whose session a key is of, and how its server is reached.
pub struct Target {
    pub upstream_key: Vec<u8>,
    pub resource: Offered,
    pub trust: Arc<TrustBundle>,
    pub session_id: String,
}

impl Target {
    /// Whether its server is never used without TLS.
    pub fn needs_tls(&self) -> bool {
        self.resource.tls.is_some()
    }
}

impl Cancels {
    /// `route`: see [`postern_identity::AgentIdentity::cancel_route`].
    pub fn new(route: u32) -> Self {
        Cancels {
            route,
            live: Mutex::default(),
            misses: Mutex::new((Instant::now(), 0)),
        }
    }

    /// A key of at most `room` bytes, 8 or more, for as long as the guard lives.
    pub fn offer(self: &Arc<Self>, target: Target, room: usize) -> Result<(Vec<u8>, Held), String> {
        let secret = room.saturating_sub(ROUTE).min(SECRET);
        if secret < 4 {
            return Err(format!("a cancel key of {room} bytes could be guessed"));
        }
        let of = Arc::new(target);
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let mut key = self.route.to_be_bytes().to_vec();
            key.resize(ROUTE + secret, 0);
            let random = aws_lc_rs::rand::fill(&mut key[ROUTE..]);
            random.map_err(|_| "this host has no randomness".to_owned())?;
            // One key, one session.
            if live.iter().all(|l| l.key != key) {
                live.push(Live {
                    key: key.clone(),
                    of: of.clone(),
                });
                let held = Held {
                    cancels: self.clone(),
                    key: key.clone(),
                };
                return Ok((key, held));
            }
        }
    }

    /// The session of this key; none where too many keys of no session were shown just before.
    pub fn find(&self, key: &[u8]) -> Option<Arc<Target>> {
        self.find_at(key, Instant::now())
    }

    fn find_at(&self, key: &[u8], now: Instant) -> Option<Arc<Target>> {
        // Held to the end, so that nobody guesses beside it.
        let mut misses = self.misses.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(misses.0) >= WINDOW {
            *misses = (now, 0);
        }
        // Not even the right key is of use then, or there would be no limit to guesses.
        if misses.1 >= MISSES {
            return None;
        }
        let found = self.look_up(key);
        if found.is_none() {
            misses.1 += 1;
            if misses.1 == MISSES {
                tracing::warn!(
                    "{MISSES} cancel requests with keys of no session within {WINDOW:?}; more are not looked at until that is over"
                );
            }
        }
        found
    }

    /// Takes as long whichever key it is, and if it is none.
    fn look_up(&self, key: &[u8]) -> Option<Arc<Target>> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        for one in live.iter() {
            if bool::from(one.key.as_slice().ct_eq(key)) {
                found = Some(one.of.clone());
            }
        }
        found
    }
}

/// While it lives, its key is good.
pub struct Held {
    cancels: Arc<Cancels>,
    key: Vec<u8>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let live = &self.cancels.live;
        let mut live = live.lock().unwrap_or_else(PoisonError::into_inner);
        live.retain(|l| l.key != self.key);
    }
}

/// Serves a connection that the proxy took for a cancel request.
pub async fn serve(
    served: &Served,
    cancels: &Arc<Cancels>,
    header: StreamHeader,
    stream: TunnelStream,
) -> Result<(), String> {
    let codec = served
        .plugin
        .codec(&served.settings, &header.trace)
        .await
        .map_err(|e| e.to_string())?;
    let host = CancelHost {
        served,
        cancels,
        source: header.source,
        found: OnceLock::new(),
    };
    let run = postern_relay::run_codec(stream, codec, &host);
    match tokio::time::timeout(TOGETHER, run).await {
        // The client is told nothing, so this is the only place where it can be seen.
        Ok(Ok(stats)) => match stats.closed {
            Some(why) => Err(why),
            None => Ok(()),
        },
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err(format!("a cancel request took more than {TOGETHER:?}")),
    }
}

/// What the relay may ask for a connection without a user.
struct CancelHost<'a> {
    served: &'a Served,
    cancels: &'a Arc<Cancels>,
    source: String,
    found: OnceLock<Arc<Target>>,
}

impl CodecHost for CancelHost<'_> {
    async fn authorize(&self, _: &[(String, String)]) -> Result<(), String> {
        Err("this connection may only cancel: it came without TLS, so there is no user".into())
    }

    async fn connect(&self, endpoint: Endpoint) -> Result<BoxedStream, String> {
        match (endpoint, self.found.get()) {
            (Endpoint::Cancel, Some(target)) => dial_for(target).await,
            _ => Err("this connection may only cancel".into()),
        }
    }

    fn needs_tls(&self, _: Endpoint) -> bool {
        self.found.get().is_none_or(|target| target.needs_tls())
    }

    async fn start_tls(&self, _: Endpoint, stream: BoxedStream) -> Result<Secured, String> {
        match self.found.get() {
            Some(target) => secure_for(target, stream).await,
            None => Err("this connection may only cancel".into()),
        }
    }

    fn find_cancel(&self, key: &[u8]) -> Option<Vec<u8>> {
        let target = self.cancels.find(key)?;
        let event = told(&self.served.decider, &target, &self.source);
        self.served.audit.emit_later(event);
        let key = target.upstream_key.clone();
        let _ = self.found.set(target);
        Some(key)
    }

    async fn event(&self, _: PluginEvent) -> Result<(), String> {
        // What the host knows of it is on record already.
        Ok(())
    }
}

/// `session.cancel`
pub fn told(decider: &Decider, target: &Target, source: &str) -> Event {
    Event::new(names::SESSION_CANCEL)
        .with("session_id", &target.session_id)
        .with("kind", &target.resource.id.kind)
        .with("resource", &target.resource.id.name)
        .with("service", &decider.service)
        .with("source", source)
}

/// The server of the session that is to be cancelled.
pub async fn dial_for(target: &Target) -> Result<BoxedStream, String> {
    match &target.resource.address {
        Some(address) => dial(address).await,
        None => Err("the resource has no address".into()),
    }
}

/// A cancel request over TLS shows no certificate: the key says it all.
pub async fn secure_for(target: &Target, stream: BoxedStream) -> Result<Secured, String> {
    let resource = &target.resource;
    let tls = resource.tls.clone().unwrap_or_default();
    let address = resource.address.as_deref().unwrap_or_default();
    let secured = upstream::secure(stream, &tls, address, &target.trust, None).await;
    secured.map(|(secured, _)| secured)
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_identity::ResourceId;

    fn target(session: &str) -> Target {
        Target {
            upstream_key: session.as_bytes().to_vec(),
            resource: Offered {
                id: ResourceId::new("postgres", "orders").unwrap(),
                labels: Default::default(),
                direct: false,
                address: None,
                tls: None,
                auth: Default::default(),
                admin: None,
            },
            trust: Arc::new(TrustBundle {
                cluster: "demo".into(),
                cas: vec![],
            }),
            session_id: session.into(),
        }
    }

    #[test]
    fn a_key_is_of_one_live_session() {
        let cancels = Arc::new(Cancels::new(0x0102_0304));
        let (a, held_a) = cancels.offer(target("a"), 8).unwrap();
        let (b, _held_b) = cancels.offer(target("b"), 256).unwrap();
        assert_eq!((a.len(), b.len()), (8, 36));
        assert_eq!((&a[..4], &b[..4]), (&[1, 2, 3, 4][..], &[1, 2, 3, 4][..]));
        assert_eq!(cancels.find(&a).unwrap().session_id, "a");
        assert_eq!(cancels.find(&b).unwrap().upstream_key, b"b");
        assert!(cancels.find(&a[..7]).is_none() && cancels.find(&[]).is_none());
        let mut other = a.clone();
        other[7] ^= 1;
        assert!(cancels.find(&other).is_none());
        drop(held_a);
        assert!(cancels.find(&a).is_none(), "the session has ended");
        assert!(cancels.offer(target("c"), 7).is_err());
    }

    #[test]
    fn keys_are_not_guessed_one_after_the_other() {
        let cancels = Arc::new(Cancels::new(1));
        let (key, _held) = cancels.offer(target("a"), 8).unwrap();
        let now = Instant::now();
        for _ in 0..MISSES {
            // Keys that are right are no misses.
            assert!(cancels.find_at(&key, now).is_some());
            assert!(cancels.find_at(b"another!", now).is_none());
        }
        assert!(cancels.find_at(&key, now).is_none(), "it was not looked at");
        assert!(cancels.find_at(&key, now + WINDOW).is_some());
    }
}
