//! Getting to know a cluster without a CA pin: its CAs are fetched once over the proxy's publicly
//! valid HTTPS. That trusts the proxy (and the public CAs) this once; whoever calls this says so.

use crate::https;
use postern_identity::{CaPin, TrustBundle};
use std::time::Duration;

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
    let asked = match https::public_tls() {
        Ok(tls) => get(proxy, "/v1/ca", tls).await,
        Err(e) => Err(e),
    };
    let body = asked.map_err(|e| {
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
    let body = match get(proxy, "/v1/ping", (*pinned).clone()).await {
        Ok(body) => Ok(body),
        // The proxy's web certificate may be a public one, under none of the pins.
        Err(first) => match https::public_tls() {
            Ok(tls) => get(proxy, "/v1/ping", tls).await.map_err(|_| first),
            Err(_) => Err(first),
        },
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

async fn get(proxy: &str, path: &str, tls: rustls::ClientConfig) -> Result<Vec<u8>, String> {
    let client = https::client(tls, DEADLINE)?;
    https::body(client.get(format!("https://{proxy}{path}")), MAX_BODY).await
}
