//! Whether one token is genuine, meant for us, current, and admitted.

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use serde_json::{Map, Value};

use crate::refusal::{Refusal, short};
use crate::{Admit, Keys};

/// How far the clocks of issuer and Auth Service may be apart (seconds).
pub const LEEWAY: i64 = 60;
/// Kubernetes and CI tokens have about 1 to 3 KB.
const MAX_BYTES: usize = 16 * 1024;

/// What a token has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// `iss`, exactly.
    pub issuer: String,
    /// One of these has to be in `aud`.
    pub audiences: Vec<String>,
    pub admit: Admit,
}

/// A token that holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Proof {
    /// `sub`, for the audit log.
    pub subject: String,
    pub claims: Map<String, Value>,
    /// `exp`; with [`LEEWAY`] added, the time until which the token could be shown again.
    pub expires_unix: i64,
    /// By which it is recognised when it is shown again: SHA-256 in hex, of issuer and `jti`, else of what was signed.
    /// Never of the signature, which for ECDSA has two valid forms.
    pub fingerprint: String,
}

/// Checks a token at time `now` (Unix seconds). Claims are not looked at before the signature holds.
pub fn verify(keys: &Keys, policy: &Policy, token: &str, now: i64) -> Result<Proof, Refusal> {
    let token = token.trim();
    if token.len() > MAX_BYTES {
        return Err(Refusal::Malformed(format!("{} bytes", token.len())));
    }
    let claims = signed_claims(keys, token)?;
    issued_for(policy, &claims)?;
    let expires_unix = current(&claims, now)?;
    let subject = text(&claims, "sub").ok_or(Refusal::Claim("sub"))?;
    if !policy.admit.admits(&claims) {
        return Err(Refusal::NoRule(short(subject)));
    }
    Ok(Proof {
        subject: subject.to_owned(),
        expires_unix,
        fingerprint: fingerprint(policy, &claims, token),
        claims,
    })
}

fn signed_claims(keys: &Keys, token: &str) -> Result<Map<String, Value>, Refusal> {
    let header = decode_header(token).map_err(|e| match raw_algorithm(token) {
        Some(name) if name.parse::<Algorithm>().is_err() => Refusal::Algorithm(short(&name)),
        _ => Refusal::Malformed(e.to_string()),
    })?;
    // We understand no extension, and the library does not look.
    if header.crit.is_some() {
        return Err(Refusal::Malformed("critical header extensions".into()));
    }
    let candidates = keys.candidates(header.kid.as_deref());
    if candidates.is_empty() {
        let id = header
            .kid
            .as_deref()
            .map_or_else(|| "(none named)".to_owned(), short);
        return Err(Refusal::UnknownKey(id));
    }
    let mut refusal = Refusal::Algorithm(format!("{:?}", header.alg));
    for key in candidates {
        if !key.algorithms.contains(&header.alg) {
            continue;
        }
        let mut validation = Validation::new(header.alg);
        validation.algorithms = vec![header.alg];
        // Time and audience are checked here, with words an operator understands.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        match decode::<Map<String, Value>>(token, &key.decoding, &validation) {
            Ok(data) => return Ok(data.claims),
            Err(e) => {
                refusal = match e.kind() {
                    ErrorKind::Json(_) | ErrorKind::Base64(_) | ErrorKind::InvalidToken => {
                        Refusal::Malformed(e.to_string())
                    }
                    _ => Refusal::Signature,
                }
            }
        }
    }
    Err(refusal)
}

/// What the header calls its algorithm, where the library knows none of that name (`none`).
fn raw_algorithm(token: &str) -> Option<String> {
    let json = URL_SAFE_NO_PAD.decode(token.split('.').next()?).ok()?;
    let header: Value = serde_json::from_slice(&json).ok()?;
    Some(header.get("alg")?.as_str()?.to_owned())
}

fn issued_for(policy: &Policy, claims: &Map<String, Value>) -> Result<(), Refusal> {
    let issuer = text(claims, "iss").ok_or(Refusal::Claim("iss"))?;
    if issuer != policy.issuer {
        return Err(Refusal::Issuer {
            got: short(issuer),
            want: policy.issuer.clone(),
        });
    }
    let audiences: Vec<&str> = match claims.get("aud") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
        _ => return Err(Refusal::Claim("aud")),
    };
    if !audiences
        .iter()
        .any(|a| policy.audiences.iter().any(|want| want == a))
    {
        return Err(Refusal::Audience {
            got: short(&audiences.join(", ")),
            want: policy.audiences.join(" or "),
        });
    }
    Ok(())
}

/// The token's expiry, if it is valid now.
fn current(claims: &Map<String, Value>, now: i64) -> Result<i64, Refusal> {
    let expires = seconds(claims, "exp")?.ok_or(Refusal::Claim("exp"))?;
    if expires.saturating_add(LEEWAY) <= now {
        return Err(Refusal::Expired(now.saturating_sub(expires)));
    }
    for begin in ["nbf", "iat"] {
        if let Some(at) = seconds(claims, begin)?
            && at.saturating_sub(LEEWAY) > now
        {
            return Err(Refusal::NotYet(at.saturating_sub(now)));
        }
    }
    Ok(expires)
}

/// A NumericDate; fractions are cut off.
fn seconds(claims: &Map<String, Value>, name: &'static str) -> Result<Option<i64>, Refusal> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    let whole = value.as_i64().or_else(|| {
        let x = value.as_f64()?;
        // Beyond this a double holds no whole seconds any more, and no honest issuer is there.
        #[allow(clippy::cast_possible_truncation, reason = "bounded just before")]
        (x.abs() < 1e15).then_some(x as i64)
    });
    whole.map(Some).ok_or(Refusal::Claim(name))
}

fn text<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    claims.get(name)?.as_str().filter(|t| !t.is_empty())
}

fn fingerprint(policy: &Policy, claims: &Map<String, Value>, token: &str) -> String {
    let mut hash = Context::new(&SHA256);
    hash.update(policy.issuer.as_bytes());
    match text(claims, "jti") {
        Some(id) => {
            hash.update(b"\njti\n");
            hash.update(id.as_bytes());
        }
        None => {
            hash.update(b"\ntoken\n");
            let signed = token.rsplit_once('.').map_or(token, |(signed, _)| signed);
            hash.update(signed.as_bytes());
        }
    }
    hex::encode(hash.finish())
}
