//! Passwords: argon2id with its default parameters (19 MiB, two passes), at most two at a time and never on a
//! thread that serves others.

use std::sync::Arc;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::error::AuthError;

const AT_ONCE: usize = 2;
/// Logins that may wait for their turn; more are told to come back.
const WAITING: usize = 64;
pub const MIN_CHARS: usize = 8;
/// Long enough for any pass phrase, short enough to hash.
pub const MAX_BYTES: usize = 1024;

/// See the module.
pub struct Passwords {
    turns: Arc<Semaphore>,
    waiting: Semaphore,
    /// Verified for users that do not exist or have no password, so that they cost the same.
    decoy: String,
}

/// Too many logins at once.
#[derive(Debug)]
pub struct Busy;

impl Passwords {
    pub async fn new() -> Result<Self, AuthError> {
        let unset = Passwords {
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            waiting: Semaphore::new(WAITING),
            decoy: String::new(),
        };
        let secret: [u8; 16] = rand::random();
        let decoy = unset.hash(Zeroizing::new(hex::encode(secret))).await;
        let decoy = decoy.map_err(|Busy| AuthError::Internal("cannot hash a password".into()))?;
        Ok(Passwords { decoy, ..unset })
    }

    /// Why a password is not good enough, for the person who chose it.
    pub fn check(user: &str, password: &str) -> Result<(), String> {
        if password.chars().count() < MIN_CHARS {
            return Err(format!(
                "the password is too short: it needs at least {MIN_CHARS} characters (several words make a good one)"
            ));
        }
        if password.len() > MAX_BYTES {
            return Err(format!(
                "the password is too long: at most {MAX_BYTES} bytes"
            ));
        }
        if password.eq_ignore_ascii_case(user) {
            return Err("the password must not be the user name".into());
        }
        let mut chars = password.chars();
        let first = chars.next();
        if chars.all(|c| Some(c) == first) {
            return Err("the password is one character repeated".into());
        }
        Ok(())
    }

    /// A PHC string with a fresh salt.
    pub async fn hash(&self, password: Zeroizing<String>) -> Result<String, Busy> {
        let hash = self.in_turn(move || {
            Argon2::default()
                .hash_password(password.as_bytes())
                .map(|hash| hash.to_string())
        });
        hash.await?.map_err(|_| Busy)
    }

    /// Whether the password fits. Takes as long where there is nothing to fit.
    pub async fn verify(
        &self,
        password: Zeroizing<String>,
        stored: Option<&str>,
    ) -> Result<bool, Busy> {
        let exists = stored.is_some();
        let hash = stored.unwrap_or(&self.decoy).to_owned();
        let fits = self.in_turn(move || {
            PasswordHash::new(&hash).is_ok_and(|hash| {
                Argon2::default()
                    .verify_password(password.as_bytes(), &hash)
                    .is_ok()
            })
        });
        Ok(fits.await? && exists)
    }

    async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Busy> {
        let _waiting = self.waiting.try_acquire().map_err(|_| Busy)?;
        let turn = Arc::clone(&self.turns)
            .acquire_owned()
            .await
            .map_err(|_| Busy)?;
        // The turn goes along: a caller who hangs up must not make room for a third while this one still computes.
        let work = move || {
            let _turn = turn;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| Busy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(s: &str) -> Zeroizing<String> {
        Zeroizing::new(s.to_owned())
    }

    #[tokio::test]
    async fn verify_only_what_was_hashed() {
        let passwords = Passwords::new().await.unwrap();
        let hash = passwords.hash(text("correct horse")).await.unwrap();
        assert!(
            hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{hash}"
        );
        assert!(
            passwords
                .verify(text("correct horse"), Some(&hash))
                .await
                .unwrap()
        );
        assert!(
            !passwords
                .verify(text("correct horsf"), Some(&hash))
                .await
                .unwrap()
        );
        assert!(!passwords.verify(text("correct horse"), None).await.unwrap());
        assert!(!passwords.verify(text(""), Some("")).await.unwrap());
    }

    #[test]
    fn refusals_say_why() {
        for (password, why) in [
            ("short", "too short"),
            ("aaaaaaaaaa", "repeated"),
            ("Alexandra", "user name"),
            (&"x7".repeat(600), "too long"),
        ] {
            let refused = Passwords::check("alexandra", password).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
        Passwords::check("alexandra", "correct horse").unwrap();
    }
}
