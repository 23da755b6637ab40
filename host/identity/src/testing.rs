//! What several tests need: a cluster's CAs, and certificates that our own code would not sign.

use crate::{Ca, CaKind, ServiceKeys, TlsIdentity, TrustBundle, UserIdentity, Validity};
use rcgen::{CertificateParams, Issuer, KeyPair, PublicKeyData as _, SubjectPublicKeyInfo};
use ssh_key::PrivateKey;
use std::time::{Duration, SystemTime};

pub(crate) const CLUSTER: &str = "demo";
pub(crate) const HOST_ID: &str = "0123456789abcdef0123456789abcdef";
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) struct Cluster {
    cas: Vec<Ca>,
}

impl Cluster {
    pub fn new() -> Self {
        let cas = CaKind::ALL.map(|kind| Ca::generate(kind, CLUSTER).unwrap());
        Self { cas: cas.into() }
    }

    pub fn ca(&self, kind: CaKind) -> &Ca {
        self.cas.iter().find(|ca| ca.kind() == kind).unwrap()
    }

    pub fn trust(&self) -> TrustBundle {
        TrustBundle {
            cluster: CLUSTER.into(),
            cas: self.cas.iter().map(Ca::public).collect(),
        }
    }

    /// A server's identity, the CA's certificate in its chain.
    pub fn server(&self, names: &[&str], v: Validity) -> TlsIdentity {
        let keys = ServiceKeys::generate();
        let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        let ca = self.ca(CaKind::Host);
        let leaf = ca.sign_tls_server(&keys.spki(), &names, v).unwrap();
        TlsIdentity::new(&leaf, Some(&ca.public()), keys.x509_key_pem)
    }

    pub fn agent(&self, v: Validity) -> TlsIdentity {
        let keys = ServiceKeys::generate();
        let ca = self.ca(CaKind::Agent);
        let leaf = ca
            .sign_tls_agent(&keys.spki(), HOST_ID, "orders", v)
            .unwrap();
        TlsIdentity::new(&leaf, None, keys.x509_key_pem)
    }

    pub fn user(&self, v: Validity) -> TlsIdentity {
        let keys = ServiceKeys::generate();
        let leaf = self
            .ca(CaKind::User)
            .sign_tls_user(&keys.spki(), &alice(), v);
        TlsIdentity::new(&leaf.unwrap(), None, keys.x509_key_pem)
    }

    /// A leaf as `params` say, signed by the real key of a CA.
    pub fn craft(&self, kind: CaKind, params: &CertificateParams) -> TlsIdentity {
        let stored = self.stored(kind);
        let key = KeyPair::from_pem(stored["key_pem"].as_str().unwrap()).unwrap();
        let issuer = Issuer::from_ca_cert_pem(stored["cert_pem"].as_str().unwrap(), key).unwrap();
        let keys = ServiceKeys::generate();
        let spki = SubjectPublicKeyInfo::from_der(&keys.spki()).unwrap();
        assert_eq!(spki.der_bytes().len(), 65);
        let leaf = params.signed_by(&spki, &issuer).unwrap();
        TlsIdentity::new(leaf.der(), None, keys.x509_key_pem)
    }

    pub fn ssh_ca_key(&self, kind: CaKind) -> PrivateKey {
        PrivateKey::from_openssh(self.stored(kind)["ssh_key"].as_str().unwrap()).unwrap()
    }

    fn stored(&self, kind: CaKind) -> serde_json::Value {
        serde_json::from_str(&self.ca(kind).to_stored()).unwrap()
    }
}

pub(crate) fn alice() -> UserIdentity {
    UserIdentity {
        name: "alice".into(),
        roles: vec!["access".into(), "ops".into()],
        traits: [("logins".into(), vec!["root".into(), "äöü".into()])].into(),
    }
}

pub(crate) fn valid() -> Validity {
    Validity::for_ttl(HOUR)
}

pub(crate) fn expired() -> Validity {
    let now = SystemTime::now();
    Validity {
        not_before: now - 2 * HOUR,
        not_after: now - HOUR,
    }
}

pub(crate) fn future() -> Validity {
    let now = SystemTime::now();
    Validity {
        not_before: now + HOUR,
        not_after: now + 2 * HOUR,
    }
}
