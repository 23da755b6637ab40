//! Who calls, and whether he may: read from the client certificate when the connection was made, checked again at
//! every call, because connections outlive certificates and locks come at any time.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use postern_access::Lock;
use postern_api::status::{reasons, refuse};
use postern_audit::names;
use postern_identity::{AgentIdentity, Peer, UserIdentity};
use tonic::{Code, Request, Status};

use crate::budget::{Purpose, Seat};
use crate::error::internal;
use crate::records::{lock_host, lock_service, lock_user};
use crate::state::Shared;
use crate::time;

/// The service name that only proxies have.
pub const PROXY: &str = "proxy";

/// What is known of a connection; tonic puts it into the extensions of its requests.
#[derive(Clone, Debug)]
pub struct ConnInfo {
    pub addr: SocketAddr,
    /// `None`: no client certificate.
    pub peer: Option<Result<(Peer, SystemTime), String>>,
    pub patience: Patience,
    /// Of a connection without a valid certificate.
    pub seat: Option<Seat>,
}

/// How long an anonymous connection may stay. A call in hand extends it, so that a login which waits for its turn
/// is not cut off.
#[derive(Clone, Debug)]
pub struct Patience {
    since: Instant,
    until_ms: Arc<AtomicU64>,
}

impl Patience {
    pub fn new(first: Duration) -> Self {
        Patience {
            since: Instant::now(),
            until_ms: Arc::new(AtomicU64::new(millis(first))),
        }
    }

    pub fn deadline(&self) -> Instant {
        self.since + Duration::from_millis(self.until_ms.load(Ordering::Relaxed))
    }

    fn extend(&self, by: Duration) {
        // Nobody needs longer to log in or to join, whatever he calls in between.
        const LONGEST: Duration = Duration::from_secs(60);
        self.until_ms.fetch_max(
            millis((self.since.elapsed() + by).min(LONGEST)),
            Ordering::Relaxed,
        );
    }
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// One service of an agent, or a proxy.
#[derive(Debug, Clone)]
pub struct AgentCaller {
    pub id: AgentIdentity,
    pub not_after: SystemTime,
}

impl AgentCaller {
    pub fn is_proxy(&self) -> bool {
        self.id.service == PROXY
    }

    /// The locks that stop this caller.
    pub fn lock_targets(&self) -> [String; 2] {
        [
            lock_host(&self.id.host_id),
            lock_service(&self.id.host_id, &self.id.service),
        ]
    }
}

/// The address of a caller who needs no certificate. A stranger's connection lives on for this call, if there is room
/// for one more of its purpose; who shows a certificate has his place already.
pub fn anonymous<T>(req: &Request<T>, purpose: Purpose) -> Result<IpAddr, Status> {
    let Some(info) = req.extensions().get::<ConnInfo>() else {
        return Ok(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    };
    if info.seat.as_ref().is_some_and(|s| !s.change(purpose)) {
        let message = "too many connections without a certificate, from this address or in all; try again in a moment";
        return Err(refuse(Code::ResourceExhausted, reasons::BUSY, message));
    }
    info.patience.extend(Duration::from_secs(20));
    Ok(info.addr.ip())
}

/// Admits agents and proxies.
pub async fn agent<T>(
    state: &Shared,
    req: &Request<T>,
    method: &str,
) -> Result<AgentCaller, Status> {
    let (peer, not_after, addr) = certificate(state, req, method, "an agent or a proxy").await?;
    let id = match peer {
        Peer::Agent(id) => id,
        Peer::User(user) => {
            let message = format!(
                "{method} is for agents and proxies; user {:?} may not call it",
                user.name
            );
            return Err(refusal(
                state,
                &format!("user:{}", user.name),
                addr,
                method,
                reasons::WRONG_CALLER,
                message,
            )
            .await);
        }
    };
    let caller = AgentCaller { id, not_after };
    let who = format!("service:{}/{}", caller.id.host_id, caller.id.service);
    unlocked(state, &caller.lock_targets(), &who, addr, method).await?;
    Ok(caller)
}

/// Admits users.
pub async fn user<T>(
    state: &Shared,
    req: &Request<T>,
    method: &str,
) -> Result<UserIdentity, Status> {
    let (peer, _, addr) = certificate(state, req, method, "a user").await?;
    let user = match peer {
        Peer::User(user) => user,
        Peer::Agent(id) => {
            let who = format!("service:{}/{}", id.host_id, id.service);
            let message = format!("{method} is for users; {who} may not call it");
            return Err(refusal(state, &who, addr, method, reasons::WRONG_CALLER, message).await);
        }
    };
    let target = lock_user(&user.name);
    unlocked(state, std::slice::from_ref(&target), &target, addr, method).await?;
    Ok(user)
}

async fn certificate<T>(
    state: &Shared,
    req: &Request<T>,
    method: &str,
    whose: &str,
) -> Result<(Peer, SystemTime, SocketAddr), Status> {
    let Some(info) = req.extensions().get::<ConnInfo>().cloned() else {
        return Err(internal(
            "identify the caller",
            "the connection carries no information",
        ));
    };
    let addr = info.addr;
    match info.peer {
        None => {
            let message =
                format!("{method} needs the certificate of {whose}, and this connection gave none");
            Err(refusal(
                state,
                "anonymous",
                addr,
                method,
                reasons::NO_CERTIFICATE,
                message,
            )
            .await)
        }
        Some(Err(why)) => {
            let message = format!("{method}: {why}");
            Err(refusal(
                state,
                "unknown",
                addr,
                method,
                reasons::BAD_CERTIFICATE,
                message,
            )
            .await)
        }
        Some(Ok((peer, not_after))) if not_after <= SystemTime::now() => {
            let who = match &peer {
                Peer::Agent(id) => format!("service:{}/{}", id.host_id, id.service),
                Peer::User(user) => format!("user:{}", user.name),
            };
            let message = format!(
                "the certificate of {who} expired at {}: connect again with a new one",
                time::rfc3339(time::unix(not_after))
            );
            Err(refusal(state, &who, addr, method, reasons::BAD_CERTIFICATE, message).await)
        }
        Some(Ok((peer, not_after))) => Ok((peer, not_after, addr)),
    }
}

async fn unlocked(
    state: &Shared,
    targets: &[String],
    who: &str,
    addr: SocketAddr,
    method: &str,
) -> Result<(), Status> {
    match state.locked(targets).await {
        Ok(None) => Ok(()),
        Ok(Some(lock)) => {
            let message = locked_message(&lock);
            Err(refusal(state, who, addr, method, reasons::LOCKED, message).await)
        }
        // Without knowing the locks nobody is let in.
        Err(e) => Err(internal("read the locks", e)),
    }
}

pub fn locked_message(lock: &Lock) -> String {
    format!("{} is locked: {}", lock.target, lock.reason)
}

/// Words a refusal and audits it: the first ones of a caller, a locked agent calls every few seconds.
pub async fn refusal(
    state: &Shared,
    who: &str,
    addr: SocketAddr,
    method: &str,
    reason: &'static str,
    message: String,
) -> Status {
    let anonymous = who == "anonymous" || who == "unknown";
    let key = if anonymous {
        format!("{} {reason}", addr.ip())
    } else {
        format!("{who} {method} {reason}")
    };
    if state.refusal_limit.take(key).is_ok() {
        let event = state
            .event(names::AUTH_REFUSED)
            .with("caller", who)
            .with("method", method)
            .with("reason", reason)
            .with("message", &message)
            .with("source", addr.to_string());
        state.record(event).await;
    }
    let code = match reason {
        reasons::NO_CERTIFICATE | reasons::BAD_CERTIFICATE => Code::Unauthenticated,
        _ => Code::PermissionDenied,
    };
    refuse(code, reason, message)
}
