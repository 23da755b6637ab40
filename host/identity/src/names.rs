//! Names: clusters, kinds, resources, users, and the DNS names and URIs made of them.

/// A name that is not acceptable, with the rule it breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} {rule}")]
pub struct NameError {
    /// What the name is for, e.g. `"resource name"`.
    pub what: &'static str,
    /// The name as given.
    pub value: String,
    /// The rule it breaks, as the rest of a sentence.
    pub rule: &'static str,
}

/// Kinds that no plugin may take: their DNS names belong to the cluster itself.
const RESERVED_KINDS: [&str; 3] = ["auth", "proxy", "web"];
/// A cluster name leaves room for `<name>.<kind>.` within the 253 bytes of a DNS name.
const MAX_CLUSTER: usize = 200;
/// Longest DNS name in text form (RFC 1035).
const MAX_DNS: usize = 253;
const MAX_USER: usize = 64;

fn err<T>(what: &'static str, value: &str, rule: &'static str) -> Result<T, NameError> {
    // What came over the network may be long; an error message must not be.
    let mut value = value.to_owned();
    if let Some((cut, _)) = value.char_indices().nth(80) {
        value.truncate(cut);
        value.push('…');
    }
    Err(NameError { what, value, rule })
}

/// Checks a DNS label (RFC 1035): 1–63 of `a-z 0-9 -`, not starting or ending with `-`.
pub fn check_label(what: &'static str, value: &str) -> Result<(), NameError> {
    if value.is_empty() || value.len() > 63 {
        return err(what, value, "must have 1 to 63 characters");
    }
    if !value
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    {
        return err(
            what,
            value,
            "may only contain lower-case letters, digits and '-'",
        );
    }
    if value.starts_with('-') || value.ends_with('-') {
        return err(what, value, "must not start or end with '-'");
    }
    Ok(())
}

/// A cluster name: DNS labels joined by dots, at most 200 bytes.
pub fn check_cluster_name(value: &str) -> Result<(), NameError> {
    if value.len() > MAX_CLUSTER {
        return err("cluster name", value, "must not be longer than 200 bytes");
    }
    value
        .split('.')
        .try_for_each(|label| check_label("cluster name", label))
        .or_else(|e| err("cluster name", value, e.rule))
}

/// A DNS name in text form, lower case, without a trailing dot.
pub fn check_dns_name(what: &'static str, value: &str) -> Result<(), NameError> {
    if value.len() > MAX_DNS {
        return err(what, value, "must not be longer than 253 bytes");
    }
    value
        .split('.')
        .try_for_each(|label| check_label(what, label))
        .or_else(|e| err(what, value, e.rule))
}

/// Where something listens: a DNS name as [`check_dns_name`] wants it, or an IP address.
pub(crate) fn check_dns_or_ip(what: &'static str, value: &str) -> Result<(), NameError> {
    match value.parse::<std::net::IpAddr>() {
        Ok(_) => Ok(()),
        Err(_) => check_dns_name(what, value),
    }
}

/// A user name: 1–64 of `a-z A-Z 0-9 . _ @ + -`, starting with a letter, a digit or `_`.
/// All of them stand unescaped in a URI path, so that the SAN of a certificate has one spelling.
pub fn check_user_name(value: &str) -> Result<(), NameError> {
    if value.is_empty() || value.len() > MAX_USER {
        return err("user name", value, "must have 1 to 64 characters");
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if !value.bytes().all(|b| plain(b) || b".@+-".contains(&b)) {
        return err(
            "user name",
            value,
            "may only contain letters, digits and . _ @ + -",
        );
    }
    if !value.bytes().next().is_some_and(plain) {
        return err(
            "user name",
            value,
            "must start with a letter, a digit or '_'",
        );
    }
    Ok(())
}

/// A host id as [`crate::host_id_of`] makes it: 32 lower-case hexadecimal digits.
pub fn check_host_id(value: &str) -> Result<(), NameError> {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if value.len() != 32 || !value.bytes().all(hex) {
        return err("host id", value, "must be 32 lower-case hexadecimal digits");
    }
    Ok(())
}

/// What a user reaches: name and kind, both DNS labels.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct ResourceId {
    /// What serves it: `ssh`, `tcp`, `postgres`, …
    pub kind: String,
    /// Its name, unique per kind in the cluster.
    pub name: String,
}

impl ResourceId {
    /// Checks both; `auth`, `proxy` and `web` are no kinds of a resource.
    pub fn new(kind: &str, name: &str) -> Result<Self, NameError> {
        check_label("kind", kind)?;
        if RESERVED_KINDS.contains(&kind) {
            return err("kind", kind, "is reserved (auth, proxy and web are)");
        }
        check_label("resource name", name)?;
        Ok(Self {
            kind: kind.into(),
            name: name.into(),
        })
    }

    /// `<name>.<kind>.<cluster>`
    pub fn dns(&self, cluster: &str) -> String {
        format!("{}.{}.{cluster}", self.name, self.kind)
    }

    /// The inverse of [`ResourceId::dns`], upper case folded as DNS does; `None` if `dns`
    /// is not a resource of this cluster.
    pub fn from_dns(dns: &str, cluster: &str) -> Option<Self> {
        if dns.len() > MAX_DNS {
            return None;
        }
        let dns = dns.to_ascii_lowercase();
        let front = dns.strip_suffix(cluster)?.strip_suffix('.')?;
        let (name, kind) = front.split_once('.')?;
        Self::new(kind, name).ok()
    }
}

impl std::fmt::Display for ResourceId {
    /// `<kind>/<name>`, for messages and logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

/// `auth.<cluster>`
pub fn auth_dns(cluster: &str) -> String {
    format!("auth.{cluster}")
}

/// `proxy.<cluster>`: the name of the Proxy Service inside the cluster (tunnels, helper path).
pub fn proxy_dns(cluster: &str) -> String {
    format!("proxy.{cluster}")
}

/// `spiffe://<cluster>/user/<name>`
pub fn spiffe_user(cluster: &str, user: &str) -> String {
    format!("spiffe://{cluster}/user/{user}")
}

/// `spiffe://<cluster>/agent/<host_id>/<service>`
pub fn spiffe_agent(cluster: &str, host_id: &str, service: &str) -> String {
    format!("spiffe://{cluster}/agent/{host_id}/{service}")
}

#[cfg(test)]
mod tests;
