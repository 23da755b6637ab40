//! Roles as they are stored and typed, and what makes one acceptable.

use crate::pattern;
use std::collections::BTreeMap;

/// Values per label or principal type in one rule; more is a list that belongs elsewhere.
const MAX_VALUES: usize = 256;
/// Principal types of kinds that are built in. A misspelt one in a deny rule would deny nothing, so
/// it is refused. Kinds of third parties declare theirs in their plugin.
const BUILT_IN: [(&str, &[&str]); 2] = [
    ("ssh", &["logins"]),
    (
        "postgres",
        &[ACCOUNTS, "db_names", "db_options", ACCOUNT_ROLES],
    ),
];
/// Accounts at a database server.
pub(crate) const ACCOUNTS: &str = "db_users";
/// Roles of the server that an account gets which is made for a user.
pub(crate) const ACCOUNT_ROLES: &str = "db_roles";

/// A named set of allow and deny rules, per kind. The kind `*` stands for every kind.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    /// A DNS label.
    pub name: String,
    /// What the role allows. A rule without labels allows nothing.
    #[serde(default)]
    pub allow: BTreeMap<String, Rule>,
    /// What the role denies, whatever any role allows. Without labels: everywhere in the kind. Without
    /// principals: the whole resource.
    #[serde(default)]
    pub deny: BTreeMap<String, Rule>,
    /// What holds for sessions under this role.
    #[serde(default)]
    pub options: Options,
}

/// One kind's rule. JSON: `{"labels": {"env": ["prod","^st"]}, "logins": ["root"]}`: every key but
/// `labels` names a principal type.
///
/// Values are exact, `*` (anything), globs (`*` and `?`), or, when they start with `^`, regular
/// expressions. All labels must match; of one label's or principal's values, one. The label `*` stands for any
/// label, and `{"*": ["*"]}` for every resource. `{{internal.logins}}` (or `{{external.…}}`) becomes the values of that trait of
/// the user, taken literally.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Rule {
    /// Label name → values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Vec<String>>,
    /// Principal type → values.
    #[serde(flatten)]
    pub principals: BTreeMap<String, Vec<String>>,
}

/// What holds for sessions under a role.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Seconds; how long a login's certificates live at most.
    pub max_session_ttl_secs: u64,
    /// Whether SSH sessions may forward ports.
    pub port_forwarding: bool,
    /// What happens to a session whose record falls behind.
    #[serde(skip_serializing_if = "is_default")]
    pub recording: Recording,
    /// Whether the parameters of queries are recorded beside their text.
    #[serde(skip_serializing_if = "is_default")]
    pub record_parameters: bool,
    /// Whether database servers get an account for the user, called like the user, for as long as there are sessions. The role
    /// then allows that account, besides what its `db_users` allow.
    #[serde(skip_serializing_if = "is_default")]
    pub create_db_user: Option<AfterSession>,
}

/// What becomes of an account that was made for a user, when the last session has ended. Where roles differ: the later one here.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum AfterSession {
    /// It stays, without roles and without a login.
    Keep,
    /// It is removed.
    Drop,
}

/// How what a session does is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recording {
    /// In order and completely; it may be under way while what it tells of runs. What can't be written ends the session.
    #[default]
    BestEffort,
    /// Nothing runs before it is on disk.
    Strict,
}

/// What a role says where it says nothing is not written: hosts of earlier versions can't read it.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Default for Options {
    fn default() -> Self {
        Options {
            max_session_ttl_secs: 12 * 3600,
            port_forwarding: true,
            recording: Recording::BestEffort,
            record_parameters: false,
            create_db_user: None,
        }
    }
}

/// Why a role is refused when it is created.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("role {role:?}: {what}")]
pub struct RoleError {
    /// The role's name.
    pub role: String,
    /// Which part of it is wrong, and why.
    pub what: String,
}

/// Locks stop users and hosts at once, everywhere. target: `user:alice`, `host:<host_id>`,
/// `service:<host_id>/<service>`
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Lock {
    /// Whom it stops.
    pub target: String,
    /// Shown to whoever is stopped.
    pub reason: String,
    /// Seconds since 1970 after which it no longer holds; none = until removed.
    #[serde(default)]
    pub expires_unix: Option<u64>,
}

impl Lock {
    /// Whether it holds at that time (seconds since 1970).
    pub fn holds_at(&self, now_unix: u64) -> bool {
        self.expires_unix.is_none_or(|expires| now_unix < expires)
    }
}

impl Role {
    /// Patterns compile, names are labels; the error says which part is wrong.
    pub fn validate(&self) -> Result<(), RoleError> {
        self.check().map_err(|what| RoleError {
            role: self.name.clone(),
            what,
        })
    }

    fn check(&self) -> Result<(), String> {
        if !is_label(&self.name) {
            return Err(format!("the name {:?} {LABEL_RULE}", self.name));
        }
        if self.options.max_session_ttl_secs == 0 {
            return Err("options: max_session_ttl_secs is 0, so nobody could log in".into());
        }
        for (side, rules) in [("allow", &self.allow), ("deny", &self.deny)] {
            for (kind, rule) in rules {
                rule.check(kind)
                    .map_err(|what| format!("{side} {kind:?}: {what}"))?;
                let roles = rule.principals.get(ACCOUNT_ROLES).into_iter().flatten();
                for role in roles.filter(|_| side == "allow") {
                    pattern::check_value(role).map_err(|what| {
                        format!("allow {kind:?}: \"{ACCOUNT_ROLES}\": {role:?} {what}")
                    })?;
                }
                if side == "allow" && rule.labels.is_empty() {
                    return Err(format!(
                        "allow {kind:?}: without labels it allows nothing; for every resource write \"labels\": {{\"*\": [\"*\"]}}"
                    ));
                }
            }
        }
        Ok(())
    }
}

const LABEL_RULE: &str =
    "is no DNS label: 1 to 63 of a-z, 0-9 and -, neither starting nor ending with -";

impl Rule {
    fn check(&self, kind: &str) -> Result<(), String> {
        if kind != "*" && !is_label(kind) {
            return Err(format!("the kind {kind:?} {LABEL_RULE}"));
        }
        for (label, values) in &self.labels {
            if label.is_empty() {
                return Err("a label has no name".into());
            }
            check_values(&format!("label {label:?}"), values)?;
        }
        for (principal, values) in &self.principals {
            let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
            if principal.is_empty() || principal.len() > 63 || !principal.bytes().all(word) {
                return Err(format!(
                    "the principal type {principal:?} is not 1 to 63 of a-z, 0-9 and _"
                ));
            }
            let known = BUILT_IN
                .iter()
                .find(|(built_in, _)| *built_in == kind)
                .map(|(_, p)| *p);
            if let Some(known) = known.filter(|known| !known.contains(&principal.as_str())) {
                return Err(format!(
                    "{kind} has no principals {principal:?}; it has: {}",
                    known.join(", ")
                ));
            }
            check_values(&format!("{principal:?}"), values)?;
        }
        Ok(())
    }
}

fn check_values(what: &str, values: &[String]) -> Result<(), String> {
    if values.is_empty() {
        return Err(format!(
            "{what} has no values; leave it out, or write [\"*\"] for any"
        ));
    }
    if values.len() > MAX_VALUES {
        return Err(format!(
            "{what} has {} values; at most {MAX_VALUES} are allowed",
            values.len()
        ));
    }
    values.iter().try_for_each(|value| {
        pattern::check(value).map_err(|why| format!("{what}: {value:?} {why}"))
    })
}

fn is_label(value: &str) -> bool {
    (1..=63).contains(&value.len())
        && value
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !value.starts_with('-')
        && !value.ends_with('-')
}
