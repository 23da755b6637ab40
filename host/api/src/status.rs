//! Refusals: a `tonic::Status` with a code, a message worded for the operator (D9), and in the metadata key
//! `postern-reason` a stable word, so that programs need not read prose.

use std::error::Error;

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

const KEY: &str = "postern-reason";

/// The stable words. A caller may rely on them; messages may change.
pub mod reasons {
    /// The request itself is malformed.
    pub const BAD_REQUEST: &str = "bad-request";
    /// The request is for another cluster.
    pub const WRONG_CLUSTER: &str = "wrong-cluster";
    /// The host key's signature does not hold.
    pub const BAD_SIGNATURE: &str = "bad-signature";
    /// `signed_at_unix` is too far from Auth's clock.
    pub const CLOCK_SKEW: &str = "clock-skew";
    /// A reserved kind or service name.
    pub const RESERVED: &str = "reserved";
    /// No token, and the host's grant does not cover what is asked.
    pub const TOKEN_NEEDED: &str = "token-needed";
    /// No such token, or its secret is wrong: the two are not told apart.
    pub const TOKEN_INVALID: &str = "token-invalid";
    pub const TOKEN_EXPIRED: &str = "token-expired";
    pub const TOKEN_USED_UP: &str = "token-used-up";
    pub const TOKEN_KIND: &str = "token-kind";
    pub const TOKEN_NAME: &str = "token-name";
    /// What is shown for a join token without a secret (an ID token, a bound key) does not hold.
    pub const PROOF_INVALID: &str = "proof-invalid";
    /// The issuer of an ID token can't be asked for its keys.
    pub const ISSUER_UNREACHABLE: &str = "issuer-unreachable";
    /// The resource name belongs to another host, or a public name to the cluster itself.
    pub const RESOURCE_CONFLICT: &str = "resource-conflict";
    /// A renewal with an old generation: these credentials were copied. The service is locked.
    pub const AGENT_COPIED: &str = "agent-copied";
    /// The credentials expired longer ago than `rejoin_window`.
    pub const REJOIN_WINDOW: &str = "rejoin-window";
    pub const LOCKED: &str = "locked";
    /// User name or password wrong; the two are not told apart.
    pub const LOGIN_FAILED: &str = "login-failed";
    pub const CODE_INVALID: &str = "code-invalid";
    pub const WEAK_PASSWORD: &str = "weak-password";
    pub const RATE_LIMITED: &str = "rate-limited";
    /// A client certificate is needed, and there is none.
    pub const NO_CERTIFICATE: &str = "no-certificate";
    /// The client certificate is not valid here, or has expired.
    pub const BAD_CERTIFICATE: &str = "bad-certificate";
    /// The client certificate is valid, and may not call this method.
    pub const WRONG_CALLER: &str = "wrong-caller";
    /// The roles do not allow it.
    pub const ACCESS_DENIED: &str = "access-denied";
    pub const NOT_FOUND: &str = "not-found";
    pub const EXISTS: &str = "exists";
    pub const BUSY: &str = "busy";
    pub const INTERNAL: &str = "internal";
}

/// A refusal with its stable reason.
pub fn refuse(code: Code, reason: &'static str, message: impl Into<String>) -> Status {
    let mut status = Status::new(code, message);
    status
        .metadata_mut()
        .insert(KEY, MetadataValue::from_static(reason));
    status
}

/// The stable reason of a refusal; `None` where the status does not come from Postern (a lost connection).
pub fn reason(status: &Status) -> Option<&str> {
    status.metadata().get(KEY).and_then(|v| v.to_str().ok())
}

/// The message for a person: of Auth's refusals the message alone, of transport errors the innermost cause too
/// (tonic says only "transport error").
pub fn describe(status: &Status) -> String {
    if reason(status).is_some() {
        return status.message().to_owned();
    }
    // tonic's own layer between the call and what went wrong.
    const NOISE: &str = "transport error";
    let mut text = status.message().to_owned();
    if text == NOISE {
        text.clear();
    }
    let mut cause = status.source();
    while let Some(e) = cause {
        let next = e.to_string();
        if next != NOISE && !text.contains(&next) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&next);
        }
        cause = e.source();
    }
    if text.is_empty() {
        status.code().description().to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_its_reason() {
        let status = refuse(
            Code::PermissionDenied,
            reasons::TOKEN_EXPIRED,
            "token pt_1 expired",
        );
        assert_eq!(reason(&status), Some("token-expired"));
        assert_eq!(describe(&status), "token pt_1 expired");
        assert_eq!(reason(&Status::internal("x")), None);
    }
}
