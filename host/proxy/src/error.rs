//! Why a proxy does not start, worded for the operator.

use postern_identity::store::StoreError;
use postern_identity::tls::TlsError;
use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error(
        "cannot listen on {addr}: {source}; is another process using the port, or is the port below 1024 without the right to use it?"
    )]
    Listen { addr: String, source: io::Error },
    #[error("[proxy] public_addr {0:?} is not host:port")]
    PublicAddr(String),
    #[error("the proxy's state: {0}")]
    Store(#[from] StoreError),
    #[error("the proxy's web certificate {path}: {why}")]
    WebCertificate { path: PathBuf, why: String },
    #[error("the proxy's certificates: {0}")]
    Tls(#[from] TlsError),
}
