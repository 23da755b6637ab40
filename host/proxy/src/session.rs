//! The helper path: a user who has authenticated asks for a resource, and bytes flow to its agent. What flows is
//! a session of its own that ends at the agent; the proxy sees ciphertext.

use crate::anonymous::Permit;
use crate::direct::relay;
use crate::shared::Shared;
use postern_identity::{Peer, ResourceId};
use postern_tunnel::{MAX_HEADER, StreamHeader, parse_json, read_json, write_json};
use serde::{Deserialize, Serialize};
use std::io;
use std::net::SocketAddr;
use std::time::SystemTime;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Duration, Instant, sleep, timeout, timeout_at};
use tokio_rustls::server::TlsStream;
use tracing::{debug, info};

/// What a helper asks for: a `u32` length, big-endian, and so much JSON, at most 4096 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRequest {
    pub kind: String,
    pub name: String,
}

/// What it is answered, framed the same way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionReply {
    pub ok: bool,
    /// A stable word; empty if `ok`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub code: String,
    /// For the person who asked.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// The body of a request's frame (a plain function over bytes from the network, fuzzed).
pub fn parse_session_request(body: &[u8]) -> io::Result<ResourceId> {
    checked(parse_json(body)?)
}

fn checked(request: SessionRequest) -> io::Result<ResourceId> {
    ResourceId::new(&request.kind, &request.name)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// How much later than the agent a lock ends an open session here: the agent hears of it at the same time, and its end of the
/// session is the one that says why, to the user and on record. This one is for an agent that doesn't do so.
const AGENT_FIRST: Duration = Duration::from_secs(1);

struct Refusal {
    code: &'static str,
    message: String,
}

/// Serves one connection on the helper path, of which the handshake is done. Returns the outcome, for metrics.
pub(crate) async fn serve<IO>(
    shared: &Shared,
    mut tls: TlsStream<IO>,
    peer: SocketAddr,
    permit: Permit,
    deadline: Instant,
) -> &'static str
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let user = {
        let (_, connection) = tls.get_ref();
        let chain = connection.peer_certificates().unwrap_or_default();
        Peer::from_chain(chain, &shared.trust.borrow())
    };
    let user = match user {
        Ok((Peer::User(user), not_after)) if not_after > SystemTime::now() => user,
        Ok((Peer::User(_), _)) => return "expired",
        Ok((Peer::Agent(agent), _)) => {
            info!(%peer, host = agent.host_id, "an agent's certificate was offered on the users' path");
            return "not-a-user";
        }
        Err(e) => {
            debug!(%peer, error = %e, "a client certificate is refused");
            return "not-a-user";
        }
    };
    // No longer anonymous.
    drop(permit);
    let asked = match timeout_at(deadline, read_json::<SessionRequest>(&mut tls, MAX_HEADER)).await
    {
        Ok(Ok(asked)) => asked,
        Ok(Err(e)) if e.kind() == io::ErrorKind::InvalidData => {
            return no(
                &mut tls,
                Refusal {
                    code: "bad-request",
                    message: e.to_string(),
                },
            )
            .await;
        }
        _ => return "no-request",
    };
    let id = match checked(asked) {
        Ok(id) => id,
        Err(e) => {
            return no(
                &mut tls,
                Refusal {
                    code: "bad-request",
                    message: e.to_string(),
                },
            )
            .await;
        }
    };
    // Entered before the lock is looked up: one that comes in between cuts the session.
    let session = shared.live.enter(&user.name);
    if let Some(reason) = shared.user_locked(&user.name) {
        info!(user = user.name, %peer, "a locked user is refused");
        let message = format!(
            "user {} is locked: {reason}; ask your administrator",
            user.name
        );
        return no(
            &mut tls,
            Refusal {
                code: "locked",
                message,
            },
        )
        .await;
    }
    let trace = uuid::Uuid::now_v7().to_string();
    let header = StreamHeader {
        kind: id.kind.clone(),
        resource: id.name.clone(),
        source: peer.to_string(),
        user: Some(user.name.clone()),
        direct: false,
        cancel: false,
        trace: trace.clone(),
    };
    let registry = shared.tunnel.registry();
    let opening = async {
        shared.until_there(&id).await;
        registry.open(&id, header).await
    };
    let opened = tokio::select! {
        opened = opening => opened,
        () = session.token.cancelled() => return "locked",
    };
    let stream = match opened {
        Ok(stream) => stream,
        Err(e) => {
            let message = format!("{e}; see what there is with: postern ls");
            return no(
                &mut tls,
                Refusal {
                    code: e.code(),
                    message,
                },
            )
            .await;
        }
    };
    let ok = SessionReply {
        ok: true,
        code: String::new(),
        message: String::new(),
    };
    if timeout(
        Duration::from_secs(5),
        write_json(&mut tls, &ok, MAX_HEADER),
    )
    .await
    .is_err()
    {
        return "broken";
    }
    debug!(user = user.name, kind = id.kind, resource = id.name, %peer, trace, "session opened");
    let cut = async {
        session.token.cancelled().await;
        sleep(AGENT_FIRST).await;
    };
    let result = relay(shared, &mut tls, stream, cut).await;
    debug!(user = user.name, trace, ?result, "session closed");
    match result {
        Ok(()) => "ok",
        Err(_) if session.token.is_cancelled() => "locked",
        Err(_) => "broken",
    }
}

async fn no(tls: &mut (impl AsyncWrite + Unpin), refusal: Refusal) -> &'static str {
    let reply = SessionReply {
        ok: false,
        code: refusal.code.into(),
        message: refusal.message,
    };
    let _ = timeout(Duration::from_secs(5), async {
        write_json(tls, &reply, MAX_HEADER).await?;
        tls.shutdown().await
    })
    .await;
    refusal.code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_name_a_resource_or_nothing() {
        let id = parse_session_request(br#"{"kind":"ssh","name":"web-1"}"#).unwrap();
        assert_eq!((id.kind.as_str(), id.name.as_str()), ("ssh", "web-1"));
        for bad in [
            &br#"{"kind":"ssh","name":"../etc"}"#[..],
            br#"{"kind":"ssh"}"#,
            b"",
            b"null",
            br#"{"kind":"auth","name":"x"}"#,
        ] {
            assert!(
                parse_session_request(bad).is_err(),
                "{}",
                String::from_utf8_lossy(bad)
            );
        }
        let ok = SessionReply {
            ok: true,
            code: String::new(),
            message: String::new(),
        };
        assert_eq!(serde_json::to_string(&ok).unwrap(), r#"{"ok":true}"#);
    }
}
