//! The issuer's public keys (a JWK set), and which algorithms each of them may verify.

use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse,
};
use jsonwebtoken::{Algorithm, DecodingKey};

/// Issuers publish a handful of keys; a larger document is something else.
const MAX_BYTES: usize = 256 * 1024;
const MAX_KEYS: usize = 100;

/// The keys of a set that verify signatures.
#[derive(Clone)]
pub struct Keys(Vec<Key>);

#[derive(Clone)]
pub(crate) struct Key {
    pub(crate) id: Option<String>,
    /// By the key's own `kty`, `crv` and `alg`. What a token's header says picks among these and adds none, so that a
    /// public key can never serve as an HMAC secret.
    pub(crate) algorithms: &'static [Algorithm],
    pub(crate) decoding: DecodingKey,
}

/// Why a document gives no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// More than any issuer needs.
    #[error("the JWK set has {0} (at most {MAX_BYTES} bytes, {MAX_KEYS} keys)")]
    TooLarge(String),
    /// Not JSON, or not of this form.
    #[error(
        "this is no JWK set ({0}); expected {{\"keys\": […]}} as the issuer's jwks_uri serves it"
    )]
    Form(#[source] serde_json::Error),
    /// Nothing in it verifies a signature.
    #[error(
        "the JWK set has no usable key: needed is a public RSA, EC (P-256, P-384) or Ed25519 key for signatures"
    )]
    Empty,
}

impl Keys {
    /// Reads a JWK set. Keys for encryption, symmetric keys, and keys of types we don't verify are left out.
    pub fn parse(json: &str) -> Result<Self, KeysError> {
        if json.len() > MAX_BYTES {
            return Err(KeysError::TooLarge(format!("{} bytes", json.len())));
        }
        let set: JwkSet = serde_json::from_str(json).map_err(KeysError::Form)?;
        if set.keys.len() > MAX_KEYS {
            return Err(KeysError::TooLarge(format!("{} keys", set.keys.len())));
        }
        let keys: Vec<Key> = set.keys.iter().filter_map(Key::of).collect();
        if keys.is_empty() {
            return Err(KeysError::Empty);
        }
        Ok(Keys(keys))
    }

    /// Those that a token may mean: with its key id, or the only one where it names none.
    pub(crate) fn candidates(&self, id: Option<&str>) -> Vec<&Key> {
        match id {
            Some(id) => self
                .0
                .iter()
                .filter(|k| k.id.as_deref() == Some(id))
                .collect(),
            None if self.0.len() == 1 => self.0.iter().collect(),
            None => Vec::new(),
        }
    }
}

impl Key {
    fn of(jwk: &Jwk) -> Option<Key> {
        if !matches!(
            jwk.common.public_key_use,
            None | Some(PublicKeyUse::Signature)
        ) {
            return None;
        }
        Some(Key {
            id: jwk.common.key_id.clone(),
            algorithms: algorithms(jwk)?,
            decoding: DecodingKey::from_jwk(jwk).ok()?,
        })
    }
}

fn algorithms(jwk: &Jwk) -> Option<&'static [Algorithm]> {
    use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
    let by_type: &'static [Algorithm] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => &[RS256, RS384, RS512, PS256, PS384, PS512],
        AlgorithmParameters::EllipticCurve(p) => match p.curve {
            EllipticCurve::P256 => &[ES256],
            EllipticCurve::P384 => &[ES384],
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(p) => match p.curve {
            EllipticCurve::Ed25519 => &[EdDSA],
            _ => return None,
        },
        // Symmetric (whoever can check such a token can make one), or unknown to us.
        _ => return None,
    };
    let said = match jwk.common.key_algorithm {
        None => return Some(by_type),
        Some(KeyAlgorithm::RS256) => RS256,
        Some(KeyAlgorithm::RS384) => RS384,
        Some(KeyAlgorithm::RS512) => RS512,
        Some(KeyAlgorithm::PS256) => PS256,
        Some(KeyAlgorithm::PS384) => PS384,
        Some(KeyAlgorithm::PS512) => PS512,
        Some(KeyAlgorithm::ES256) => ES256,
        Some(KeyAlgorithm::ES384) => ES384,
        Some(KeyAlgorithm::EdDSA) => EdDSA,
        Some(_) => return None,
    };
    let at = by_type.iter().position(|a| *a == said)?;
    by_type.get(at..=at)
}
