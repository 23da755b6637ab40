//! TLS towards servers that are not ours: databases behind an agent.

use super::{TLS12_AND_13, TlsError, TlsIdentity, provider};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use std::sync::Arc;

/// What a server must prove.
pub enum ServerCheck {
    /// A certificate of these CAs for the name that was asked for.
    Name(RootCertStore),
    /// A certificate of these CAs, for whatever name.
    Chain(RootCertStore),
    /// That it has the key of the certificate it shows; whose that is stays unknown.
    Nothing,
}

/// A client's side towards a database, TLS 1.2 or 1.3. `id`: the certificate that it is shown where it asks.
pub fn client_upstream(
    check: ServerCheck,
    id: Option<&TlsIdentity>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = provider();
    let (roots, name) = match check {
        ServerCheck::Name(roots) => (Some(roots), true),
        ServerCheck::Chain(roots) => (Some(roots), false),
        ServerCheck::Nothing => (None, false),
    };
    let inner = match roots {
        Some(roots) => Some(
            WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone())
                .build()
                .map_err(|e| TlsError::Rustls(Error::General(e.to_string())))?,
        ),
        None => None,
    };
    let verifier = Upstream {
        inner,
        name,
        provider: provider.clone(),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(TLS12_AND_13)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match id {
        Some(id) => {
            let (chain, key) = id.parse()?;
            builder.with_client_auth_cert(chain, key)?
        }
        None => builder.with_no_client_auth(),
    };
    // Each configuration serves one connection.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Upstream {
    inner: Option<Arc<WebPkiServerVerifier>>,
    name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Upstream {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        use CertificateError::{NotValidForName, NotValidForNameContext};
        let Some(inner) = &self.inner else {
            return Ok(ServerCertVerified::assertion());
        };
        match inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is looked at last, when all else was found good.
            Err(Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }))
                if !self.name =>
            {
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// The channel binding `tls-server-end-point` (RFC 5929, section 4.1): a hash of the server's certificate, by the hash
/// of its signature, or SHA-256 where that is weaker. `None` where the signature has no single hash (Ed25519).
pub fn server_end_point(cert: &CertificateDer<'_>) -> Option<Vec<u8>> {
    use aws_lc_rs::digest::{SHA256, SHA384, SHA512, digest};
    use x509_parser::oid_registry as oid;
    let (_, parsed) = x509_parser::parse_x509_certificate(cert).ok()?;
    let signed_by = &parsed.signature_algorithm.algorithm;
    let sha256 = [
        oid::OID_PKCS1_MD5WITHRSAENC,
        oid::OID_PKCS1_SHA1WITHRSA,
        oid::OID_PKCS1_SHA256WITHRSA,
        oid::OID_SIG_ECDSA_WITH_SHA256,
    ];
    let sha384 = [oid::OID_PKCS1_SHA384WITHRSA, oid::OID_SIG_ECDSA_WITH_SHA384];
    let sha512 = [oid::OID_PKCS1_SHA512WITHRSA, oid::OID_SIG_ECDSA_WITH_SHA512];
    let algorithm = if sha256.contains(signed_by) {
        &SHA256
    } else if sha384.contains(signed_by) {
        &SHA384
    } else if sha512.contains(signed_by) {
        &SHA512
    } else {
        return None;
    };
    Some(digest(algorithm, cert).as_ref().to_vec())
}
