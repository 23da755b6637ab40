//! What is stored under which key. Values are JSON: an operator may have to read them one day.

use std::collections::BTreeMap;

use globset::Glob;
use postern_access::{Lock, Role};
use postern_idtoken::Admit;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::kv::{Entry, KvError, KvExt, SharedKv, Snapshot};

/// Something stored under keys that begin with [`Record::PREFIX`].
pub trait Record: Serialize + DeserializeOwned {
    const PREFIX: &'static str;

    fn encode(&self) -> Vec<u8> {
        // Our own types without maps of odd keys: serialising them cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// A record with the revision that a transaction may expect.
#[derive(Debug, Clone)]
pub struct At<T> {
    pub value: T,
    pub revision: u64,
}

pub fn decode<T: Record>(entry: &Entry) -> Result<At<T>, KvError> {
    let value = serde_json::from_slice(&entry.value).map_err(|e| KvError::Corrupt {
        key: entry.key.clone(),
        why: e.to_string(),
    })?;
    Ok(At {
        value,
        revision: entry.revision,
    })
}

pub async fn load<T: Record>(kv: &SharedKv, key: &str) -> Result<Option<At<T>>, KvError> {
    kv.get(key).await?.as_ref().map(decode).transpose()
}

/// All records of a type, by key. One that is unreadable is left out, loudly: it must not hide the others.
pub async fn all<T: Record>(kv: &SharedKv) -> Result<Vec<At<T>>, KvError> {
    Ok(readable(&kv.range(vec![T::PREFIX.to_owned()]).await?))
}

fn readable<T: Record>(snapshot: &Snapshot) -> Vec<At<T>> {
    let mut records = Vec::with_capacity(snapshot.entries.len());
    for entry in &snapshot.entries {
        match decode(entry) {
            Ok(record) => records.push(record),
            Err(e) => tracing::error!("{e}"),
        }
    }
    records
}

/// `/token/<id>`. The key expires some time after the token, so that a late join still hears "expired".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Hex digits of a secret token; of all others, the name an operator gave.
    pub id: String,
    #[serde(flatten)]
    pub method: Method,
    pub kinds: Vec<String>,
    /// Names or globs; empty: any name that nobody owns.
    pub names: Vec<String>,
    pub created_unix: i64,
    /// `None`: never.
    pub expires_unix: Option<i64>,
    /// `None`: unlimited.
    pub uses: Option<u32>,
    pub used: u32,
}

/// What a host has to show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// The token's secret; stored is its SHA-256, hex.
    #[serde(rename = "hash")]
    Secret(String),
    IdToken(IdTokenMethod),
    BoundKeypair(BoundKeypair),
}

/// An ID token of another party's issuer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdTokenMethod {
    /// The word that the operator used: `oidc`, `github`, `gitlab`, `kubernetes`.
    pub preset: String,
    pub issuer: String,
    pub audiences: Vec<String>,
    pub admit: Admit,
    pub keys: KeySource,
}

/// Where an issuer's public keys come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeySource {
    /// This JWK set.
    Static(String),
    /// The issuer's own HTTPS, checked by these CAs (PEM); empty: those of the system.
    Discovered { ca_pem: String },
}

/// A key pair that outlives the host's data directory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BoundKeypair {
    /// Ed25519, 32 bytes in hex; `None` until a host has registered its own.
    pub public_key: Option<String>,
    /// SHA-256 of the secret by which a key is registered, hex; gone once it was used.
    pub registration: Option<Code>,
    /// The host that joined with it last. One key, one host.
    pub host_id: Option<String>,
    /// Those before it, which it does not serve again.
    #[serde(default)]
    pub former: Vec<String>,
}

impl Token {
    pub fn key(id: &str) -> String {
        format!("/token/{id}")
    }

    /// How people call it: `pt_3f9a01c2`, or the name it was given.
    pub fn label(&self) -> String {
        match self.method {
            Method::Secret(_) => format!("pt_{}", self.id),
            _ => self.id.clone(),
        }
    }

    /// The word of `--method` and of `join_params`.
    pub fn method_word(&self) -> &str {
        match &self.method {
            Method::Secret(_) => "token",
            Method::IdToken(m) => &m.preset,
            Method::BoundKeypair(_) => "bound_keypair",
        }
    }
}

/// `/idtoken/<fingerprint>`, until the ID token has expired: who has joined with it. It is good for that host alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownIdToken {
    pub host_id: String,
}

impl ShownIdToken {
    pub fn key(fingerprint: &str) -> String {
        format!("/idtoken/{fingerprint}")
    }
}

/// `/user/<name>`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub name: String,
    pub roles: Vec<String>,
    #[serde(default)]
    pub traits: BTreeMap<String, Vec<String>>,
    /// argon2id, PHC string; `None` until enrolled.
    pub password: Option<String>,
    /// The enrolment code that is out, if any.
    pub code: Option<Code>,
    pub created_unix: i64,
    /// The latest expiry of any certificate of this user.
    #[serde(default)]
    pub not_after_unix: i64,
}

/// A one-time code: SHA-256 in hex (it is random, so that a plain hash is right).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Code {
    pub hash: String,
    pub expires_unix: i64,
}

impl User {
    pub fn key(name: &str) -> String {
        format!("/user/{name}")
    }
}

/// What one token let a host do. Kept apart per token: the union of kinds with the union of names would be wider
/// than what anybody granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub kinds: Vec<String>,
    pub names: Vec<String>,
    /// [`Token::id`]
    pub token: String,
}

impl Grant {
    pub fn covers_kind(&self, kind: &str) -> bool {
        self.kinds.iter().any(|k| k == kind)
    }

    /// Whether `name` is among the listed names and globs: what allows sharing a name with another host.
    pub fn lists(&self, kind: &str, name: &str) -> bool {
        self.covers_kind(kind) && self.names.iter().any(|p| glob_matches(p, name))
    }

    pub fn covers(&self, kind: &str, name: &str) -> bool {
        self.covers_kind(kind) && (self.names.is_empty() || self.lists(kind, name))
    }
}

fn glob_matches(pattern: &str, name: &str) -> bool {
    pattern == name || Glob::new(pattern).is_ok_and(|g| g.compile_matcher().is_match(name))
}

/// `/host/<host_id>`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Host {
    pub host_id: String,
    pub grants: Vec<Grant>,
    /// The latest expiry of any certificate of this host: the rejoin window counts from here.
    pub not_after_unix: i64,
    pub created_unix: i64,
}

impl Host {
    pub fn key(host_id: &str) -> String {
        format!("/host/{host_id}")
    }
}

/// `/agent/<host_id>/<service>`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    pub host_id: String,
    pub service: String,
    pub kind: String,
    pub names: Vec<String>,
    pub generation: u64,
    /// Of the last answered join (hex), what it asked for, and the answer (encoded, hex, without the trust
    /// bundle): a host that crashed before it read the answer asks again and gets the same.
    pub nonce: String,
    pub asked: String,
    pub answer: String,
    pub not_after_unix: i64,
    pub joined_unix: i64,
    pub version: String,
}

impl Agent {
    pub fn key(host_id: &str, service: &str) -> String {
        format!("/agent/{host_id}/{service}")
    }

    /// All services of a host.
    pub fn prefix(host_id: &str) -> String {
        format!("/agent/{host_id}/")
    }
}

/// `/resource/<kind>/<name>`: who serves a name. The first is the owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    pub kind: String,
    pub name: String,
    pub holders: Vec<Holder>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub host_id: String,
    pub service: String,
}

impl Resource {
    pub fn key(kind: &str, name: &str) -> String {
        format!("/resource/{kind}/{name}")
    }

    pub fn held_by(&self, host_id: &str) -> bool {
        self.holders.iter().any(|h| h.host_id == host_id)
    }
}

/// `/inventory/<host_id>/<service>`: what a service announced last. When it was last heard of is kept in memory:
/// an fsync per heartbeat would buy nothing.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Announced {
    pub host_id: String,
    pub service: String,
    pub kind: String,
    pub hostname: String,
    pub version: String,
    pub plugin: String,
    /// Of a proxy: what users dial.
    #[serde(default)]
    pub public_addr: String,
    pub resources: Vec<AnnouncedResource>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AnnouncedResource {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub direct: bool,
}

impl Announced {
    pub fn key(host_id: &str, service: &str) -> String {
        format!("/inventory/{host_id}/{service}")
    }
}

/// `/role/<name>`
pub fn role_key(name: &str) -> String {
    format!("{}{name}", Role::PREFIX)
}

/// `/lock/<target>`
pub fn lock_key(target: &str) -> String {
    format!("{}{target}", Lock::PREFIX)
}

pub fn lock_host(host_id: &str) -> String {
    format!("host:{host_id}")
}

pub fn lock_service(host_id: &str, service: &str) -> String {
    format!("service:{host_id}/{service}")
}

pub fn lock_user(name: &str) -> String {
    format!("user:{name}")
}

impl Record for Token {
    const PREFIX: &'static str = "/token/";
}
impl Record for ShownIdToken {
    const PREFIX: &'static str = "/idtoken/";
}
impl Record for User {
    const PREFIX: &'static str = "/user/";
}
impl Record for Host {
    const PREFIX: &'static str = "/host/";
}
impl Record for Agent {
    const PREFIX: &'static str = "/agent/";
}
impl Record for Resource {
    const PREFIX: &'static str = "/resource/";
}
impl Record for Announced {
    const PREFIX: &'static str = "/inventory/";
}
impl Record for Role {
    const PREFIX: &'static str = "/role/";
}
impl Record for Lock {
    const PREFIX: &'static str = "/lock/";
}
