//! RBAC: roles, labels, principals, and the one decision function (no I/O).
//!
//! Default deny; deny wins; one role must allow everything that is asked (labels and every
//! principal). What can't be understood never allows and always denies.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod compiled;
mod pattern;
mod role;
#[cfg(test)]
mod tests;

pub use compiled::Compiled;
pub use role::{AfterSession, Lock, Options, Recording, Role, RoleError, Rule};

use std::collections::BTreeMap;

/// Who asks.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    /// The user's name, for the reasons.
    pub user: &'a str,
    /// The roles that the user has; a name without a role behind it is left out by the caller.
    pub roles: &'a [Role],
    /// What templates expand to, e.g. `logins` → `["alice"]`.
    pub traits: &'a BTreeMap<String, Vec<String>>,
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Target<'a> {
    /// The resource's kind, e.g. `ssh`.
    pub kind: &'a str,
    /// The resource's name.
    pub name: &'a str,
    /// The resource's labels, as the agent's configuration has them.
    pub labels: &'a BTreeMap<String, String>,
}

/// The answer, worded for the person who is refused and for the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Every question is allowed.
    Allow {
        /// The role that allows it; where several do, the first by name.
        role: String,
    },
    /// Something is not allowed, or denied.
    Deny {
        /// What is missing, or which role denies it.
        reason: String,
    },
}

impl Decision {
    /// Whether this is [`Decision::Allow`].
    pub fn is_allow(&self) -> bool {
        matches!(self, Decision::Allow { .. })
    }
}

/// `asked`: (principal type, value) pairs, e.g. `("logins", "root")`. Empty = may the user see
/// this resource at all. For many decisions about one subject, keep a [`Compiled`].
pub fn decide(who: &Subject<'_>, target: &Target<'_>, asked: &[(&str, &str)]) -> Decision {
    Compiled::for_kind(who, target.kind).decide(target, asked)
}

/// All literal values of one principal type that the subject's roles allow on the kind, sorted
/// (for SSH certificate principals and `postern ls`). Templates are expanded; values that are denied
/// everywhere are left out; patterns are not values. The decision at the agent is still [`decide`].
pub fn allowed_principals(who: &Subject<'_>, kind: &str, principal: &str) -> Vec<String> {
    Compiled::for_kind(who, kind).allowed_principals(kind, principal)
}

/// Whether the roles that allow this target permit port forwarding: at least one allows the
/// target, and none of those that do forbids forwarding.
pub fn may_forward(who: &Subject<'_>, target: &Target<'_>) -> bool {
    Compiled::for_kind(who, target.kind).may_forward(target)
}

/// How a session is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recorded {
    /// Nothing runs before it is on disk.
    pub strict: bool,
    /// Parameters of queries are kept.
    pub parameters: bool,
}

/// How a session is recorded that was allowed: as strictly as any of the roles wants it that allow it, and with parameters
/// where any of them does.
pub fn recorded(who: &Subject<'_>, target: &Target<'_>, asked: &[(&str, &str)]) -> Recorded {
    Compiled::for_kind(who, target.kind).recorded(target, asked)
}

/// An account of the user's own name, which a session wants to have made at a database server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Automatic {
    /// The server's roles that it gets: sorted, each once.
    pub roles: Vec<String>,
    pub afterwards: AfterSession,
    /// Some role allows an account of this name without wanting to have it made.
    pub named: bool,
}

/// The account that is made for a session which was allowed, where it wants the user's own and a role says
/// `create_db_user`. It gets what the `db_roles` of all roles say that allow the session, but nothing that a deny rule names.
pub fn automatic(
    who: &Subject<'_>,
    target: &Target<'_>,
    asked: &[(&str, &str)],
) -> Option<Automatic> {
    Compiled::for_kind(who, target.kind).automatic(target, asked)
}

/// The shortest of the roles' `max_session_ttl_secs`; the default where there are no roles.
pub fn session_ttl_secs(roles: &[Role]) -> u64 {
    let shortest = roles
        .iter()
        .map(|role| role.options.max_session_ttl_secs)
        .min();
    shortest.unwrap_or_else(|| Options::default().max_session_ttl_secs)
}
