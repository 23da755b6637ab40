//! The public keys of issuers of ID tokens: fetched as OpenID Connect Discovery 1.0 says (section 4), kept for some
//! minutes, and asked for again when a token names a key that is not among them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use postern_api::https;
use postern_idtoken::{Keys, KeysError};
use reqwest::{Client, Url};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde::Deserialize;

use crate::limits::Limiter;
use crate::records::KeySource;

/// How long fetched keys are used: a key that its issuer has withdrawn goes on that long.
const KEEP: Duration = Duration::from_secs(600);
/// How long after a failure nobody asks again.
const PAUSE: Duration = Duration::from_secs(5);
/// Issuers whose keys are kept. They come from join tokens, which administrators make.
const MAX_ISSUERS: u64 = 100;
/// Both requests to an issuer, all in all.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A discovery document or a JWK set of more bytes is none.
const MAX_BODY: usize = 256 * 1024;
/// How often an unknown key makes us ask again: strangers can invent key ids.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// See the module.
pub struct Issuers {
    known: Cache<Which, Arc<Keys>>,
    /// Those that could not be had just now: strangers must not make us ask without a pause.
    failed: Cache<Which, IssuerError>,
    again: Limiter,
}

/// An issuer, and where its keys come from.
type Which = (String, KeySource);

/// Why there are no keys to check ID tokens with.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IssuerError {
    #[error("{0:?} is no issuer: {1}")]
    Url(String, &'static str),
    #[error("the issuer's keys can't be fetched from {url}: {why}")]
    Fetch { url: String, why: String },
    #[error("{url} answers for issuer {got:?}, not for {want:?}; write the issuer as it does")]
    OtherIssuer {
        url: String,
        got: String,
        want: String,
    },
    #[error("{0}")]
    Keys(#[source] Arc<KeysError>),
    #[error("no HTTPS: {0}")]
    Client(String),
    #[error("the CAs given for the issuer hold no certificate in PEM form")]
    Ca,
}

impl Default for Issuers {
    fn default() -> Self {
        Issuers {
            known: cache(KEEP),
            failed: cache(PAUSE),
            again: Limiter::new(2, ASK_AGAIN),
        }
    }
}

fn cache<V: Clone + Send + Sync + 'static>(keep: Duration) -> Cache<Which, V> {
    let cache = Cache::builder().max_capacity(MAX_ISSUERS);
    cache.time_to_live(keep).build()
}

impl Issuers {
    /// The keys that are known, or read now. Several who ask at once wait for one fetch.
    pub async fn keys(&self, issuer: &str, source: &KeySource) -> Result<Arc<Keys>, IssuerError> {
        let which = (issuer.to_owned(), source.clone());
        if let Some(failed) = self.failed.get(&which).await {
            return Err(failed);
        }
        if let Some(keys) = self.known.get(&which).await {
            return Ok(keys);
        }
        let (known, failed) = (self.known.clone(), self.failed.clone());
        // Goes on when the caller hangs up: its outcome is what the next one need not ask for.
        let read = tokio::spawn(async move {
            match known.try_get_with_by_ref(&which, fetch(&which)).await {
                Ok(keys) => Ok(keys),
                Err(e) => {
                    let e = IssuerError::clone(&e);
                    failed.insert(which, e.clone()).await;
                    Err(e)
                }
            }
        });
        read.await.map_err(|e| IssuerError::Client(e.to_string()))?
    }

    /// Keys fetched anew; `None` where they are not fetched, or were just now. Those that are known stay until then.
    pub async fn newer_keys(
        &self,
        issuer: &str,
        source: &KeySource,
    ) -> Option<Result<Arc<Keys>, IssuerError>> {
        let which = (issuer.to_owned(), source.clone());
        if matches!(source, KeySource::Static(_)) || self.again.take(&which).is_err() {
            return None;
        }
        let known = self.known.clone();
        let read = tokio::spawn(async move {
            let keys = fetch(&which).await?;
            known.insert(which, keys.clone()).await;
            Ok(keys)
        });
        Some(match read.await {
            Ok(keys) => keys,
            Err(e) => Err(IssuerError::Client(e.to_string())),
        })
    }
}

async fn fetch((issuer, source): &Which) -> Result<Arc<Keys>, IssuerError> {
    let ca_pem = match source {
        KeySource::Static(jwks) => return parse(jwks),
        KeySource::Discovered { ca_pem } => ca_pem,
    };
    tokio::time::timeout(TIMEOUT, discover(issuer, ca_pem))
        .await
        .unwrap_or_else(|_| {
            Err(IssuerError::Fetch {
                url: issuer.clone(),
                why: format!("no answer within {TIMEOUT:?}"),
            })
        })
}

fn parse(jwks: &str) -> Result<Arc<Keys>, IssuerError> {
    let keys = Keys::parse(jwks).map_err(|e| IssuerError::Keys(Arc::new(e)))?;
    Ok(Arc::new(keys))
}

/// What an issuer says of itself, as far as we need it.
#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

async fn discover(issuer: &str, ca_pem: &str) -> Result<Arc<Keys>, IssuerError> {
    check_issuer(issuer)?;
    let client = client(ca_pem)?;
    let url = format!(
        "{}/.well-known/openid-configuration",
        issuer.trim_end_matches('/')
    );
    let failed = |why: String| IssuerError::Fetch {
        url: url.clone(),
        why,
    };
    let body = get(&client, &url).await.map_err(failed)?;
    let found: Discovery = serde_json::from_str(&body)
        .map_err(|e| failed(format!("it answers with no discovery document ({e})")))?;
    if found.issuer != issuer {
        return Err(IssuerError::OtherIssuer {
            url,
            got: found.issuer,
            want: issuer.to_owned(),
        });
    }
    let url = found.jwks_uri;
    let failed = |why: String| IssuerError::Fetch {
        url: url.clone(),
        why,
    };
    secure(&url).map_err(|why| failed(why.to_owned()))?;
    // Whom we ask over the network must not send us to what listens on this machine.
    if issuer.starts_with("https:") && !url.starts_with("https:") {
        return Err(failed("it must be an https URL, as the issuer is".into()));
    }
    parse(&get(&client, &url).await.map_err(failed)?)
}

/// Whether this can be the `iss` of ID tokens whose keys are worth asking for (OpenID Connect Core 1.0, section 2).
pub fn check_issuer(issuer: &str) -> Result<(), IssuerError> {
    let wrong = |why| IssuerError::Url(issuer.to_owned(), why);
    secure(issuer).map_err(wrong)?;
    if issuer.contains(['?', '#', '@']) {
        return Err(wrong(
            "it must have neither a query nor a fragment nor a user",
        ));
    }
    Ok(())
}

/// Keys from plain HTTP would be anybody's on the way. Only this machine's own are let pass.
fn secure(url: &str) -> Result<(), &'static str> {
    const WHY: &str = "it must be an https URL (http only on a loopback address)";
    let url = Url::parse(url).map_err(|_| WHY)?;
    let host = url.host_str().unwrap_or_default();
    let ip = host.trim_start_matches('[').trim_end_matches(']');
    let loopback = ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match url.scheme() {
        "https" if !host.is_empty() => Ok(()),
        "http" if loopback => Ok(()),
        _ => Err(WHY),
    }
}

fn client(ca_pem: &str) -> Result<Client, IssuerError> {
    let tls = if ca_pem.is_empty() {
        https::public_tls()
    } else {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
            let certificate = certificate.map_err(|_| IssuerError::Ca)?;
            roots.add(certificate).map_err(|_| IssuerError::Ca)?;
        }
        if roots.is_empty() {
            return Err(IssuerError::Ca);
        }
        https::tls(roots)
    };
    tls.and_then(|tls| https::client(tls, TIMEOUT))
        .map_err(IssuerError::Client)
}

async fn get(client: &Client, url: &str) -> Result<String, String> {
    let body = https::body(client.get(url), MAX_BODY).await?;
    String::from_utf8(body).map_err(|_| "its answer is no text".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_asked_for_over_https_only() {
        for good in [
            "https://token.actions.githubusercontent.com",
            "https://gitlab.example:8443/path",
            "http://127.0.0.1:4000",
            "http://[::1]:4000",
        ] {
            assert!(check_issuer(good).is_ok(), "{good}");
        }
        for bad in [
            "http://issuer.example",
            "http://localhost:1",
            "http://127.0.0.1.evil.example",
            "ftp://127.0.0.1",
            "issuer.example",
            "https://a.example/?x=1",
            "https://a.example/#x",
            "https://user@a.example",
            "",
        ] {
            assert!(check_issuer(bad).is_err(), "{bad}");
        }
    }
}
