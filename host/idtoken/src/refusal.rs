//! Why an ID token lets nobody in, worded for the operator (D9).

use crate::LEEWAY;

/// See the module. The text shows claims of tokens, never a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "the ID token is no signed JWT ({0}); give the token itself, three parts joined by dots"
    )]
    Malformed(String),
    #[error(
        "the ID token is signed with {0}, which its issuer's key does not allow (keys decide: RS256 to PS512, ES256, ES384, EdDSA; never none or HS256)"
    )]
    Algorithm(String),
    /// The issuer may have new keys: worth fetching them once more.
    #[error(
        "the ID token's key {0} is not among the issuer's keys; where they are given as a file, replace it with the current ones"
    )]
    UnknownKey(String),
    #[error(
        "the ID token's signature does not hold under the issuer's key; it comes from another issuer, or was changed"
    )]
    Signature,
    #[error("the ID token comes from issuer {got}, this join token expects {want:?}")]
    Issuer { got: String, want: String },
    #[error(
        "the ID token is for audience {got}, this join token expects {want}; ask the issuer for a token with that audience"
    )]
    Audience { got: String, want: String },
    #[error(
        "the ID token expired {0} s ago; get a fresh one for each attempt, and check the clocks ({LEEWAY} s are tolerated)"
    )]
    Expired(i64),
    #[error(
        "the ID token becomes valid in {0} s; check the clocks of issuer and Auth Service ({LEEWAY} s are tolerated)"
    )]
    NotYet(i64),
    #[error("the ID token lacks a usable claim {0:?}")]
    Claim(&'static str),
    #[error(
        "no rule of this join token matches the ID token (its sub: {0}); change the rules if this host should join"
    )]
    NoRule(String),
}

/// What a stranger wrote, made fit for a log line.
pub(crate) fn short(text: &str) -> String {
    let clean: String = text.chars().filter(|c| !c.is_control()).take(120).collect();
    format!("{clean:?}")
}
