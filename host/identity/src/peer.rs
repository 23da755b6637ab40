//! Whom a verified certificate speaks for.

use crate::ca::USER_EXTENSION_OID;
use crate::names::{check_host_id, check_label, check_user_name};
use crate::{CaKind, TrustBundle, tls};
use rustls::pki_types::{CertificateDer, UnixTime};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::asn1_rs::Oid;

/// A user as a certificate states it. Roles are names; what they allow is looked up where the decision is made.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct UserIdentity {
    /// Unique in the cluster.
    pub name: String,
    /// Names of roles.
    pub roles: Vec<String>,
    /// What templates in roles refer to, e.g. `logins`.
    #[serde(default)]
    pub traits: BTreeMap<String, Vec<String>>,
}

/// One service of one host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct AgentIdentity {
    /// See [`crate::host_id_of`].
    pub host_id: String,
    /// Its name in the agent's configuration; `proxy` for a proxy.
    pub service: String,
}

impl AgentIdentity {
    /// Where a plaintext cancel request finds this service: the first 4 bytes of the cancel keys that it gives away. Both ends
    /// of a tunnel know it without being told. Positive, as the process ids are in whose place it stands. Two services may
    /// share one, about once in two thousand million; whoever routes by it asks both.
    pub fn cancel_route(&self) -> u32 {
        use aws_lc_rs::digest::{SHA256, digest};
        let text = format!("postern cancel {}/{}", self.host_id, self.service);
        let hash = digest(&SHA256, text.as_bytes());
        let [a, b, c, d, ..] = *hash.as_ref() else {
            return 1;
        };
        (u32::from_be_bytes([a, b, c, d]) & 0x7fff_ffff).max(1)
    }
}

/// What an agent's SSH certificate says: who, and which resources it may announce over a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentCertInfo {
    /// Whose certificate it is.
    pub identity: AgentIdentity,
    /// The kind of its resources.
    pub kind: String,
    /// Their names.
    pub names: Vec<String>,
}

/// The caller behind a TLS client certificate that rustls has verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// An agent's service, or a proxy.
    Agent(AgentIdentity),
    /// A person.
    User(UserIdentity),
}

/// Why a client certificate is refused.
#[derive(Debug, Clone, thiserror::Error)]
#[error("client certificate refused: {0}")]
pub struct PeerError(pub String);

fn refuse<T>(why: impl std::fmt::Display) -> Result<T, PeerError> {
    Err(PeerError(why.to_string()))
}

impl Peer {
    /// Which CA of the bundle issued `chain[0]` decides what it may be: an agent certificate is
    /// never a user and vice versa. Verifies signature, validity and EKU against the CA of that
    /// kind (rustls-webpki), then reads the SAN and extension. Also returns not_after.
    pub fn from_chain(
        chain: &[CertificateDer<'_>],
        trust: &TrustBundle,
    ) -> Result<(Peer, SystemTime), PeerError> {
        Self::from_chain_at(chain, trust, SystemTime::now())
    }

    fn from_chain_at(
        chain: &[CertificateDer<'_>],
        trust: &TrustBundle,
        now: SystemTime,
    ) -> Result<(Peer, SystemTime), PeerError> {
        let Some(leaf) = chain.first() else {
            return refuse("there is none");
        };
        let kind = issuer_kind(chain, trust, now)?;
        let (rest, cert) =
            x509_parser::parse_x509_certificate(leaf).or_else(|_| refuse("it is damaged"))?;
        if !rest.is_empty() {
            return refuse("it is damaged");
        }
        let not_after = u64::try_from(cert.validity().not_after.timestamp())
            .ok()
            .and_then(|secs| UNIX_EPOCH.checked_add(Duration::from_secs(secs)));
        let Some(not_after) = not_after else {
            return refuse("its end is out of range");
        };
        let path = spiffe_path(&cert, &trust.cluster)?;
        let peer = match kind {
            CaKind::Agent => Peer::Agent(agent(path)?),
            CaKind::User => Peer::User(user(path, &cert)?),
            other => return refuse(format!("the {other} CA vouches for no client")),
        };
        Ok((peer, not_after))
    }
}

/// The kind whose CAs vouch for this chain. At most one does, as the CAs' keys differ.
fn issuer_kind(
    chain: &[CertificateDer<'_>],
    trust: &TrustBundle,
    now: SystemTime,
) -> Result<CaKind, PeerError> {
    use rustls::CertificateError::{BadSignature, UnknownIssuer};
    let now = now
        .duration_since(UNIX_EPOCH)
        .or_else(|_| refuse("this machine's clock is before 1970"))?;
    let now = UnixTime::since_unix_epoch(now);
    let mut why = "no agent or user CA of this cluster issued it".to_owned();
    for kind in [CaKind::Agent, CaKind::User] {
        if trust.of(kind).next().is_none() {
            continue;
        }
        let verifier = tls::client_verifier(trust, &[kind], false).or_else(refuse)?;
        match verifier.verify_client_cert(&chain[0], &chain[1..], now) {
            Ok(_) => return Ok(kind),
            // Another CA's: says nothing about what is wrong with it.
            Err(rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature)) => {}
            Err(rustls::Error::InvalidCertificate(e)) => why = e.to_string(),
            Err(e) => why = e.to_string(),
        }
    }
    refuse(why)
}

/// What follows `spiffe://<cluster>/` in the only subject alternative name.
fn spiffe_path<'a>(cert: &'a X509Certificate<'_>, cluster: &str) -> Result<&'a str, PeerError> {
    let names = match cert.subject_alternative_name() {
        Ok(Some(san)) => san.value.general_names.as_slice(),
        _ => return refuse("it has no subject alternative name"),
    };
    let [GeneralName::URI(uri)] = names else {
        return refuse("its subject alternative name is not one URI");
    };
    uri.strip_prefix("spiffe://")
        .and_then(|rest| rest.strip_prefix(cluster)?.strip_prefix('/'))
        .map_or_else(
            || refuse(format!("{uri:?} is not of cluster {cluster:?}")),
            Ok,
        )
}

fn agent(path: &str) -> Result<AgentIdentity, PeerError> {
    let parts = path.strip_prefix("agent/").and_then(|p| p.split_once('/'));
    let Some((host_id, service)) = parts else {
        return refuse("its subject alternative name is not that of an agent");
    };
    check_host_id(host_id)
        .and_then(|()| check_label("service name", service))
        .or_else(refuse)?;
    Ok(AgentIdentity {
        host_id: host_id.into(),
        service: service.into(),
    })
}

fn user(path: &str, cert: &X509Certificate<'_>) -> Result<UserIdentity, PeerError> {
    let Some(name) = path.strip_prefix("user/") else {
        return refuse("its subject alternative name is not that of a user");
    };
    check_user_name(name).or_else(refuse)?;
    let oid = Oid::from(&USER_EXTENSION_OID).or_else(|_| refuse("OID"))?;
    // An extension that is there twice is an error as well.
    let Ok(Some(extension)) = cert.get_extension_unique(&oid) else {
        return refuse("its identity extension is missing");
    };
    let Ok(user) = serde_json::from_slice::<UserIdentity>(extension.value) else {
        return refuse("its identity extension is damaged");
    };
    if user.name != name {
        return refuse("its subject alternative name and its identity name different users");
    }
    Ok(user)
}

#[cfg(test)]
mod tests;
