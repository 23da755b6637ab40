//! The five private certificate authorities of a cluster (D2). X.509 keys ECDSA P-256,
//! SSH keys Ed25519; each CA that signs SSH certificates has one of each.

mod ssh;
mod x509;

use crate::servicekeys::new_ssh_key;
use crate::{CaPin, CaPublic, check_cluster_name, tls};
use rcgen::{Issuer, KeyPair, PublicKeyData as _};
use ssh_key::{LineEnding, PrivateKey};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use zeroize::Zeroizing;

pub(crate) use x509::USER_EXTENSION_OID;

/// Tolerated difference of clocks: certificates start that much before they were signed.
const SKEW: Duration = Duration::from_secs(60);

/// What the certificates of a CA may do, and who accepts them (the table in D2).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum CaKind {
    /// Servers of the cluster: Auth, proxies, agents' services; SSH hosts.
    Host,
    /// Agents and proxies as clients of the cluster.
    Agent,
    /// People.
    User,
    /// The databases themselves.
    DbServer,
    /// Agents as clients of databases, per connection.
    DbClient,
}

impl CaKind {
    /// Every kind there is.
    pub const ALL: [CaKind; 5] = [
        CaKind::Host,
        CaKind::Agent,
        CaKind::User,
        CaKind::DbServer,
        CaKind::DbClient,
    ];

    /// As configuration, messages and certificates write it.
    pub fn name(self) -> &'static str {
        match self {
            CaKind::Host => "host",
            CaKind::Agent => "agent",
            CaKind::User => "user",
            CaKind::DbServer => "db-server",
            CaKind::DbClient => "db-client",
        }
    }

    /// Whether it signs SSH certificates too.
    fn has_ssh(self) -> bool {
        matches!(self, CaKind::Host | CaKind::Agent | CaKind::User)
    }
}

impl std::fmt::Display for CaKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// From when to when a certificate is valid. `Validity::for_ttl(d)` starts 60 s ago (clock skew).
#[derive(Debug, Clone, Copy)]
pub struct Validity {
    /// Not valid earlier.
    pub not_before: SystemTime,
    /// Not valid later. A CA never signs beyond its own end and shortens this if need be.
    pub not_after: SystemTime,
}

impl Validity {
    /// Until `ttl` from now.
    pub fn for_ttl(ttl: Duration) -> Self {
        let now = SystemTime::now();
        Self {
            not_before: now.checked_sub(SKEW).unwrap_or(UNIX_EPOCH),
            // A TTL beyond what the clock can say ends with the CA anyway.
            not_after: now
                .checked_add(ttl)
                .unwrap_or(now + Duration::from_secs(100 * 365 * 86_400)),
        }
    }
}

/// Why a CA did not sign, or could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// Each CA signs only what D2 gives it.
    #[error("the {ca} CA does not sign {what}")]
    WrongCa {
        /// The CA asked.
        ca: &'static str,
        /// For what.
        what: &'static str,
    },
    /// Kind, then reason.
    #[error("cannot read the stored {0} CA: {1}")]
    Stored(String, String),
    /// What is wrong with the request.
    #[error("cannot sign a certificate: {0}")]
    Sign(String),
    /// What is wrong with the public key.
    #[error("{0}")]
    Key(String),
}

/// One CA with its private keys; lives in Auth only.
pub struct Ca {
    kind: CaKind,
    cluster: String,
    cert_pem: String,
    /// Seconds since 1970, as the certificate has it.
    not_after: u64,
    issuer: Issuer<'static, KeyPair>,
    ssh: Option<PrivateKey>,
}

/// How a CA is kept: borrowed to write, owned to read.
#[derive(serde::Serialize)]
struct Written<'a> {
    kind: CaKind,
    cluster: &'a str,
    cert_pem: &'a str,
    key_pem: &'a str,
    ssh_key: Option<&'a str>,
}

#[derive(serde::Deserialize)]
struct Read {
    kind: CaKind,
    cluster: String,
    cert_pem: String,
    #[serde(deserialize_with = "secret")]
    key_pem: Zeroizing<String>,
    #[serde(default, deserialize_with = "maybe_secret")]
    ssh_key: Option<Zeroizing<String>>,
}

fn secret<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Zeroizing<String>, D::Error> {
    serde::Deserialize::deserialize(d).map(Zeroizing::new)
}

fn maybe_secret<'de, D: serde::Deserializer<'de>>(
    d: D,
) -> Result<Option<Zeroizing<String>>, D::Error> {
    let text: Option<String> = serde::Deserialize::deserialize(d)?;
    Ok(text.map(Zeroizing::new))
}

impl Ca {
    /// A new CA, valid for 10 years.
    pub fn generate(kind: CaKind, cluster: &str) -> Result<Self, CaError> {
        check_cluster_name(cluster).map_err(|e| CaError::Sign(e.to_string()))?;
        let (cert_pem, key) = x509::self_signed(kind, cluster)?;
        let ssh = match kind.has_ssh() {
            true => Some(new_ssh_key().map_err(|_| CaError::Sign("no randomness".into()))?),
            false => None,
        };
        Self::assemble(kind, cluster.into(), cert_pem, key, ssh)
    }

    fn assemble(
        kind: CaKind,
        cluster: String,
        cert_pem: String,
        key: KeyPair,
        ssh: Option<PrivateKey>,
    ) -> Result<Self, CaError> {
        let stored = |why: String| CaError::Stored(kind.name().into(), why);
        if kind.has_ssh() != ssh.is_some() {
            return Err(stored(
                "its SSH key is missing, or it should have none".into(),
            ));
        }
        let der = tls::certs(&cert_pem)
            .ok()
            .and_then(|certs| certs.into_iter().next())
            .ok_or_else(|| stored("its certificate is no PEM certificate".into()))?;
        if CaPin::of_cert(&der) != Some(CaPin::of_spki(&key.subject_public_key_info())) {
            return Err(stored("key and certificate do not belong together".into()));
        }
        let not_after = x509::not_after(&der).map_err(&stored)?;
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|e| stored(e.to_string()))?;
        Ok(Self {
            kind,
            cluster,
            cert_pem,
            not_after,
            issuer,
            ssh,
        })
    }

    /// What its certificates may do.
    pub fn kind(&self) -> CaKind {
        self.kind
    }

    /// The private form, for Auth's key-value store (JSON; keep it zeroized).
    #[allow(
        clippy::expect_used,
        reason = "encodes keys that are already in memory, and strings as JSON"
    )]
    pub fn to_stored(&self) -> Zeroizing<String> {
        let key_pem = Zeroizing::new(self.issuer.key().serialize_pem());
        let ssh_key = self
            .ssh
            .as_ref()
            .map(|key| key.to_openssh(LineEnding::LF).expect("a plain key encodes"));
        let written = Written {
            kind: self.kind,
            cluster: &self.cluster,
            cert_pem: &self.cert_pem,
            key_pem: &key_pem,
            ssh_key: ssh_key.as_ref().map(|text| text.as_str()),
        };
        // Sized so that it does not grow and leave a copy behind.
        let mut json = Vec::with_capacity(8 << 10);
        serde_json::to_writer(&mut json, &written).expect("strings have a JSON form");
        Zeroizing::new(String::from_utf8(json).expect("JSON is UTF-8"))
    }

    /// The inverse of [`Ca::to_stored`].
    pub fn from_stored(stored: &str) -> Result<Self, CaError> {
        // serde_json quotes values in its messages: only the place is told.
        let read: Read = serde_json::from_str(stored).map_err(|e| {
            let place = format!("line {} column {}", e.line(), e.column());
            CaError::Stored("(unreadable)".into(), format!("not a stored CA, {place}"))
        })?;
        let bad = |what: &str| CaError::Stored(read.kind.name().into(), what.into());
        let key = KeyPair::from_pem(&read.key_pem).map_err(|_| bad("damaged X.509 key"))?;
        let ssh = match &read.ssh_key {
            Some(text) => Some(
                PrivateKey::from_openssh(text.as_bytes()).map_err(|_| bad("damaged SSH key"))?,
            ),
            None => None,
        };
        Self::assemble(read.kind, read.cluster, read.cert_pem, key, ssh)
    }

    /// What everybody may know.
    pub fn public(&self) -> CaPublic {
        CaPublic {
            kind: self.kind,
            x509_pem: self.cert_pem.clone(),
            ssh: self
                .ssh
                .as_ref()
                .and_then(|key| key.public_key().to_openssh().ok()),
        }
    }

    fn only(&self, kinds: &[CaKind], what: &'static str) -> Result<(), CaError> {
        match kinds.contains(&self.kind) {
            true => Ok(()),
            false => Err(CaError::WrongCa {
                ca: self.kind.name(),
                what,
            }),
        }
    }

    /// Start and end in whole seconds since 1970, the end never after the CA's own.
    fn window(&self, v: Validity) -> Result<(u64, u64), CaError> {
        let secs = |t: SystemTime| {
            t.duration_since(UNIX_EPOCH)
                .map(|d| d.as_secs())
                .map_err(|_| CaError::Sign("its validity starts before 1970".into()))
        };
        let (start, end) = (secs(v.not_before)?, secs(v.not_after)?.min(self.not_after));
        if start >= end {
            let kind = self.kind;
            let why = format!("it would never be valid (has the {kind} CA expired?)");
            return Err(CaError::Sign(why));
        }
        Ok((start, end))
    }
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ca({} of {})", self.kind, self.cluster)
    }
}

#[cfg(test)]
mod tests;
