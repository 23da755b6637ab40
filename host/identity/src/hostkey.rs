//! A host's one key (Ed25519, PKCS#8, `data_dir/host.key`). `host_id` is its fingerprint:
//! the first 16 bytes of SHA-256 over the raw public key, in hex (32 characters).
pub struct HostKey { /* aws_lc_rs Ed25519KeyPair */ }
impl HostKey {
    pub fn load_or_create(path: &std::path::Path) -> Result<Self, crate::store::StoreError> { todo!() }
    pub fn generate() -> Self { todo!() }
    pub fn host_id(&self) -> String { todo!() }
    pub fn public(&self) -> Vec<u8> { todo!() }
    pub fn sign(&self, message: &[u8]) -> Vec<u8> { todo!() }
}
pub fn host_id_of(public: &[u8]) -> String { todo!() }
pub fn verify_host_signature(public: &[u8], message: &[u8], signature: &[u8]) -> bool { todo!() }
