//! The native data path: drives a codec plugin between client and upstream, and copies bytes once it is done.
//!
//! [`run_codec`] runs one connection; it asks its [`CodecHost`] whatever the plugin asks. `duplex.rs` moves the bytes,
//! `drive.rs` carries out the plugin's steps, `ask.rs` puts its questions to the host, `start.rs` knows how far the upstream
//! is, `splice.rs` is the copy for connections without a plugin.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod ask;
mod drive;
mod duplex;
mod flow;
mod splice;
mod start;

pub use drive::run_codec;
pub use splice::splice;

use postern_plugin::{Challenge, Endpoint, PluginError, PluginEvent};
use tokio::io::{AsyncRead, AsyncWrite};
use zeroize::Zeroizing;

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

    /// Whether nothing of this endpoint may be used before it speaks TLS.
    fn needs_tls(&self, endpoint: Endpoint) -> bool {
        let _ = endpoint;
        false
    }

    /// Speaks TLS over a connection that `connect` made; has its own deadline. `Err` is the reason, in words for the user; the
    /// connection is gone then.
    fn start_tls(
        &self,
        endpoint: Endpoint,
        stream: BoxedStream,
    ) -> impl Future<Output = Result<Secured, String>> + Send {
        drop(stream);
        async move { Err(unsupported(&format!("TLS to the endpoint {endpoint:?}"))) }
    }

    /// Answers a challenge of the upstream on the connection made last. The host checks whose account it is, and that one
    /// connection has one exchange.
    fn answer(
        &self,
        endpoint: Endpoint,
        challenge: Challenge,
    ) -> impl Future<Output = Result<Vec<u8>, String>> + Send {
        async move {
            Err(unsupported(&format!(
                "answering {:?} at the endpoint {endpoint:?}",
                challenge.method
            )))
        }
    }

    /// The secret of this account, to be written to the upstream, whose TLS is verified.
    fn secret(
        &self,
        endpoint: Endpoint,
        account: String,
    ) -> impl Future<Output = Result<Zeroizing<Vec<u8>>, String>> + Send {
        async move {
            Err(unsupported(&format!(
                "a secret for {account:?} at the endpoint {endpoint:?}"
            )))
        }
    }

    /// Keeps the key by which the upstream lets this session be cancelled, and makes one for the client, of at most `room` bytes.
    fn offer_cancel(&self, key: Vec<u8>, room: usize) -> Result<Vec<u8>, String> {
        let _ = (key, room);
        Err(unsupported("cancel keys"))
    }

    /// The upstream's key of the session that has this key; from then on `connect` to the cancel endpoint dials that
    /// session's upstream.
    fn find_cancel(&self, key: &[u8]) -> Option<Vec<u8>> {
        let _ = key;
        None
    }

    /// An audit event of the plugin. The steps after it are carried out when this is done, so it is where a host holds up a
    /// session that is faster than its record. `Err` ends the session.
    fn event(&self, event: PluginEvent) -> impl Future<Output = Result<(), String>> + Send;
}

fn unsupported(what: &str) -> String {
    format!("this host has nothing for {what}")
}

/// A stream that speaks TLS now.
pub struct Secured {
    pub stream: BoxedStream,
    /// The host knows who is at the other end: its certificate was verified.
    pub verified: bool,
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
    /// The host ends it: what happens could not be recorded, for example.
    #[error("{0}")]
    Host(String),
}
