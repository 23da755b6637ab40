//! The five private certificate authorities of a cluster (D2). X.509 keys ECDSA P-256,
//! SSH keys Ed25519; each CA that signs SSH certificates has one of each.
use crate::{CaPublic, UserIdentity};
use std::time::SystemTime;
use zeroize::Zeroizing;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaKind { Host, Agent, User, DbServer, DbClient }
impl CaKind { pub const ALL: [CaKind; 5] = [CaKind::Host, CaKind::Agent, CaKind::User, CaKind::DbServer, CaKind::DbClient]; pub fn name(self) -> &'static str { todo!() } }

/// From when to when a certificate is valid. `Validity::for_ttl(d)` starts 60 s ago (clock skew).
#[derive(Debug, Clone, Copy)]
pub struct Validity { pub not_before: SystemTime, pub not_after: SystemTime }
impl Validity { pub fn for_ttl(ttl: std::time::Duration) -> Self { todo!() } }

pub struct Ca { /* kind, cluster, rcgen Issuer / KeyPair, ssh key */ }
impl Ca {
    pub fn generate(kind: CaKind, cluster: &str) -> Result<Self, CaError> { todo!() }
    /// The private form, for Auth's key-value store (JSON; keep it zeroized).
    pub fn to_stored(&self) -> Zeroizing<String> { todo!() }
    pub fn from_stored(stored: &str) -> Result<Self, CaError> { todo!() }
    pub fn public(&self) -> CaPublic { todo!() }
    /// X.509 leaf, serverAuth, DNS SANs (IP literals become IP SANs). `spki` = SubjectPublicKeyInfo DER of a P-256 key. Returns DER. Host or DbServer CA only.
    pub fn sign_tls_server(&self, spki: &[u8], names: &[String], v: Validity) -> Result<Vec<u8>, CaError> { todo!() }
    /// X.509 leaf, clientAuth, SAN URI `spiffe://<cluster>/agent/<host_id>/<service>`. Agent CA only.
    pub fn sign_tls_agent(&self, spki: &[u8], host_id: &str, service: &str, v: Validity) -> Result<Vec<u8>, CaError> { todo!() }
    /// X.509 leaf, clientAuth, SAN `spiffe://<cluster>/user/<name>` + JSON extension (OID under 2.25) with roles and traits. User CA only.
    pub fn sign_tls_user(&self, spki: &[u8], user: &UserIdentity, v: Validity) -> Result<Vec<u8>, CaError> { todo!() }
    /// OpenSSH certificates; `key` and the result in OpenSSH one-line form. Host CA: principals are DNS names.
    pub fn sign_ssh_host(&self, key: &str, names: &[String], v: Validity) -> Result<String, CaError> { todo!() }
    /// Agent CA: type user, principal `<host_id>/<service>`; what the service may announce is in extension
    /// `resources@postern`: {"kind":"ssh","names":["web-1"]}.
    pub fn sign_ssh_agent(&self, key: &str, agent: &crate::AgentCertInfo, v: Validity) -> Result<String, CaError> { todo!() }
    /// User CA: type user, principals = logins, key id = user, JSON of roles+traits in extension `identity@postern`, plus OpenSSH's permit-* extensions.
    pub fn sign_ssh_user(&self, key: &str, user: &UserIdentity, logins: &[String], v: Validity) -> Result<String, CaError> { todo!() }
}
#[derive(Debug, thiserror::Error)]
pub enum CaError { #[error("the {ca} CA does not sign {what}")] WrongCa { ca: &'static str, what: &'static str }, #[error("cannot read the stored {0} CA: {1}")] Stored(String, String), #[error("cannot sign a certificate: {0}")] Sign(String), #[error("{0}")] Key(String) }
