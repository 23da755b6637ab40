//! The public halves of the cluster's CAs, as agents, proxies and users keep them.

use crate::tls::{self, TlsError};
use crate::{CaKind, CaPin};

/// One CA's public half. A kind may appear several times while it rotates.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CaPublic {
    /// What its certificates may do.
    pub kind: CaKind,
    /// PEM of the self-signed certificate
    pub x509_pem: String,
    /// OpenSSH public key line, for Host, Agent and User
    pub ssh: Option<String>,
}

impl CaPublic {
    /// The pin of its X.509 key. A damaged PEM has the pin of nothing, which matches no key.
    pub fn pin(&self) -> CaPin {
        tls::certs(&self.x509_pem)
            .ok()
            .and_then(|certs| CaPin::of_cert(certs.first()?))
            .unwrap_or_else(|| CaPin::of_spki(b""))
    }
}

/// All CAs of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TrustBundle {
    /// The cluster's name.
    pub cluster: String,
    /// Its CAs, in no order.
    pub cas: Vec<CaPublic>,
}

impl TrustBundle {
    /// The X.509 roots of one kind; empty if the bundle has none.
    pub fn x509_roots(&self, kind: CaKind) -> Result<rustls::RootCertStore, TlsError> {
        let mut roots = rustls::RootCertStore::empty();
        for ca in self.of(kind) {
            for cert in tls::certs(&ca.x509_pem)? {
                roots.add(cert)?;
            }
        }
        Ok(roots)
    }

    /// The SSH keys of one kind; damaged lines are left out (and so trusted by nobody).
    pub fn ssh_keys(&self, kind: CaKind) -> Vec<ssh_key::PublicKey> {
        self.of(kind)
            .filter_map(|ca| ssh_key::PublicKey::from_openssh(ca.ssh.as_deref()?).ok())
            .collect()
    }

    /// The CAs of one kind.
    pub fn of(&self, kind: CaKind) -> impl Iterator<Item = &CaPublic> {
        self.cas.iter().filter(move |c| c.kind == kind)
    }

    /// The bundle without the CAs of other kinds.
    pub fn only(mut self, kind: CaKind) -> Self {
        self.cas.retain(|c| c.kind == kind);
        self
    }

    /// The pins of the host CAs: what `ca_pin` may name.
    pub fn host_pins(&self) -> Vec<CaPin> {
        self.of(CaKind::Host).map(CaPublic::pin).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ca;

    fn bundle() -> TrustBundle {
        let cas = CaKind::ALL.map(|kind| Ca::generate(kind, "demo").unwrap().public());
        TrustBundle {
            cluster: "demo".into(),
            cas: cas.into(),
        }
    }

    #[test]
    fn each_kind_has_its_own_roots_and_json_round_trips() {
        let trust = bundle();
        for kind in CaKind::ALL {
            assert_eq!(trust.x509_roots(kind).unwrap().len(), 1);
            let ssh = !matches!(kind, CaKind::DbServer | CaKind::DbClient);
            assert_eq!(trust.ssh_keys(kind).len(), usize::from(ssh));
        }
        let json = serde_json::to_string(&trust).unwrap();
        assert_eq!(serde_json::from_str::<TrustBundle>(&json).unwrap(), trust);
        let pins: std::collections::HashSet<_> = trust.cas.iter().map(CaPublic::pin).collect();
        assert_eq!(pins.len(), 5);
    }

    #[test]
    fn damaged_entries_trust_nobody() {
        let mut trust = bundle();
        for ca in &mut trust.cas {
            ca.x509_pem.truncate(100);
            ca.ssh = Some("ssh-ed25519 AAAA".into());
        }
        assert!(trust.ssh_keys(CaKind::User).is_empty());
        assert!(!trust.x509_roots(CaKind::User).is_ok_and(|r| !r.is_empty()));
        assert_eq!(trust.host_pins(), [CaPin::of_spki(b"")]);
    }
}
