//! RBAC: roles, labels, principals, and the one decision function (no I/O).
//!
//! Default deny; deny wins; one role must allow everything that is asked (labels and every principal).
use std::collections::BTreeMap;

/// A named set of allow and deny rules, per kind.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role { pub name: String, #[serde(default)] pub allow: BTreeMap<String, Rule>, #[serde(default)] pub deny: BTreeMap<String, Rule>, #[serde(default)] pub options: Options }
/// One kind's rule. JSON: `{"labels": {"env": ["prod","^st"]}, "logins": ["root"]}`: every key but `labels` names a principal type.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Rule { #[serde(default)] pub labels: BTreeMap<String, Vec<String>>, #[serde(flatten)] pub principals: BTreeMap<String, Vec<String>> }
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options { /** seconds; how long a login's certificates live at most */ pub max_session_ttl_secs: u64, pub port_forwarding: bool }
impl Default for Options { fn default() -> Self { Options { max_session_ttl_secs: 12 * 3600, port_forwarding: true } } }

/// Who asks.
#[derive(Debug, Clone)]
pub struct Subject<'a> { pub user: &'a str, pub roles: &'a [Role], pub traits: &'a BTreeMap<String, Vec<String>> }
/// What is asked for.
#[derive(Debug, Clone)]
pub struct Target<'a> { pub kind: &'a str, pub name: &'a str, pub labels: &'a BTreeMap<String, String> }
/// The answer, worded for the person who is refused and for the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision { Allow { role: String }, Deny { reason: String } }

/// `asked`: (principal type, value) pairs, e.g. ("logins", "root"). Empty = may the user see this resource at all.
pub fn decide(who: &Subject<'_>, target: &Target<'_>, asked: &[(&str, &str)]) -> Decision { todo!() }
/// All literal values of one principal type that the subject's roles allow on the kind (for SSH certificate principals and `postern ls`); templates expanded, denied ones removed.
pub fn allowed_principals(who: &Subject<'_>, kind: &str, principal: &str) -> Vec<String> { todo!() }
/// Whether any of the roles that allow this target permits port forwarding, and none of them forbids it.
pub fn may_forward(who: &Subject<'_>, target: &Target<'_>) -> bool { todo!() }
/// The shortest of the roles' `max_session_ttl_secs`.
pub fn session_ttl_secs(roles: &[Role]) -> u64 { todo!() }
impl Role { /** Patterns compile, names are labels; the error says which. */ pub fn validate(&self) -> Result<(), RoleError> { todo!() } }
#[derive(Debug, Clone, thiserror::Error)]
#[error("role {role:?}: {what}")]
pub struct RoleError { pub role: String, pub what: String }

/// Locks stop users and hosts at once, everywhere. target: "user:alice", "host:<host_id>", "service:<host_id>/<service>"
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Lock { pub target: String, pub reason: String, #[serde(default)] pub expires_unix: Option<u64> }
