//! `ca_pin`: the SHA-256 of a CA's SubjectPublicKeyInfo, written `sha256:<64 hex>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaPin(pub [u8; 32]);
impl CaPin { pub fn of_spki(spki_der: &[u8]) -> Self { todo!() } }
// + Display, FromStr<Err = NameError-like error>, Serialize, Deserialize
