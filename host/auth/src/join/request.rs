//! A join request after everything was checked that needs no state: form, cluster, names, signature.

use std::fmt;
use std::net::IpAddr;

use aws_lc_rs::digest::{SHA256, digest};
use postern_api::join;
use postern_api::status::reasons;
use postern_api::token::JoinToken;
use postern_api::v1::JoinRequest;
use postern_identity::{ResourceId, auth_dns, check_label, proxy_dns};
use prost::Message;
use tonic::Code;
use zeroize::Zeroizing;

use super::decide::Refusal;

/// Names that one service may serve.
const MAX_NAMES: usize = 1000;
const MAX_DNS: usize = 253;
/// Kinds (and first labels) that belong to the cluster itself.
const RESERVED: [&str; 3] = ["auth", "proxy", "web"];
const PROXY: &str = "proxy";

/// See the module.
#[derive(Debug, Clone)]
pub struct Ask {
    pub host_id: String,
    pub service: String,
    pub kind: String,
    /// Sorted, each once.
    pub names: Vec<String>,
    pub token: Option<Result<JoinToken, ()>>,
    /// A join token without a secret of its own, and what is shown for it.
    pub named: Option<Named>,
    /// Hex.
    pub nonce: String,
    pub generation: u64,
    pub spki: Vec<u8>,
    pub ssh_public_key: String,
    pub signed_at: i64,
    pub version: String,
    /// What is asked for, hex: the same nonce must come with the same digest.
    pub digest: String,
}

/// What a host shows for a token that has a name instead of a secret. Not checked yet, but for the bound key's
/// signature.
#[derive(Debug, Clone)]
pub struct Named {
    pub token: String,
    pub id_token: Option<Shown>,
    pub bound_key: Option<BoundKey>,
    pub registration: Option<Shown>,
}

/// A secret as it was shown; not for logs.
#[derive(Clone)]
pub struct Shown(pub Zeroizing<String>);

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown(…)")
    }
}

/// The public key, hex; the asker has its private half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundKey(pub String);

impl Ask {
    /// `req` has to be signed by its host.
    pub fn check(req: &JoinRequest, cluster: &str) -> Result<Self, Refusal> {
        let bad =
            |message: String| Refusal::new(Code::InvalidArgument, reasons::BAD_REQUEST, message);
        if req.cluster != cluster {
            return Err(Refusal::new(
                Code::FailedPrecondition,
                reasons::WRONG_CLUSTER,
                format!(
                    "the agent is configured for cluster {:?}, this is {cluster:?}",
                    short(&req.cluster)
                ),
            ));
        }
        let Some(host_id) = join::verify(req) else {
            return Err(Refusal::new(
                Code::Unauthenticated,
                reasons::BAD_SIGNATURE,
                "the host key's signature on the request does not hold",
            ));
        };
        check_label("service", &req.service).map_err(|e| bad(e.to_string()))?;
        check_label("kind", &req.kind).map_err(|e| bad(e.to_string()))?;
        let proxy = req.kind == PROXY;
        if proxy != (req.service == PROXY) {
            return Err(reserved(format!(
                "the service name \"proxy\" and the kind \"proxy\" belong to Proxy Services, and only together (service {:?}, kind {:?})",
                req.service, req.kind
            )));
        }
        if !proxy && RESERVED.contains(&req.kind.as_str()) {
            return Err(reserved(format!(
                "the kind {:?} is reserved (auth, proxy, web); choose another kind",
                req.kind
            )));
        }
        if req.nonce.len() != 16 {
            return Err(bad(format!(
                "the nonce has {} bytes instead of 16",
                req.nonce.len()
            )));
        }
        if req.names.len() > MAX_NAMES {
            return Err(bad(format!(
                "{} names in one service; at most {MAX_NAMES}",
                req.names.len()
            )));
        }
        let mut names = req.names.clone();
        names.sort_unstable();
        names.dedup();
        for name in &names {
            if proxy {
                check_public_name(name, cluster)?;
            } else {
                check_label("resource name", name).map_err(|e| bad(e.to_string()))?;
                let dns = format!("{name}.{}.{cluster}", req.kind);
                if dns.len() > MAX_DNS {
                    return Err(bad(format!(
                        "the DNS name {} is longer than {MAX_DNS} characters",
                        short(&dns)
                    )));
                }
            }
        }
        if req.spki.is_empty() || req.spki.len() > 256 {
            return Err(bad("spki is not a P-256 public key".into()));
        }
        if !req.ssh_public_key.starts_with("ssh-ed25519 ") || req.ssh_public_key.len() > 512 {
            return Err(bad(
                "ssh_public_key is not an Ed25519 key in OpenSSH form".into()
            ));
        }
        let token = (!req.token.is_empty()).then(|| req.token.parse().map_err(|_| ()));
        let named = named(req)?;
        Ok(Ask {
            host_id,
            service: req.service.clone(),
            kind: req.kind.clone(),
            names,
            token,
            named,
            nonce: hex::encode(&req.nonce),
            generation: req.generation,
            spki: req.spki.clone(),
            ssh_public_key: req.ssh_public_key.clone(),
            signed_at: req.signed_at_unix,
            version: short(&req.version),
            digest: asked(req),
        })
    }

    pub fn is_proxy(&self) -> bool {
        self.kind == PROXY
    }
}

fn named(req: &JoinRequest) -> Result<Option<Named>, Refusal> {
    if req.token_name.is_empty() {
        return Ok(None);
    }
    let bad = |message: String| Refusal::new(Code::InvalidArgument, reasons::BAD_REQUEST, message);
    check_label("token name", &req.token_name).map_err(|e| bad(e.to_string()))?;
    let shown = |text: &String| (!text.is_empty()).then(|| Shown(text.clone().into()));
    let bound_key = if req.bound_public_key.is_empty() {
        None
    } else if join::bound_key_signed(req) {
        Some(BoundKey(hex::encode(&req.bound_public_key)))
    } else {
        return Err(Refusal::new(
            Code::Unauthenticated,
            reasons::BAD_SIGNATURE,
            "the bound key's signature on the request does not hold",
        ));
    };
    Ok(Some(Named {
        token: req.token_name.clone(),
        id_token: shown(&req.id_token),
        bound_key,
        registration: shown(&req.registration_secret),
    }))
}

/// Of everything that decides what the certificates say. Not of the time, and not of what is shown for a token: it may
/// be another one when the host asks again.
fn asked(req: &JoinRequest) -> String {
    let what = JoinRequest {
        token: String::new(),
        token_name: String::new(),
        id_token: String::new(),
        bound_public_key: Vec::new(),
        registration_secret: String::new(),
        bound_signature: Vec::new(),
        signed_at_unix: 0,
        signature: Vec::new(),
        version: String::new(),
        ..req.clone()
    };
    hex::encode(digest(&SHA256, &what.encode_to_vec()))
}

/// A name of a proxy's public certificate. Names of resources and of Auth are not for proxies: with such a
/// certificate one could stand in for them.
fn check_public_name(name: &str, cluster: &str) -> Result<(), Refusal> {
    if name.parse::<IpAddr>().is_ok() || name == proxy_dns(cluster) {
        return Ok(());
    }
    let labels = name
        .split('.')
        .all(|l| check_label("public name", l).is_ok());
    if !labels || name.len() > MAX_DNS {
        return Err(Refusal::new(
            Code::InvalidArgument,
            reasons::BAD_REQUEST,
            format!(
                "the public name {:?} is neither a DNS name (lower case, no wildcard) nor an IP address",
                short(name)
            ),
        ));
    }
    let under = name
        .strip_suffix(cluster)
        .and_then(|front| front.strip_suffix('.'));
    if name == auth_dns(cluster)
        || ResourceId::from_dns(name, cluster).is_some()
        || under.is_some_and(|f| f.contains('.'))
    {
        return Err(Refusal::new(
            Code::PermissionDenied,
            reasons::RESOURCE_CONFLICT,
            format!(
                "the public name {name:?} lies among the cluster's own names (auth.{cluster}, <resource>.<kind>.{cluster}); \
                 choose a public_addr outside of them"
            ),
        ));
    }
    Ok(())
}

fn reserved(message: String) -> Refusal {
    Refusal::new(Code::InvalidArgument, reasons::RESERVED, message)
}

/// What strangers sent, cut for messages and records.
fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}
