//! The key pairs of one service (or proxy, or user session): ECDSA P-256 for X.509, Ed25519 for SSH.

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use ssh_key::private::Ed25519Keypair;
use ssh_key::{LineEnding, PrivateKey};
use zeroize::Zeroizing;

/// Two key pairs, never shared between X.509 and SSH (D2).
#[derive(Clone)]
pub struct ServiceKeys {
    /// PKCS#8 PEM
    pub x509_key_pem: Zeroizing<String>,
    /// OpenSSH private key
    pub ssh_key: Zeroizing<String>,
}

impl ServiceKeys {
    /// Both keys, new.
    #[allow(
        clippy::expect_used,
        reason = "fails only without memory or system randomness; nothing could go on"
    )]
    pub fn generate() -> Self {
        let x509 = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("system randomness");
        let ssh = new_ssh_key().expect("system randomness");
        Self {
            x509_key_pem: Zeroizing::new(x509.serialize_pem()),
            ssh_key: ssh.to_openssh(LineEnding::LF).expect("a plain key encodes"),
        }
    }

    /// SubjectPublicKeyInfo DER of the X.509 key; empty (which no CA signs) if the PEM is damaged.
    pub fn spki(&self) -> Vec<u8> {
        KeyPair::from_pem(&self.x509_key_pem)
            .map(|key| key.subject_public_key_info())
            .unwrap_or_default()
    }

    /// OpenSSH one-line public key; empty (which no CA signs) if the private key is damaged.
    pub fn ssh_public(&self) -> String {
        PrivateKey::from_openssh(self.ssh_key.as_bytes())
            .and_then(|key| key.public_key().to_openssh())
            .unwrap_or_default()
    }
}

impl std::fmt::Debug for ServiceKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceKeys").finish_non_exhaustive()
    }
}

/// An Ed25519 key from the system's randomness.
pub(crate) fn new_ssh_key() -> Result<PrivateKey, aws_lc_rs::error::Unspecified> {
    let mut seed = Zeroizing::new([0u8; 32]);
    aws_lc_rs::rand::fill(&mut *seed)?;
    Ok(Ed25519Keypair::from_seed(&seed).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ca, CaKind, Validity};
    use std::time::Duration;

    #[test]
    fn public_halves_are_what_a_ca_signs() {
        let keys = ServiceKeys::generate();
        let ca = Ca::generate(CaKind::Agent, "demo").unwrap();
        let validity = Validity::for_ttl(Duration::from_secs(60));
        let host = "0123456789abcdef0123456789abcdef";
        ca.sign_tls_agent(&keys.spki(), host, "ssh", validity)
            .unwrap();
        assert!(keys.ssh_public().starts_with("ssh-ed25519 "));
        assert_ne!(keys.ssh_public(), ServiceKeys::generate().ssh_public());
    }

    #[test]
    fn damaged_keys_have_no_public_half_and_debug_shows_nothing() {
        let keys = ServiceKeys::generate();
        assert_eq!(format!("{keys:?}"), "ServiceKeys { .. }");
        let broken = ServiceKeys {
            x509_key_pem: Zeroizing::new(keys.x509_key_pem[..60].into()),
            ssh_key: Zeroizing::new(keys.ssh_key[..60].into()),
        };
        assert!(broken.spki().is_empty());
        assert!(broken.ssh_public().is_empty());
    }
}
