//! What a member holds after it joined: keys, certificates and their generation, in a
//! directory of its own (D1, D3).
//!
//! Two files. `credentials.json` is what the service serves with. `pending.json` is a
//! join that was sent but whose answer has not been stored yet: it is written before the
//! request leaves, so that after a crash the same nonce is sent again and Auth gives the
//! same answer, instead of seeing a second, "stale" generation.

use crate::unix_now;
use postern_identity::{
    CaKind, ServiceKeys, TrustBundle,
    store::{self, StoreError},
    tls::{self, TlsIdentity},
};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

/// Keys and certificates of one service.
#[derive(Clone, Serialize, Deserialize)]
pub struct Credentials {
    pub kind: String,
    pub names: Vec<String>,
    /// Counts the renewals; Auth refuses and locks when an old one comes back (a copied disk).
    pub generation: u64,
    x509_key_pem: Zeroizing<String>,
    ssh_key: Zeroizing<String>,
    /// host CA, `<resource>.<kind>.<cluster>`
    pub tls_server_cert_pem: String,
    /// agent CA
    pub tls_client_cert_pem: String,
    /// host CA; empty unless the kind is `ssh`
    pub ssh_host_cert: String,
    /// agent CA
    pub ssh_client_cert: String,
    pub trust: TrustBundle,
    pub issued_unix: u64,
    pub not_after_unix: u64,
}

impl Credentials {
    pub fn new(
        pending: &Pending,
        answer: postern_api::v1::JoinResponse,
        trust: TrustBundle,
    ) -> Self {
        Credentials {
            kind: pending.kind.clone(),
            names: pending.names.clone(),
            generation: answer.generation,
            x509_key_pem: pending.x509_key_pem.clone(),
            ssh_key: pending.ssh_key.clone(),
            tls_server_cert_pem: answer.tls_server_cert_pem,
            tls_client_cert_pem: answer.tls_client_cert_pem,
            ssh_host_cert: answer.ssh_host_cert,
            ssh_client_cert: answer.ssh_client_cert,
            trust,
            issued_unix: unix_now(),
            not_after_unix: u64::try_from(answer.not_after_unix).unwrap_or(0),
        }
    }

    pub fn tls_client(&self) -> TlsIdentity {
        TlsIdentity {
            chain_pem: self.tls_client_cert_pem.clone(),
            key_pem: self.x509_key_pem.clone(),
        }
    }

    pub fn tls_server(&self) -> TlsIdentity {
        TlsIdentity {
            chain_pem: self.tls_server_cert_pem.clone(),
            key_pem: self.x509_key_pem.clone(),
        }
    }

    /// A channel to Auth at `addr` that authenticates with these credentials.
    pub fn auth_channel(
        &self,
        addr: &str,
        cluster: &str,
    ) -> Result<tonic::transport::Channel, tls::TlsError> {
        let tls = tls::client(
            &self.trust,
            CaKind::Host,
            Some(&self.tls_client()),
            &[b"h2"],
        )?;
        Ok(postern_api::connect_lazy(addr, cluster, tls))
    }

    pub fn ssh_key(&self) -> Zeroizing<String> {
        self.ssh_key.clone()
    }

    pub fn expired(&self) -> bool {
        unix_now() >= self.not_after_unix
    }

    /// How long until half of the life has passed, the time of renewal.
    pub fn until_renewal(&self) -> Duration {
        let half = self.issued_unix + self.not_after_unix.saturating_sub(self.issued_unix) / 2;
        Duration::from_secs(half.saturating_sub(unix_now()))
    }

    /// Whether the credentials were issued for this kind and these names.
    pub fn fit(&self, kind: &str, names: &[String]) -> bool {
        self.kind == kind && self.names == names
    }
}

/// A join whose answer is not stored yet.
#[derive(Serialize, Deserialize)]
pub struct Pending {
    pub nonce: String,
    pub kind: String,
    pub names: Vec<String>,
    pub generation: u64,
    pub x509_key_pem: Zeroizing<String>,
    pub ssh_key: Zeroizing<String>,
}

impl Pending {
    fn new(kind: &str, names: &[String], generation: u64) -> Self {
        let keys = ServiceKeys::generate();
        Pending {
            nonce: hex::encode(rand::random::<[u8; 16]>()),
            kind: kind.to_owned(),
            names: names.to_vec(),
            generation,
            x509_key_pem: keys.x509_key_pem,
            ssh_key: keys.ssh_key,
        }
    }

    pub fn keys(&self) -> ServiceKeys {
        ServiceKeys {
            x509_key_pem: self.x509_key_pem.clone(),
            ssh_key: self.ssh_key.clone(),
        }
    }
}

/// The directory of one member, e.g. `data_dir/services/<name>`.
#[derive(Clone)]
pub struct MemberDir(PathBuf);

impl MemberDir {
    /// Creates the directory and the one above it (0700), or checks their permissions.
    pub fn open(dir: PathBuf) -> Result<Self, StoreError> {
        if let Some(parent) = dir.parent() {
            store::private_dir(parent)?;
        }
        store::private_dir(&dir)?;
        Ok(MemberDir(dir))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn credentials(&self) -> Result<Option<Credentials>, StoreError> {
        store::read_json(&self.0.join("credentials.json"))
    }

    /// The unanswered join, or a new one, stored before it returns.
    ///
    /// While an answer is missing the nonce stays, even if the configuration changed meanwhile or Auth
    /// refused: if Auth had answered and the answer was lost, it must know this for the same attempt. A new
    /// nonce with the old generation would look like a copied disk.
    pub fn pending(
        &self,
        kind: &str,
        names: &[String],
        generation: u64,
    ) -> Result<Pending, StoreError> {
        let path = self.0.join("pending.json");
        // A pending join that can't be read was never sent: it is stored whole before that.
        let before = store::read_json::<Pending>(&path).ok().flatten();
        let before = before.filter(|p| p.generation == generation);
        let mut pending = Pending::new(kind, names, generation);
        if let Some(before) = before {
            if before.kind == kind && before.names == names {
                return Ok(before);
            }
            pending.nonce = before.nonce;
        }
        store::write_json(&path, &pending)?;
        Ok(pending)
    }

    /// Stores the answer, then forgets the question.
    pub fn accept(&self, credentials: &Credentials) -> Result<(), StoreError> {
        store::write_json(&self.0.join("credentials.json"), credentials)?;
        // What remains after a crash here is a question with an older generation, which is never asked again.
        let _ = std::fs::remove_file(self.0.join("pending.json"));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
