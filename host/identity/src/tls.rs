//! rustls configurations for every leg: TLS 1.3 by default, aws-lc-rs, our CAs only.
use crate::{CaKind, CaPin, TrustBundle};
use rustls::{ClientConfig, ServerConfig, pki_types::CertificateDer};
use std::sync::Arc;
#[derive(Debug, thiserror::Error)]
pub enum TlsError { #[error("TLS: {0}")] Rustls(#[from] rustls::Error), #[error("TLS: {0}")] Pem(String) }
/// A leaf with its chain and key, as PEM.
#[derive(Clone)]
pub struct TlsIdentity { pub chain_pem: String, pub key_pem: zeroize::Zeroizing<String> }
/// Whether and by which CAs a client must authenticate.
pub enum ClientAuth<'a> { None, Optional(&'a TrustBundle, &'a [CaKind]), Required(&'a TrustBundle, &'a [CaKind]) }
/// `with_root`: append the CA certificate to the chain, so that a client that knows only `ca_pin` can find it.
pub fn server(id: &TlsIdentity, clients: ClientAuth<'_>, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, TlsError> { todo!() }
/// Trusts the bundle's CAs of `server_ca` only.
pub fn client(trust: &TrustBundle, server_ca: CaKind, id: Option<&TlsIdentity>, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, TlsError> { todo!() }
/// Trusts whichever certificate in the server's chain has one of these SPKI pins (as a root), then verifies name and validity against it.
pub fn client_pinned(pins: &[CaPin], alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, TlsError> { todo!() }
/// Parsed PEM certificates.
pub fn certs(pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> { todo!() }
