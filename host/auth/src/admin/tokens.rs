//! Making join tokens: with a secret, or for a method in which the environment proves who asks. What would let in more
//! than anybody meant is refused here, when it is made.

use std::collections::BTreeMap;

use globset::Glob;
use postern_api::status::{reasons, refuse};
use postern_api::token::JoinToken;
use postern_api::v1::create_token_request::Method as Asked;
use postern_api::v1::{BoundKeypairMethod, CreateTokenRequest, IdTokenMethod as AskedIdToken};
use postern_identity::check_label;
use postern_idtoken::{Admit, Rule};
use tonic::{Code, Status};
use zeroize::Zeroizing;

use super::presets::Preset;
use super::{bad, exists, ttl};
use crate::error::failed;
use crate::issuers::check_issuer;
use crate::join::put_token;
use crate::kv::{KvError, Txn};
use crate::login::hash_code;
use crate::records::{self, BoundKeypair, IdTokenMethod, KeySource, Method, Token};
use crate::state::Shared;
use crate::time;

const SECRET_TTL: u64 = 30 * 60;
/// Accounts of an issuer that one token may name.
const MAX_RULES: usize = 100;
/// Each leaves the id of a former host in the record.
const MAX_RECOVERIES: u32 = 1000;

/// A new token, and the secret that is shown once (empty where there is none).
pub struct Created {
    pub token: Token,
    pub secret: Zeroizing<String>,
}

/// Stores a new token; the caller audits.
pub async fn create_token(state: &Shared, req: CreateTokenRequest) -> Result<Created, Status> {
    check_scope(&req)?;
    match req.method.clone() {
        None => with_secret(state, &req).await,
        Some(asked) => {
            check_name(&req.name)?;
            let now = time::now();
            let (method, uses, secret) = match asked {
                Asked::IdToken(asked) => {
                    let method = id_token(state, asked).await?;
                    let uses = (req.uses > 0).then_some(req.uses);
                    (Method::IdToken(method), uses, Zeroizing::default())
                }
                Asked::BoundKeypair(asked) => bound_keypair(&req, &asked, now)?,
            };
            // A registration secret lives as long as other secrets; what it registers goes on.
            let lives = req.ttl_seconds > 0 && matches!(method, Method::IdToken(_));
            let expires_unix = match lives {
                true => Some(now + ttl(req.ttl_seconds, SECRET_TTL)?),
                false => None,
            };
            let token = Token {
                id: req.name.clone(),
                method,
                kinds: req.kinds,
                names: req.names,
                created_unix: now,
                expires_unix,
                uses,
                used: 0,
            };
            match store(state, &token, now).await {
                Ok(_) => Ok(Created { token, secret }),
                Err(KvError::Conflict { .. }) => Err(exists(
                    "token",
                    &req.name,
                    "remove it first, or choose another name",
                )),
                Err(e) => Err(failed("store the token", e)),
            }
        }
    }
}

async fn store(state: &Shared, token: &Token, now: i64) -> Result<u64, KvError> {
    let txn = Txn::new().expect(Token::key(&token.id), None);
    state.kv.commit(put_token(txn, token, now)).await
}

async fn with_secret(state: &Shared, req: &CreateTokenRequest) -> Result<Created, Status> {
    if !req.name.is_empty() {
        return Err(bad(
            "a token with a secret is called by its id; a name belongs to the other join methods",
        ));
    }
    let now = time::now();
    let expires_unix = Some(now + ttl(req.ttl_seconds, SECRET_TTL)?);
    // Ids are short, for people; another try in the rare case that one is taken.
    for _ in 0..8 {
        let secret = JoinToken::generate().map_err(|e| failed("create a token", e))?;
        let token = Token {
            id: secret.id().to_owned(),
            method: Method::Secret(secret.hash()),
            kinds: req.kinds.clone(),
            names: req.names.clone(),
            created_unix: now,
            expires_unix,
            uses: (req.uses > 0).then_some(req.uses),
            used: 0,
        };
        match store(state, &token, now).await {
            Ok(_) => {
                let secret = secret.reveal();
                return Ok(Created { token, secret });
            }
            Err(KvError::Conflict { .. }) => {}
            Err(e) => return Err(failed("store the token", e)),
        }
    }
    Err(failed("create a token", "eight random ids were taken"))
}

fn check_scope(req: &CreateTokenRequest) -> Result<(), Status> {
    if req.kinds.is_empty() {
        return Err(bad("a token needs at least one kind, e.g. --kinds ssh"));
    }
    for kind in &req.kinds {
        check_label("kind", kind).map_err(|e| bad(e.to_string()))?;
        if kind == "auth" || kind == "web" {
            return Err(refuse(
                Code::InvalidArgument,
                reasons::RESERVED,
                format!("the kind {kind:?} is reserved"),
            ));
        }
    }
    for name in &req.names {
        if name.is_empty() || name.len() > 253 {
            return Err(bad("a name has 1 to 253 characters"));
        }
        Glob::new(name).map_err(|e| bad(format!("name {name:?}: {e}")))?;
    }
    Ok(())
}

/// Hex digits alone look like the id of a token with a secret.
fn check_name(name: &str) -> Result<(), Status> {
    check_label("token name", name).map_err(|e| bad(e.to_string()))?;
    if name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(bad(format!(
            "the token name {name:?} looks like the id of another token; give it a letter beyond f, or a -"
        )));
    }
    Ok(())
}

async fn id_token(state: &Shared, asked: AskedIdToken) -> Result<IdTokenMethod, Status> {
    let preset = Preset::named(&asked.preset).map_err(bad)?;
    let issuer = match (asked.issuer.is_empty(), preset.issuer) {
        (false, _) => asked.issuer,
        (true, Some(issuer)) => issuer.to_owned(),
        (true, None) => return Err(bad("the method oidc needs an issuer (--issuer)")),
    };
    let audiences = if asked.audiences.is_empty() {
        vec![state.cluster().to_owned()]
    } else {
        asked.audiences
    };
    if audiences.iter().any(String::is_empty) {
        return Err(bad("an audience is empty"));
    }
    let rules: Vec<BTreeMap<String, String>> = asked
        .must_match
        .into_iter()
        .map(|m| m.values.into_iter().collect())
        .collect();
    if rules.len() > MAX_RULES {
        return Err(bad(format!("{} rules; at most {MAX_RULES}", rules.len())));
    }
    let admit = match (rules.is_empty(), asked.allow_any) {
        (true, true) => Admit::AllowAny,
        (false, true) => return Err(bad("both rules and allow-any; one of them is meant")),
        (_, false) => Admit::MustMatch(rules.into_iter().map(Rule).collect()),
    };
    admit.check().map_err(|e| bad(e.to_string()))?;
    Preset::narrow_enough(&admit, &issuer).map_err(bad)?;
    let keys = if asked.jwks_json.is_empty() {
        check_issuer(&issuer).map_err(|e| bad(e.to_string()))?;
        KeySource::Discovered {
            ca_pem: asked.ca_pem,
        }
    } else {
        KeySource::Static(asked.jwks_json)
    };
    // Asked now, so that a mistake is seen here and not in every host's log.
    state.issuers.keys(&issuer, &keys).await.map_err(|e| {
        bad(format!(
            "{e}; if Auth can't reach the issuer, give its keys as a file (--jwks)"
        ))
    })?;
    Ok(IdTokenMethod {
        preset: preset.word.to_owned(),
        issuer,
        audiences,
        admit,
        keys,
    })
}

type Bound = (Method, Option<u32>, Zeroizing<String>);

fn bound_keypair(
    req: &CreateTokenRequest,
    asked: &BoundKeypairMethod,
    now: i64,
) -> Result<Bound, Status> {
    if req.uses > 0 {
        return Err(bad(
            "a bound key pair has recoveries instead of uses: it joins once, and so often again",
        ));
    }
    if asked.recoveries > MAX_RECOVERIES {
        return Err(bad(format!("at most {MAX_RECOVERIES} recoveries")));
    }
    let uses = Some(asked.recoveries.saturating_add(1));
    if !asked.public_key.is_empty() {
        if req.ttl_seconds > 0 {
            return Err(bad(
                "a token with a public key does not expire (--ttl is for registration secrets); remove it when it is no longer needed",
            ));
        }
        let bound = BoundKeypair {
            public_key: Some(raw_ed25519(&asked.public_key)?),
            ..BoundKeypair::default()
        };
        return Ok((Method::BoundKeypair(bound), uses, Zeroizing::default()));
    }
    let secret = Zeroizing::new(hex::encode(rand::random::<[u8; 16]>()));
    let bound = BoundKeypair {
        registration: Some(records::Code {
            hash: hash_code(&secret),
            expires_unix: now + ttl(req.ttl_seconds, SECRET_TTL)?,
        }),
        ..BoundKeypair::default()
    };
    Ok((Method::BoundKeypair(bound), uses, secret))
}

/// The 32 bytes of the key, hex.
fn raw_ed25519(line: &str) -> Result<String, Status> {
    let key = ssh_key::PublicKey::from_openssh(line.trim()).map_err(|e| {
        bad(format!(
            "this is no public key ({e}); expected one line: ssh-ed25519 AAAA…"
        ))
    })?;
    match key.key_data().ed25519() {
        Some(key) => Ok(hex::encode(key.0)),
        None => Err(bad(format!(
            "the public key is of type {}; ssh-ed25519 is needed",
            key.algorithm()
        ))),
    }
}
