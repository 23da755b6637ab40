//! PostgreSQL's request to cancel what another connection is doing. Clients send it in plaintext on a connection of its own,
//! as they do to any server: its key is all there is to go by. The first four bytes of the key say which service gave it away;
//! the rest is that service's to judge. The answer is that of a server: the connection is closed, whatever came of it.

use crate::shared::Shared;
use postern_tunnel::StreamHeader;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::debug;

/// Length and request code, ahead of the key.
const HEAD: usize = 8;
/// For an agent to carry it out; libpq waits for as long.
const CARRIED_OUT: Duration = Duration::from_secs(10);
/// Bytes that an agent may answer before it is given up: a server answers none.
const MAX_ANSWER: u64 = 1024;

/// A whole request.
pub(crate) struct CancelRequest {
    bytes: Vec<u8>,
    route: u32,
}

impl CancelRequest {
    /// Reads what is missing of a request that begins with `bytes`; `sniff` has looked at its length.
    pub async fn read(tcp: &mut TcpStream, mut bytes: Vec<u8>) -> io::Result<Self> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "no cancel request");
        let [l0, l1, l2, l3, ..] = *bytes.as_slice() else {
            return Err(wrong());
        };
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        let have = bytes.len();
        // Nothing follows it on its connection.
        if have > length {
            return Err(wrong());
        }
        bytes.resize(length, 0);
        let rest = bytes.get_mut(have..).ok_or_else(wrong)?;
        tcp.read_exact(rest).await?;
        match bytes.get(HEAD..) {
            Some(&[r0, r1, r2, r3, ..]) => Ok(CancelRequest {
                route: u32::from_be_bytes([r0, r1, r2, r3]),
                bytes,
            }),
            _ => Err(wrong()),
        }
    }
}

/// Passes it on to the service that it is for. Returns when that is done with it; the client sees its connection closed then.
pub(crate) async fn pass_on(
    shared: &Shared,
    peer: SocketAddr,
    request: CancelRequest,
) -> &'static str {
    if !shared.budget.cancel(peer) {
        debug!(%peer, "too many cancel requests from this source");
        return "rate-limited";
    }
    let header = StreamHeader {
        kind: String::new(),
        resource: String::new(),
        source: peer.to_string(),
        user: None,
        direct: true,
        cancel: true,
        trace: uuid::Uuid::now_v7().to_string(),
    };
    let registry = shared.tunnel.registry();
    let streams = registry.open_cancel(request.route, header).await;
    if streams.is_empty() {
        debug!(%peer, "a cancel request for no service that is connected here");
        return "unknown-key";
    }
    let carried_out = streams.into_iter().map(|mut stream| {
        let bytes = &request.bytes;
        async move {
            stream.write_all(bytes).await?;
            // Our end stays open, as the client's does: an end would be passed on, ahead of what is to be done.
            stream.flush().await?;
            let mut answer = stream.take(MAX_ANSWER);
            tokio::io::copy(&mut answer, &mut tokio::io::sink()).await
        }
    });
    match timeout(CARRIED_OUT, futures::future::join_all(carried_out)).await {
        Ok(all) if all.iter().all(Result::is_ok) => "ok",
        Ok(_) => "broken",
        Err(_) => "timeout",
    }
}
