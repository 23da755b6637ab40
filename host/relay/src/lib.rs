//! The native data path: drives a codec plugin between client and upstream, and copies bytes once it is done.
//!
//! [`run_codec`] runs one connection; it asks its [`CodecHost`] whatever the plugin asks. `duplex.rs` moves the bytes,
//! `drive.rs` carries out the plugin's steps, `splice.rs` is the copy for connections without a plugin.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod drive;
mod duplex;
mod flow;
mod splice;

pub use drive::run_codec;
pub use splice::splice;

use postern_plugin::{Endpoint, PluginError, PluginEvent};
use tokio::io::{AsyncRead, AsyncWrite};

/// Any byte stream.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A stream whose type the relay need not know.
pub type BoxedStream = Box<dyn Io>;

/// What the relay may ask of the host; the agent implements it (with `async fn`).
pub trait CodecHost: Send + Sync {
    /// RBAC: may this session use these principals? Empty: may it use the resource at all. `Err` is the reason, for the
    /// plugin to word in its protocol.
    fn authorize(
        &self,
        asked: &[(String, String)],
    ) -> impl Future<Output = Result<(), String>> + Send;

    /// Dials the resource of this session; has its own deadline. `Err` is the reason, in words for the user. Only called
    /// after `authorize` allowed everything that was asked.
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
    /// The plugin closed the connection, for this reason (a denial, an upstream that could not be reached).
    pub closed: Option<String>,
}

/// Why a relayed connection ended early.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The plugin failed or broke its contract; this connection is closed, nothing else is touched.
    #[error("{0}")]
    Plugin(#[from] PluginError),
    #[error("client connection: {0}")]
    Client(#[source] std::io::Error),
    #[error("upstream connection: {0}")]
    Upstream(#[source] std::io::Error),
}
