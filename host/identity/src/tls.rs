//! rustls configurations for every leg: TLS 1.3 by default, aws-lc-rs, our CAs only.

mod pinned;
mod upstream;

use crate::{CaKind, CaPin, CaPublic, TrustBundle, pem};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, ServerConfig, SupportedProtocolVersion};
use std::sync::Arc;
use zeroize::Zeroizing;

pub use pinned::PinMismatch;
pub use upstream::{ServerCheck, client_upstream, server_end_point};

/// TLS 1.3 alone: what [`server`], [`client`] and [`client_pinned`] speak.
pub const TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
/// For clients of databases that know nothing newer.
pub const TLS12_AND_13: &[&SupportedProtocolVersion] =
    &[&rustls::version::TLS13, &rustls::version::TLS12];

/// Why no configuration came about.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// rustls refused a key, a certificate or their combination.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
    /// Text that should be PEM, or is damaged.
    #[error("TLS: {0}")]
    Pem(String),
    /// Nobody to trust.
    #[error("TLS: the trust bundle of cluster {cluster:?} has no {kinds} CA")]
    NoCa {
        /// The bundle's cluster.
        cluster: String,
        /// Which kinds were wanted.
        kinds: String,
    },
    /// [`client_pinned`] without a pin.
    #[error("TLS: no ca_pin given")]
    NoPin,
}

/// A leaf with its chain and key, as PEM.
#[derive(Clone)]
pub struct TlsIdentity {
    /// Leaf first. A server whose clients know only `ca_pin` has its CA's certificate at the end.
    pub chain_pem: String,
    /// PKCS#8
    pub key_pem: Zeroizing<String>,
}

impl TlsIdentity {
    /// Of the DER a CA returned. `root`: appended to the chain, for clients that only have a pin.
    pub fn new(leaf: &[u8], root: Option<&CaPublic>, key_pem: Zeroizing<String>) -> Self {
        let mut chain_pem = cert_pem(leaf);
        if let Some(root) = root {
            chain_pem.push_str(&root.x509_pem);
        }
        Self { chain_pem, key_pem }
    }

    fn parse(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let chain = certs(&self.chain_pem)?;
        if chain.is_empty() {
            return Err(TlsError::Pem("no certificate in the chain".into()));
        }
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
            .map_err(|e| TlsError::Pem(format!("no private key: {e}")))?;
        Ok((chain, key))
    }
}

impl std::fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsIdentity").finish_non_exhaustive()
    }
}

/// Whether and by which CAs a client must authenticate.
pub enum ClientAuth<'a> {
    /// No certificate is asked for.
    None,
    /// One is asked for; without one the client is anonymous, with a wrong one it is refused.
    Optional(&'a TrustBundle, &'a [CaKind]),
    /// One is needed.
    Required(&'a TrustBundle, &'a [CaKind]),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A verifier that accepts certificates of these CAs only.
pub(crate) fn client_verifier(
    trust: &TrustBundle,
    kinds: &[CaKind],
    optional: bool,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = rustls::RootCertStore::empty();
    for kind in kinds {
        roots.roots.extend(trust.x509_roots(*kind)?.roots);
    }
    if roots.is_empty() {
        return Err(no_ca(trust, kinds));
    }
    let builder = WebPkiClientVerifier::builder_with_provider(roots.into(), provider());
    let builder = match optional {
        true => builder.allow_unauthenticated(),
        false => builder,
    };
    builder
        .build()
        .map_err(|e| TlsError::Rustls(rustls::Error::General(e.to_string())))
}

fn no_ca(trust: &TrustBundle, kinds: &[CaKind]) -> TlsError {
    TlsError::NoCa {
        cluster: trust.cluster.clone(),
        kinds: kinds
            .iter()
            .map(|k| k.name())
            .collect::<Vec<_>>()
            .join(" or "),
    }
}

/// A server's side, TLS 1.3.
pub fn server(
    id: &TlsIdentity,
    clients: ClientAuth<'_>,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    server_with_versions(id, clients, alpn, TLS13)
}

/// Like [`server`], with other versions, e.g. [`TLS12_AND_13`].
pub fn server_with_versions(
    id: &TlsIdentity,
    clients: ClientAuth<'_>,
    alpn: &[&[u8]],
    versions: &[&'static SupportedProtocolVersion],
) -> Result<Arc<ServerConfig>, TlsError> {
    let (chain, key) = id.parse()?;
    let builder =
        ServerConfig::builder_with_provider(provider()).with_protocol_versions(versions)?;
    let verifier = match clients {
        ClientAuth::None => None,
        ClientAuth::Optional(trust, kinds) => Some(client_verifier(trust, kinds, true)?),
        ClientAuth::Required(trust, kinds) => Some(client_verifier(trust, kinds, false)?),
    };
    let authenticates = verifier.is_some();
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = owned(alpn);
    if authenticates {
        // A resumed session takes the client's certificate from the first one without looking at
        // it again: it would outlive its expiry and its CA.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(Arc::new(config))
}

/// A client's side, TLS 1.3. Trusts the bundle's CAs of `server_ca` only.
pub fn client(
    trust: &TrustBundle,
    server_ca: CaKind,
    id: Option<&TlsIdentity>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsError> {
    let roots = trust.x509_roots(server_ca)?;
    if roots.is_empty() {
        return Err(no_ca(trust, &[server_ca]));
    }
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(TLS13)?
        .with_root_certificates(roots);
    let mut config = match id {
        Some(id) => {
            let (chain, key) = id.parse()?;
            builder.with_client_auth_cert(chain, key)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = owned(alpn);
    Ok(Arc::new(config))
}

/// Trusts whichever certificate in the server's chain has one of these SPKI pins (as a root), then
/// verifies name and validity against it. A failure says which pins the server showed.
pub fn client_pinned(pins: &[CaPin], alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, TlsError> {
    if pins.is_empty() {
        return Err(TlsError::NoPin);
    }
    let provider = provider();
    let verifier = pinned::PinnedVerifier::new(pins, provider.clone());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(TLS13)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = owned(alpn);
    // It fetches the trust bundle once; what follows is verified against that.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn owned(alpn: &[&[u8]]) -> Vec<Vec<u8>> {
    alpn.iter().map(|name| name.to_vec()).collect()
}

/// Parsed PEM certificates.
pub fn certs(pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| TlsError::Pem(format!("not a PEM certificate: {e}")))
}

/// PEM of one certificate.
pub fn cert_pem(der: &[u8]) -> String {
    pem::encode("CERTIFICATE", der)
}

#[cfg(test)]
mod tests;
