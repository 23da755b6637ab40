//! A host's one key (Ed25519, PKCS#8, `data_dir/host.key`). `host_id` is its fingerprint:
//! the first 16 bytes of SHA-256 over the raw public key, in hex (32 characters).

use crate::pem;
use crate::store::{self, StoreError};
use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use std::path::Path;
use zeroize::Zeroizing;

/// The key every join and renewal of this host is signed with.
pub struct HostKey(Ed25519KeyPair);

impl HostKey {
    /// Reads the key, or makes one where there is none yet. The directory is created (0700) or
    /// checked as [`store::private_dir`] does. Two processes that start at once get the same key.
    pub fn load_or_create(path: &Path) -> Result<Self, StoreError> {
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            store::private_dir(dir)?;
        }
        match store::read_secret(path) {
            Err(e) if e.is_not_found() => {
                let key = Self::generate();
                if store::create_secret(path, key.to_pem().as_bytes())? {
                    return Ok(key);
                }
                Self::parse(path, &store::read_secret(path)?)
            }
            found => Self::parse(path, &found?),
        }
    }

    fn parse(path: &Path, text: &[u8]) -> Result<Self, StoreError> {
        let corrupt = |why: &str| StoreError::Corrupt {
            path: path.into(),
            why: why.into(),
        };
        let der = PrivatePkcs8KeyDer::from_pem_slice(text)
            .map_err(|_| corrupt("it holds no PEM section PRIVATE KEY"))?;
        Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der())
            .map(Self)
            .map_err(|_| corrupt("it holds no Ed25519 key"))
    }

    /// A new key, not stored anywhere.
    #[allow(
        clippy::expect_used,
        reason = "fails only without memory or system randomness; nothing could go on"
    )]
    pub fn generate() -> Self {
        Self(Ed25519KeyPair::generate().expect("system randomness"))
    }

    #[allow(
        clippy::expect_used,
        reason = "encodes a key that is already in memory"
    )]
    fn to_pem(&self) -> Zeroizing<String> {
        let der: aws_lc_rs::encoding::Pkcs8V1Der<'_> =
            self.0.as_der().expect("an Ed25519 key has a PKCS#8 form");
        Zeroizing::new(pem::encode("PRIVATE KEY", der.as_ref()))
    }

    /// [`host_id_of`] this key.
    pub fn host_id(&self) -> String {
        host_id_of(self.0.public_key().as_ref())
    }

    /// The raw public key, 32 bytes.
    pub fn public(&self) -> Vec<u8> {
        self.0.public_key().as_ref().to_vec()
    }

    /// The public key as an OpenSSH line, which people pass around.
    pub fn openssh_public(&self) -> String {
        let mut raw = [0; 32];
        raw.copy_from_slice(self.0.public_key().as_ref());
        let data = ssh_key::public::KeyData::Ed25519(ssh_key::public::Ed25519PublicKey(raw));
        ssh_key::PublicKey::new(data, "")
            .to_openssh()
            .unwrap_or_default()
    }

    /// Ed25519 signature, 64 bytes.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign(message).as_ref().to_vec()
    }
}

impl std::fmt::Debug for HostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostKey({})", self.host_id())
    }
}

/// The id of the host whose raw public key this is.
pub fn host_id_of(public: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, public);
    hex::encode(&digest.as_ref()[..16])
}

/// Whether `signature` over `message` was made with the key `public` (raw, 32 bytes).
pub fn verify_host_signature(public: &[u8], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public)
        .verify(message, signature)
        .is_ok()
}

#[cfg(test)]
mod tests;
