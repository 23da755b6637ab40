//! Whether what a host shows for a join token holds: the token's secret, an ID token of its issuer, or a key pair that is
//! bound to it. Says nothing of what the token is good for: that is [`super::decide`].

use postern_access::Lock;
use postern_api::status::reasons;
use postern_api::token::JoinToken;
use postern_idtoken::{LEEWAY, Policy, Refusal as IdTokenRefusal, verify};
use subtle::ConstantTimeEq;
use tonic::Code;

use super::decide::{Refusal, TokenView};
use super::request::{Ask, Named};
use crate::error::AuthError;
use crate::issuers::{IssuerError, Issuers};
use crate::login::hash_code;
use crate::records::{
    At, BoundKeypair, IdTokenMethod, Method, ShownIdToken, Token, decode, load, lock_host,
    lock_key, lock_service,
};
use crate::state::Shared;
use crate::time::{self, about, rfc3339};

/// What was shown, as far as deciding and writing need it.
#[derive(Default)]
pub struct Proof {
    pub view: TokenView,
    /// The record behind [`TokenView::Known`], with its revision.
    pub stored: Option<At<Token>>,
    /// The ID token it was: to be remembered if it is used.
    pub id_token: Option<Remember>,
}

/// An ID token that must not serve another host.
pub struct Remember {
    /// Whose it is, for the audit log.
    pub subject: String,
    pub key: String,
    /// Of the record that is there already.
    pub revision: Option<u64>,
    /// Unix seconds until which it could be shown again.
    pub until: i64,
}

impl Proof {
    fn view(view: TokenView) -> Self {
        Proof {
            view,
            ..Proof::default()
        }
    }

    fn refused(token: &Token, reason: &'static str, why: impl std::fmt::Display) -> Self {
        let message = format!("token {}: {why}", token.label());
        let refusal = Refusal::new(Code::PermissionDenied, reason, message);
        Proof::view(TokenView::Refused(refusal))
    }

    fn known(stored: At<Token>) -> Self {
        Proof {
            view: TokenView::Known(stored.value.clone()),
            stored: Some(stored),
            id_token: None,
        }
    }
}

/// Checks what `ask` shows against what is stored.
pub async fn shown(state: &Shared, ask: &Ask) -> Result<Proof, AuthError> {
    match (&ask.token, &ask.named) {
        (Some(Ok(secret)), _) => by_secret(state, secret).await,
        (Some(Err(())), _) => Ok(Proof::view(TokenView::Malformed)),
        (None, Some(named)) => by_name(state, ask, named).await,
        (None, None) => Ok(Proof::default()),
    }
}

async fn by_secret(state: &Shared, secret: &JoinToken) -> Result<Proof, AuthError> {
    let stored = load::<Token>(&state.kv, &Token::key(secret.id())).await?;
    Ok(match stored {
        Some(t) if matches!(&t.value.method, Method::Secret(hash) if secret.matches(hash)) => {
            Proof::known(t)
        }
        _ => Proof::view(TokenView::Unknown(secret.to_string())),
    })
}

async fn by_name(state: &Shared, ask: &Ask, named: &Named) -> Result<Proof, AuthError> {
    let unknown = || Proof::view(TokenView::Unknown(named.token.clone()));
    let Some(stored) = load::<Token>(&state.kv, &Token::key(&named.token)).await? else {
        return Ok(unknown());
    };
    match stored.value.method.clone() {
        // A secret token has no name: knowing its public id is no proof.
        Method::Secret(_) => Ok(unknown()),
        Method::IdToken(method) => by_id_token(state, ask, named, stored, &method).await,
        Method::BoundKeypair(bound) => by_bound_key(state, ask, named, stored, &bound).await,
    }
}

async fn by_id_token(
    state: &Shared,
    ask: &Ask,
    named: &Named,
    stored: At<Token>,
    method: &IdTokenMethod,
) -> Result<Proof, AuthError> {
    let token = &stored.value;
    let Some(shown) = &named.id_token else {
        let why = format!(
            "it needs an ID token of {} (join method {}), and the service showed none",
            method.issuer, method.preset
        );
        return Ok(Proof::refused(token, reasons::PROOF_INVALID, why));
    };
    let proof = match verified(&state.issuers, method, &shown.0).await {
        Ok(proof) => proof,
        Err(NotVerified::Refused(why)) => {
            return Ok(Proof::refused(token, reasons::PROOF_INVALID, why));
        }
        Err(NotVerified::Issuer(why)) => {
            // Whoever joins learns nothing of what Auth can reach.
            tracing::warn!(token = token.label(), "{why}");
            let why = "the keys of its issuer can't be had; the log of the Auth Service says why";
            return Ok(Proof::refused(token, reasons::ISSUER_UNREACHABLE, why));
        }
    };
    let key = ShownIdToken::key(&proof.fingerprint);
    let before = load::<ShownIdToken>(&state.kv, &key).await?;
    if let Some(other) = before.as_ref().filter(|b| b.value.host_id != ask.host_id) {
        let why = format!(
            "host {} has joined with this ID token already, and each is good for one host; get a fresh one",
            other.value.host_id
        );
        return Ok(Proof::refused(token, reasons::PROOF_INVALID, why));
    }
    let remember = Remember {
        subject: proof.subject.chars().take(255).collect(),
        key,
        revision: before.map(|b| b.revision),
        until: proof.expires_unix.saturating_add(LEEWAY),
    };
    Ok(Proof {
        id_token: Some(remember),
        ..Proof::known(stored)
    })
}

enum NotVerified {
    Refused(IdTokenRefusal),
    Issuer(IssuerError),
}

async fn verified(
    issuers: &Issuers,
    method: &IdTokenMethod,
    shown: &str,
) -> Result<postern_idtoken::Proof, NotVerified> {
    let policy = Policy {
        issuer: method.issuer.clone(),
        audiences: method.audiences.clone(),
        admit: method.admit.clone(),
    };
    let keys = issuers.keys(&method.issuer, &method.keys).await;
    let keys = keys.map_err(NotVerified::Issuer)?;
    match verify(&keys, &policy, shown, time::now()) {
        Ok(proof) => Ok(proof),
        // The issuer may have new keys since we asked.
        Err(IdTokenRefusal::UnknownKey(id)) => {
            match issuers.newer_keys(&method.issuer, &method.keys).await {
                None => Err(NotVerified::Refused(IdTokenRefusal::UnknownKey(id))),
                Some(Err(e)) => Err(NotVerified::Issuer(e)),
                Some(Ok(keys)) => {
                    verify(&keys, &policy, shown, time::now()).map_err(NotVerified::Refused)
                }
            }
        }
        Err(other) => Err(NotVerified::Refused(other)),
    }
}

async fn by_bound_key(
    state: &Shared,
    ask: &Ask,
    named: &Named,
    stored: At<Token>,
    bound: &BoundKeypair,
) -> Result<Proof, AuthError> {
    let token = &stored.value;
    let refused = |why: String| Ok(Proof::refused(token, reasons::PROOF_INVALID, why));
    let Some(key) = &named.bound_key else {
        return refused(
            "it needs a key pair (join method bound_keypair), and the service showed none".into(),
        );
    };
    match (&bound.public_key, &bound.registration) {
        (Some(registered), _) if *registered == key.0 => {}
        (Some(_), _) => {
            return refused(
                "the key pair shown is not the one that is registered; look at key_file on that host".into(),
            );
        }
        (None, None) => return refused("no key pair is registered for it".into()),
        (None, Some(secret)) => {
            let Some(shown) = &named.registration else {
                return refused(
                    "no key pair is registered for it yet; the first join needs its registration secret".into(),
                );
            };
            // Before the time: who does not know the secret learns nothing of it.
            let right = hash_code(&shown.0).as_bytes().ct_eq(secret.hash.as_bytes());
            if !bool::from(right) {
                return refused("the registration secret is wrong".into());
            }
            if secret.expires_unix <= time::now() {
                return refused(format!(
                    "its registration secret expired at {} ({} ago); remove the token and create it anew",
                    rfc3339(secret.expires_unix),
                    about(time::now() - secret.expires_unix)
                ));
            }
        }
    }
    if bound.former.contains(&ask.host_id) {
        return refused(
            "this host was replaced by another one with the same key pair; it needs another token"
                .into(),
        );
    }
    // Else a host that was locked out would come back under a new name. The locks of replaced hosts expire by themselves
    // and are no decision of anybody's.
    let last = bound.host_id.iter().filter(|h| **h != ask.host_id);
    let former = bound.former.iter();
    for (host_id, decided) in last.map(|h| (h, false)).chain(former.map(|h| (h, true))) {
        let lock = lock_of(state, host_id).await?;
        if let Some(lock) = lock.filter(|l| !decided || l.expires_unix.is_none()) {
            return refused(format!(
                "a host that its key pair served before ({host_id}) is locked ({}); lift it with: postern locks rm {}",
                lock.reason, lock.target
            ));
        }
    }
    Ok(Proof::known(stored))
}

/// A lock of the host, or of one of its services.
async fn lock_of(state: &Shared, host_id: &str) -> Result<Option<Lock>, AuthError> {
    if let Some(lock) = state.locked(&[lock_host(host_id)]).await? {
        return Ok(Some(lock));
    }
    let services = lock_key(&lock_service(host_id, ""));
    let entries = state.kv.range(vec![services]).await?.entries;
    let now = u64::try_from(time::now()).unwrap_or(0);
    for entry in &entries {
        let lock = decode::<Lock>(entry)?.value;
        if lock.holds_at(now) {
            return Ok(Some(lock));
        }
    }
    Ok(None)
}
