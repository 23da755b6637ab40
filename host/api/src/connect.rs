//! Channels to the Auth Service. tonic is built without TLS of its own: ours is a connector around tokio-rustls,
//! so that the certificate rules are those of `postern-identity` and nothing else.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use postern_identity::auth_dns;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

/// TCP connect and TLS handshake together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE: Duration = Duration::from_secs(10);

/// gRPC channel to Auth through any TCP address: Auth itself, or a proxy that passes SNI `auth.<cluster>` through.
///
/// Nothing is dialled until the first call; a lost connection is dialled again by the next call. The TLS server
/// name is `auth.<cluster>` and ALPN is `h2`, whatever `tls` says. A peer that does not answer an HTTP/2 ping
/// (every 10 s) within 10 s is given up.
pub fn connect_lazy(addr: &str, cluster: &str, tls: Arc<rustls::ClientConfig>) -> Channel {
    let name = auth_dns(cluster);
    let mut tls = Arc::unwrap_or_clone(tls);
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let tls = TlsConnector::from(Arc::new(tls));
    let addr: Arc<str> = Arc::from(addr);
    endpoint(&name).connect_with_connector_lazy(tower::service_fn(move |_| {
        let (addr, name, tls) = (Arc::clone(&addr), name.clone(), tls.clone());
        async move {
            let dial = async {
                let server = ServerName::try_from(name.clone())
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
                let tcp = TcpStream::connect(&*addr).await?;
                tcp.set_nodelay(true)?;
                tls.connect(server, tcp).await
            };
            match timeout(CONNECT_TIMEOUT, dial).await {
                Ok(Ok(stream)) => Ok(TokioIo::new(stream)),
                Ok(Err(e)) => Err(io::Error::new(
                    e.kind(),
                    format!(
                        "cannot reach the Auth Service ({name}) at {addr}: {}",
                        explain(&e)
                    ),
                )),
                Err(_) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "cannot reach the Auth Service ({name}) at {addr}: no answer within {} s",
                        CONNECT_TIMEOUT.as_secs()
                    ),
                )),
            }
        }
    }))
}

/// gRPC channel to the administration socket (`data_dir/admin.sock`) on the Auth host.
pub fn connect_unix(path: &Path) -> Channel {
    let path: Arc<Path> = Arc::from(path);
    endpoint("admin.localhost").connect_with_connector_lazy(tower::service_fn(move |_| {
        let path = Arc::clone(&path);
        async move {
            match timeout(CONNECT_TIMEOUT, UnixStream::connect(&*path)).await {
                Ok(Ok(stream)) => Ok(TokioIo::new(stream)),
                Ok(Err(e)) => Err(io::Error::new(
                    e.kind(),
                    format!("cannot reach the Auth Service at {}: {e}", path.display()),
                )),
                Err(_) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no answer from {}", path.display()),
                )),
            }
        }
    }))
}

/// A connection error in words for an operator: rustls wraps what a verifier of ours said into its own types, and
/// names alerts by their number's name.
fn explain(e: &io::Error) -> String {
    use rustls::{AlertDescription, CertificateError, Error};
    match e.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(CertificateError::Other(ours))) => ours.0.to_string(),
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "its certificate is not from this cluster's host CA".to_owned()
        }
        Some(Error::AlertReceived(AlertDescription::CertificateExpired)) => {
            "it refused our certificate: that has expired".to_owned()
        }
        Some(Error::AlertReceived(alert)) => format!("it refused the connection ({alert:?})"),
        _ => e.to_string(),
    }
}

/// The authority only fills `:authority`; the connectors above know where to go. An unusable name fails in the
/// connector, with its own message.
fn endpoint(authority: &str) -> Endpoint {
    Endpoint::from_shared(format!("http://{authority}"))
        .unwrap_or_else(|_| Endpoint::from_static("http://auth.invalid"))
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
}
