//! Names: clusters, kinds, resources, and the DNS names made of them.

/// A name that is not acceptable, with the rule it breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} {rule}")]
pub struct NameError { pub what: &'static str, pub value: String, pub rule: &'static str }

/// Checks a DNS label (RFC 1035): 1–63 of `a-z 0-9 -`, not starting or ending with `-`.
pub fn check_label(what: &'static str, value: &str) -> Result<(), NameError> { todo!() }
/// A cluster name: DNS labels joined by dots, at most 200 bytes.
pub fn check_cluster_name(value: &str) -> Result<(), NameError> { todo!() }

/// What a user reaches: name and kind, both DNS labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct ResourceId { pub kind: String, pub name: String }
impl ResourceId {
    pub fn new(kind: &str, name: &str) -> Result<Self, NameError> { todo!() }
    /// `<name>.<kind>.<cluster>`
    pub fn dns(&self, cluster: &str) -> String { todo!() }
    /// The inverse of [`ResourceId::dns`]; `None` if `dns` is not a resource of this cluster.
    pub fn from_dns(dns: &str, cluster: &str) -> Option<Self> { todo!() }
}
/// `auth.<cluster>`
pub fn auth_dns(cluster: &str) -> String { todo!() }
/// `proxy.<cluster>`: the name of the Proxy Service inside the cluster (tunnels, helper path).
pub fn proxy_dns(cluster: &str) -> String { todo!() }
/// `spiffe://<cluster>/user/<name>`
pub fn spiffe_user(cluster: &str, user: &str) -> String { todo!() }
