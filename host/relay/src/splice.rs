//! The copy for connections that no plugin looks at.

use crate::RelayError;
use crate::duplex::Duplex;
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};

/// Copies both ways until both directions have ended. An end of one side is told to the other while the opposite direction
/// goes on (half-close). Buffers are 2 KiB each and grow to 64 KiB with use. Returns (bytes a → b, bytes b → a).
pub async fn splice(
    a: impl AsyncRead + AsyncWrite + Send + Unpin,
    b: impl AsyncRead + AsyncWrite + Send + Unpin,
) -> io::Result<(u64, u64)> {
    let mut duplex = Duplex::native(a, b);
    match duplex.next().await {
        Ok(_) => Ok(duplex.written()),
        Err(RelayError::Client(e) | RelayError::Upstream(e)) => Err(e),
        Err(e) => Err(io::Error::other(e)),
    }
}
