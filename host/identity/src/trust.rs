//! The public halves of the cluster's CAs, as agents, proxies and users keep them.
use crate::{CaKind, CaPin};
/// One CA's public half. A kind may appear several times while it rotates.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CaPublic { pub kind: CaKind, /** PEM of the self-signed certificate */ pub x509_pem: String, /** OpenSSH public key line, for Host, Agent and User */ pub ssh: Option<String> }
impl CaPublic { pub fn pin(&self) -> CaPin { todo!() } }

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TrustBundle { pub cluster: String, pub cas: Vec<CaPublic> }
impl TrustBundle {
    pub fn x509_roots(&self, kind: CaKind) -> Result<rustls::RootCertStore, crate::tls::TlsError> { todo!() }
    pub fn ssh_keys(&self, kind: CaKind) -> Vec<ssh_key::PublicKey> { todo!() }
    pub fn of(&self, kind: CaKind) -> impl Iterator<Item = &CaPublic> { self.cas.iter().filter(move |c| c.kind == kind) }
}
