//! Trust by pin: the server shows its CA's certificate, and the pin says whether it is the one.

use crate::CaPin;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};
use std::sync::Arc;

/// No certificate in the server's chain has a pinned key. Found as the source of a
/// [`CertificateError::Other`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the server's chain holds no CA with {} (it shows {}): either ca_pin is of another cluster, or somebody is in between",
    list(.wanted), list(.shown)
)]
pub struct PinMismatch {
    /// The pins given.
    pub wanted: Vec<CaPin>,
    /// The pins of the certificates after the leaf.
    pub shown: Vec<CaPin>,
}

fn list(pins: &[CaPin]) -> String {
    match pins {
        [] => "no CA".into(),
        pins => pins
            .iter()
            .map(CaPin::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    }
}

#[derive(Debug)]
pub(super) struct PinnedVerifier {
    pins: Vec<CaPin>,
    provider: Arc<CryptoProvider>,
}

impl PinnedVerifier {
    pub(super) fn new(pins: &[CaPin], provider: Arc<CryptoProvider>) -> Self {
        Self {
            pins: pins.into(),
            provider,
        }
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let mut roots = RootCertStore::empty();
        let mut shown = Vec::new();
        for cert in intermediates {
            let Some(pin) = CaPin::of_cert(cert) else {
                return Err(Error::InvalidCertificate(CertificateError::BadEncoding));
            };
            shown.push(pin);
            if self.pins.contains(&pin) {
                roots.add(cert.clone().into_owned())?;
            }
        }
        if roots.is_empty() {
            let wanted = self.pins.clone();
            let mismatch = OtherError(Arc::new(PinMismatch { wanted, shown }));
            return Err(CertificateError::Other(mismatch).into());
        }
        // The key is pinned, so whatever else that certificate says is at most as good as what the
        // CA's key signed: the leaf has to be signed by it, for this name, now, for serverAuth.
        WebPkiServerVerifier::builder_with_provider(roots.into(), self.provider.clone())
            .build()
            .map_err(|e| Error::General(e.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
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
