//! Getting to know a cluster without a CA pin: its CAs are fetched once over the proxy's publicly
//! valid HTTPS. That trusts the proxy (and the public CAs) this once; whoever calls this says so.

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use postern_identity::{CaPin, TrustBundle};
use rustls_pki_types::ServerName;
use std::{sync::Arc, time::Duration};
use tokio_rustls::TlsConnector;

/// What the proxy could not tell, why, and what to do instead.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BootstrapError(String);

/// How long one question may take, all in all.
const DEADLINE: Duration = Duration::from_secs(10);
/// More than any trust bundle.
const MAX_BODY: usize = 256 * 1024;

/// The cluster's CAs, over the proxy's public certificate.
pub async fn fetch_trust(proxy: &str) -> Result<TrustBundle, BootstrapError> {
    let body = get(proxy, "/v1/ca", public_roots()?).await.map_err(|e| {
        BootstrapError(format!(
            "cannot fetch the cluster's CA from https://{proxy}/v1/ca: {e}; a proxy without a publicly valid certificate needs a CA pin (--ca-pin, or ca_pin in the configuration; `postern tokens create` and enrolment links show it)"
        ))
    })?;
    serde_json::from_slice(&body).map_err(|_| {
        BootstrapError(format!(
            "https://{proxy}/v1/ca did not answer with a cluster's CAs; is {proxy} a Postern proxy?"
        ))
    })
}

/// The cluster's name as the proxy says it. Nothing is trusted for it: a wrong name fails later,
/// when Auth has to prove with its certificate that it is `auth.<cluster>` under a pinned CA.
pub async fn cluster_name(proxy: &str, pins: &[CaPin]) -> Result<String, BootstrapError> {
    #[derive(serde::Deserialize)]
    struct Ping {
        cluster: String,
    }
    let pinned = postern_identity::tls::client_pinned(pins, &[])
        .map_err(|e| BootstrapError(e.to_string()))?;
    let body = match get(proxy, "/v1/ping", pinned).await {
        Ok(body) => Ok(body),
        // The proxy's web certificate may be a public one, under none of the pins.
        Err(first) => get(proxy, "/v1/ping", public_roots()?)
            .await
            .map_err(|_| first),
    };
    let body = body.map_err(|e| {
        BootstrapError(format!(
            "cannot ask the proxy {proxy} for its cluster's name: {e}; give it with --cluster NAME"
        ))
    })?;
    let ping: Ping = serde_json::from_slice(&body).map_err(|_| BootstrapError(format!("{proxy} does not answer like a Postern proxy; give the cluster's name with --cluster NAME")))?;
    postern_identity::check_cluster_name(&ping.cluster)
        .map_err(|e| BootstrapError(e.to_string()))?;
    Ok(ping.cluster)
}

fn public_roots() -> Result<Arc<rustls::ClientConfig>, BootstrapError> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| BootstrapError(format!("TLS: {e}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// The host of `host:port`, without the brackets of an IPv6 address.
fn host_of(addr: &str) -> &str {
    let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

async fn get(proxy: &str, path: &str, tls: Arc<rustls::ClientConfig>) -> Result<Bytes, String> {
    tokio::time::timeout(DEADLINE, exchange(proxy, path, tls))
        .await
        .map_err(|_| format!("no answer within {} s", DEADLINE.as_secs()))?
}

async fn exchange(
    proxy: &str,
    path: &str,
    tls: Arc<rustls::ClientConfig>,
) -> Result<Bytes, String> {
    let tcp = tokio::net::TcpStream::connect(proxy)
        .await
        .map_err(|e| e.to_string())?;
    let name = ServerName::try_from(host_of(proxy).to_owned()).map_err(|e| e.to_string())?;
    let tls = TlsConnector::from(tls)
        .connect(name, tcp)
        .await
        .map_err(|e| e.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(tls))
            .await
            .map_err(|e| e.to_string())?;
    let request = http::Request::get(path)
        .header("host", proxy)
        .header("user-agent", concat!("postern/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new());
    let ask = async {
        let response = sender
            .send_request(request.map_err(|e| e.to_string())?)
            .await
            .map_err(|e| e.to_string())?;
        if response.status() != http::StatusCode::OK {
            return Err(format!("it answered {}", response.status()));
        }
        Limited::new(response.into_body(), MAX_BODY)
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
            .map_err(|e| e.to_string())
    };
    // The connection has to be driven while we wait. It may end before the answer is taken: that is no loss.
    let mut ask = std::pin::pin!(ask);
    tokio::select! {
        answer = &mut ask => answer,
        ended = connection => match ended {
            Ok(()) => ask.await,
            Err(e) => Err(e.to_string()),
        },
    }
}
