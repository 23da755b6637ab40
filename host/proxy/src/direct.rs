//! Passing TLS through unread: to Auth, and to agents for resources that allow it.

use crate::anonymous::Permit;
use crate::hello::Hello;
use crate::shared::Shared;
use postern_identity::ResourceId;
use postern_tunnel::{Spliced, StreamHeader, TunnelStream, splice};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

/// After the tunnel below was cut, for what has arrived already to be delivered.
const LAST_BYTES: Duration = Duration::from_secs(2);

/// For an agent to take the ClientHello.
const GREETING: Duration = Duration::from_secs(5);

/// A TLS alert (RFC 8446, section 6) in a record of its own, fatal: the handshake has not begun.
#[derive(Clone, Copy)]
pub(crate) enum Alert {
    UnrecognizedName = 112,
    InternalError = 80,
}

pub(crate) async fn refuse(mut io: impl AsyncWrite + Unpin, alert: Alert) {
    let record = [21, 3, 3, 0, 2, 2, alert as u8];
    // The peer may be gone; it gets no better answer.
    let _ = timeout(Duration::from_secs(1), async {
        io.write_all(&record).await?;
        io.shutdown().await
    })
    .await;
}

/// Copies bytes between a client and an agent, until either has ended it, the tunnel is cut, or `cut` is done.
pub(crate) async fn relay(
    shared: &Shared,
    client: &mut (impl AsyncRead + AsyncWrite + Unpin),
    mut stream: TunnelStream,
    cut: impl Future<Output = ()>,
) -> io::Result<()> {
    let _relayed = shared.relayed();
    let count = Spliced::default();
    let severed = stream.severed();
    let severed = async {
        severed.await;
        sleep(LAST_BYTES).await;
    };
    let result = tokio::select! {
        result = splice(client, &mut stream, &count) => result,
        () = severed => Err(io::Error::other("the agent's tunnel was cut")),
        () = cut => Err(io::Error::other("locked")),
    };
    metrics::counter!("postern_proxy_bytes_total", "direction" => "up")
        .increment(count.up.into_inner());
    metrics::counter!("postern_proxy_bytes_total", "direction" => "down")
        .increment(count.down.into_inner());
    result
}

/// To Auth, which does its own authentication.
pub(crate) async fn to_auth(shared: &Shared, mut client: TcpStream, hello: Hello) -> &'static str {
    let connected = timeout(
        Duration::from_secs(5),
        TcpStream::connect(&shared.auth_addr),
    )
    .await;
    let mut auth = match connected {
        Ok(Ok(auth)) => auth,
        failed => {
            warn!(addr = shared.auth_addr, error = ?failed.map(|r| r.map(drop)), "cannot reach the Auth Service");
            refuse(client, Alert::InternalError).await;
            return "auth-unreachable";
        }
    };
    let copied = async {
        auth.set_nodelay(true)?;
        auth.write_all(&hello.raw).await?;
        let (mut from_client, mut to_client) = client.split();
        let (mut from_auth, mut to_auth) = auth.split();
        let down = async {
            copy(&mut from_auth, &mut to_client).await?;
            to_client.shutdown().await
        };
        let up = async {
            copy(&mut from_client, &mut to_auth).await?;
            to_auth.shutdown().await?;
            std::future::pending().await
        };
        // When Auth has hung up there is nothing left to wait for: a client that stays is only holding a place.
        tokio::select! {
            done = down => done,
            done = up => done,
        }
    };
    match copied.await {
        Ok(()) => "ok",
        Err(_) => "broken",
    }
}

/// To an agent, without authentication here: only where the resource says so, and not too often.
pub(crate) async fn to_agent(
    shared: &Shared,
    mut client: TcpStream,
    peer: SocketAddr,
    id: ResourceId,
    hello: Hello,
    permit: Permit,
) -> &'static str {
    if !shared.budget.direct(peer).await {
        refuse(client, Alert::InternalError).await;
        return "rate-limited";
    }
    drop(permit);
    let registry = shared.tunnel.registry();
    shared.until_there(&id).await;
    // Whether there is such a resource that is not direct is nobody's business.
    if !registry.lookup(&id).is_some_and(|route| route.direct) {
        refuse(client, Alert::UnrecognizedName).await;
        return "not-direct";
    }
    let header = StreamHeader {
        kind: id.kind.clone(),
        resource: id.name.clone(),
        source: peer.to_string(),
        user: None,
        direct: true,
        cancel: false,
        trace: uuid::Uuid::now_v7().to_string(),
    };
    let mut stream = match registry.open(&id, header).await {
        Ok(stream) => stream,
        Err(e) => {
            debug!(%peer, error = %e, "no stream for a direct connection");
            refuse(client, Alert::InternalError).await;
            return e.code();
        }
    };
    let greeted = async {
        stream.write_all(&hello.raw).await?;
        stream.flush().await
    };
    if !matches!(timeout(GREETING, greeted).await, Ok(Ok(()))) {
        return "broken";
    }
    match relay(shared, &mut client, stream, std::future::pending()).await {
        Ok(()) => "ok",
        Err(_) => "broken",
    }
}
