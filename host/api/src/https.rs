//! Small HTTPS questions: a proxy's trust bundle, an issuer's keys, GitHub's ID token. No redirect is followed: whom we
//! ask was named by an operator, and nobody else is meant.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, RequestBuilder, StatusCode};

/// A client with this TLS configuration; each request may take `timeout`, all in all.
pub fn client(tls: rustls::ClientConfig, timeout: Duration) -> Result<Client, String> {
    Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .timeout(timeout)
        .user_agent(concat!("postern/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|e| innermost(&e))
}

/// TLS by the system's CAs.
pub fn public_tls() -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    tls(roots)
}

/// TLS by these CAs alone.
pub fn tls(roots: rustls::RootCertStore) -> Result<rustls::ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("TLS: {e}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

/// The body of the answer, which has to be `200 OK` and at most `max` bytes.
pub async fn body(request: RequestBuilder, max: usize) -> Result<Vec<u8>, String> {
    let mut response = request.send().await.map_err(|e| innermost(&e))?;
    if response.status() != StatusCode::OK {
        return Err(format!("it answered {}", response.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| innermost(&e))? {
        if body.len() + chunk.len() > max {
            return Err(format!("its answer is larger than {max} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What went wrong in the end: the outer layers say only that a request failed, and where.
fn innermost(e: &reqwest::Error) -> String {
    if e.is_timeout() {
        return "no answer in time".into();
    }
    let mut cause: &dyn Error = e;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
