//! Whom a verified certificate speaks for.
use std::collections::BTreeMap;
/// A user as a certificate states it. Roles are names; what they allow is looked up where the decision is made.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct UserIdentity { pub name: String, pub roles: Vec<String>, #[serde(default)] pub traits: BTreeMap<String, Vec<String>> }
/// One service of one host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct AgentIdentity { pub host_id: String, pub service: String }
/// What an agent's SSH certificate says: who, and which resources it may announce over a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentCertInfo { pub identity: AgentIdentity, pub kind: String, pub names: Vec<String> }
/// The caller behind a TLS client certificate that rustls has verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer { Agent(AgentIdentity), User(UserIdentity) }
#[derive(Debug, Clone, thiserror::Error)]
#[error("client certificate refused: {0}")]
pub struct PeerError(pub String);
impl Peer {
    /// Which CA of the bundle issued `chain[0]` decides what it may be: an agent certificate is never a user and vice versa.
    /// Verifies signature, validity and EKU against the CA of that kind (rustls-webpki), then reads the SAN and extension. Also returns not_after.
    pub fn from_chain(chain: &[rustls::pki_types::CertificateDer<'_>], trust: &crate::TrustBundle) -> Result<(Peer, std::time::SystemTime), PeerError> { todo!() }
}
