//! The key pairs of one service (or proxy, or user session): ECDSA P-256 for X.509, Ed25519 for SSH.
use zeroize::Zeroizing;
pub struct ServiceKeys { /** PKCS#8 PEM */ pub x509_key_pem: Zeroizing<String>, /** OpenSSH private key */ pub ssh_key: Zeroizing<String> }
impl ServiceKeys {
    pub fn generate() -> Self { todo!() }
    /// SubjectPublicKeyInfo DER of the X.509 key
    pub fn spki(&self) -> Vec<u8> { todo!() }
    /// OpenSSH one-line public key
    pub fn ssh_public(&self) -> String { todo!() }
}
