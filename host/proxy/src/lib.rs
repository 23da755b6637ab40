//! The Proxy Service: the only public listener of a cluster. One port; it routes, holds the agents' tunnels, and
//! relays sessions that it cannot read (design "The way of one connection").

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod anonymous;
mod cancel;
mod direct;
mod error;
mod hello;
mod live;
mod prefixed;
mod route;
mod serve;
mod session;
mod shared;
mod sniff;
mod start;
#[cfg(test)]
mod tests;
mod web;

pub use error::ProxyError;
pub use session::{SessionReply, SessionRequest, parse_session_request};
pub use sniff::{Sniff, sniff};
pub use start::ProxyServer;

use postern_config::{CertFiles, JoinParams};
use postern_identity::{CaPin, TrustBundle};
use std::path::PathBuf;

/// What `[proxy]` says, and where the state lives.
#[derive(Clone)]
pub struct ProxyOptions {
    pub cluster: String,
    /// `host:port` to listen on.
    pub listen: String,
    /// `host:port` that users and agents dial; its host goes into the certificates.
    pub public_addr: String,
    /// `host:port` of the Auth Service: where SNI `auth.<cluster>` is passed on to.
    pub auth_addr: String,
    /// The web certificate; else the one issued by the cluster.
    pub tls: Option<CertFiles>,
    /// Credentials are kept in `proxy/` below it, the host key in it.
    pub data_dir: PathBuf,
    pub join: JoinSource,
}

/// How the proxy gets its first credentials.
#[derive(Clone)]
pub enum JoinSource {
    /// Auth runs in this process.
    Local { token: String, trust: TrustBundle },
    /// Auth is elsewhere; `pins` say which one is ours.
    Remote {
        params: Option<JoinParams>,
        pins: Vec<CaPin>,
    },
}
