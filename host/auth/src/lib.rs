//! The Auth Service: the certificate authorities, and the record of tokens, users, roles, locks and agents.

#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use postern_identity::TrustBundle;
use tokio_util::sync::CancellationToken;

/// What `[auth]` says, and where the state lives.
#[derive(Debug, Clone)]
pub struct AuthOptions {
    pub cluster: String,
    pub data_dir: PathBuf,
    pub listen: String,
    pub cert_ttl: Duration,
    pub rejoin_window: Duration,
    pub proxy_public_addr: Option<String>,
}

pub struct AuthServer {
    trust: TrustBundle,
    addr: SocketAddr,
}

#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    #[error("{0}")]
    Internal(String),
}

impl AuthServer {
    pub async fn start(_opts: AuthOptions, _shutdown: CancellationToken) -> Result<AuthServer, AuthError> {
        Err(AuthError::Internal("the Auth Service is not written yet".into()))
    }
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }
    pub fn trust(&self) -> TrustBundle {
        self.trust.clone()
    }
    pub async fn mint_proxy_token(&self) -> Result<String, AuthError> {
        Err(AuthError::Internal("the Auth Service is not written yet".into()))
    }
    pub async fn stopped(self) {}
}
