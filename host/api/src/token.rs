//! Join tokens: `pt_<public id>_<secret>`. The id is for people (logs, errors, `postern tokens ls`); the secret
//! is 128 random bits, which is why Auth may store a plain SHA-256 of it: nobody guesses that by trying.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::{digest, rand};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

const ID_BYTES: usize = 4;
const SECRET_BYTES: usize = 16;

/// A join token with its secret. `Display` and `Debug` show `pt_<id>` only; [`JoinToken::reveal`] shows all.
#[derive(Clone)]
pub struct JoinToken {
    id: String,
    secret: Zeroizing<Vec<u8>>,
}

/// Text that is no token. It does not repeat the text, which may be most of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not a join token (expected pt_<id>_<secret>, {ID_BYTES} and {SECRET_BYTES} bytes in hex); create one with: postern tokens create --kinds <kind>"
)]
pub struct TokenFormatError;

/// The system has no random numbers.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the system's random number generator failed")]
pub struct NoRandomness;

impl JoinToken {
    /// A new token.
    pub fn generate() -> Result<Self, NoRandomness> {
        let mut id = [0u8; ID_BYTES];
        let mut secret = Zeroizing::new(vec![0u8; SECRET_BYTES]);
        rand::fill(&mut id).map_err(|_| NoRandomness)?;
        rand::fill(&mut secret).map_err(|_| NoRandomness)?;
        Ok(JoinToken {
            id: hex::encode(id),
            secret,
        })
    }

    /// The public id, without the `pt_` (e.g. `3f9a01c2`).
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The whole token, for the one who asked for it, once.
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(format!(
            "pt_{}_{}",
            self.id,
            *Zeroizing::new(hex::encode(&*self.secret))
        ))
    }

    /// What Auth stores: SHA-256 of the secret, in hex.
    pub fn hash(&self) -> String {
        hex::encode(digest::digest(&digest::SHA256, &self.secret))
    }

    /// Whether this token's secret has the stored hash; compared in constant time.
    pub fn matches(&self, stored_hash: &str) -> bool {
        self.hash().as_bytes().ct_eq(stored_hash.as_bytes()).into()
    }
}

impl FromStr for JoinToken {
    type Err = TokenFormatError;

    fn from_str(text: &str) -> Result<Self, TokenFormatError> {
        let (id, secret) = text
            .trim()
            .strip_prefix("pt_")
            .and_then(|t| t.split_once('_'))
            .ok_or(TokenFormatError)?;
        let secret = Zeroizing::new(hex::decode(secret).map_err(|_| TokenFormatError)?);
        let lower_hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if id.len() != ID_BYTES * 2 || !id.bytes().all(lower_hex) || secret.len() != SECRET_BYTES {
            return Err(TokenFormatError);
        }
        Ok(JoinToken {
            id: id.to_owned(),
            secret,
        })
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pt_{}", self.id)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken(pt_{})", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn round_trip_and_silence() {
        let token = JoinToken::generate().unwrap();
        let again: JoinToken = token.reveal().parse().unwrap();
        assert_eq!(again.id(), token.id());
        assert!(again.matches(&token.hash()));
        assert!(!JoinToken::generate().unwrap().matches(&token.hash()));
        let secret = token.reveal().rsplit('_').next().unwrap().to_owned();
        assert!(!format!("{token} {token:?}").contains(&secret));
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_only_accepts_what_it_prints(text in "(pt_)?[0-9a-fA-F_é]{0,48}") {
            if let Ok(token) = text.parse::<JoinToken>() {
                prop_assert_eq!(token.reveal().to_lowercase(), text.to_lowercase());
            }
        }
    }
}
