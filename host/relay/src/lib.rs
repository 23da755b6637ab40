//! The native data path: drives a codec plugin between client and upstream, and copies bytes once it is done.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

use postern_plugin::{Codec, Endpoint, PluginError, PluginEvent};
use tokio::io::{AsyncRead, AsyncWrite};

/// Any byte stream.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}
/// A stream whose type the relay need not know.
pub type BoxedStream = Box<dyn Io>;

/// What the relay may ask of the host; the agent implements it.
pub trait CodecHost: Send + Sync {
    /// RBAC: may this session use these principals? `Err` is the reason, for the plugin to word in its protocol.
    fn authorize(
        &self,
        asked: &[(String, String)],
    ) -> impl Future<Output = Result<(), String>> + Send;
    /// Dials the resource of this session. `Err` is the reason, in words for the user.
    fn connect(
        &self,
        endpoint: Endpoint,
    ) -> impl Future<Output = Result<BoxedStream, String>> + Send;
    /// An audit event of the plugin.
    fn event(&self, event: PluginEvent);
}

/// What went over a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RelayStats {
    /// Bytes written towards the upstream.
    pub to_upstream: u64,
    /// Bytes written towards the client.
    pub to_client: u64,
    /// The plugin closed the connection for this reason (a denial, say).
    pub closed: Option<String>,
}

/// Why a relayed connection ended early.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("{0}")]
    Plugin(#[from] PluginError),
    #[error("client connection: {0}")]
    Client(std::io::Error),
    #[error("upstream connection: {0}")]
    Upstream(std::io::Error),
    #[error("plugin broke the contract: {0}")]
    Contract(String),
}

/// Runs one connection through a codec plugin until both sides are closed.
pub async fn run_codec(
    client: impl AsyncRead + AsyncWrite + Send + Unpin,
    codec: Codec,
    host: &impl CodecHost,
) -> Result<RelayStats, RelayError> {
    let _ = (client, codec, host);
    Err(RelayError::Contract("not built yet".into()))
}

/// Copies both ways until both directions have ended; half-close aware. Returns (bytes a→b, bytes b→a).
pub async fn splice(
    a: impl AsyncRead + AsyncWrite + Send + Unpin,
    b: impl AsyncRead + AsyncWrite + Send + Unpin,
) -> std::io::Result<(u64, u64)> {
    let _ = (a, b);
    Err(std::io::Error::other("not built yet"))
}
