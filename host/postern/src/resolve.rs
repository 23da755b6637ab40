//! From what a person types (`web-1`, `web-1.ssh`, `web-1.ssh.demo`) to a resource.

use crate::{
    failure::Failure,
    profile::{Home, Profile},
    rpc,
};
use postern_api::v1::{ListResourcesRequest, ResourceView, user_service_client::UserServiceClient};
use postern_identity::{ResourceId, check_label};

/// A name as typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// Name and kind are known: nothing to look up.
    Full(ResourceId),
    /// A bare name, of any kind.
    Bare(String),
}

/// Reads NAME, NAME.KIND or NAME.KIND.CLUSTER.
pub fn parse(text: &str, cluster: &str) -> Result<Named, Failure> {
    let text = text.trim_end_matches('.');
    if let Some(id) = ResourceId::from_dns(text, cluster) {
        return Ok(Named::Full(id));
    }
    match text.split('.').collect::<Vec<_>>().as_slice() {
        [name] => check_label("resource name", name)
            .map(|()| Named::Bare((*name).to_owned()))
            .map_err(Failure::from),
        [name, kind] => Ok(Named::Full(ResourceId::new(kind, name)?)),
        _ => Err(Failure::usage(format!(
            "{text:?} names nothing in cluster {cluster}; write NAME, NAME.KIND or NAME.KIND.{cluster}"
        ))),
    }
}

/// The resource, asking Auth where only a bare name is given.
pub async fn resolve(text: &str, home: &Home, profile: &Profile) -> Result<ResourceId, Failure> {
    match parse(text, &profile.cluster)? {
        Named::Full(id) => Ok(id),
        Named::Bare(name) => {
            let mut client = UserServiceClient::new(rpc::user_channel(home, profile)?);
            let list = rpc::call(
                &rpc::via(&profile.proxy),
                client.list_resources(ListResourcesRequest::default()),
            )
            .await?;
            pick(&name, &list.resources)
        }
    }
}

/// The one resource of that name.
fn pick(name: &str, resources: &[ResourceView]) -> Result<ResourceId, Failure> {
    let mut kinds: Vec<&str> = resources
        .iter()
        .filter(|r| r.name == name)
        .map(|r| r.kind.as_str())
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    match kinds.as_slice() {
        [kind] => Ok(ResourceId::new(kind, name)?),
        [] => Err(Failure::new(format!(
            "there is no resource {name:?} that you may reach; see: postern ls"
        ))),
        several => {
            let names: Vec<String> = several
                .iter()
                .map(|kind| format!("{name}.{kind}"))
                .collect();
            Err(Failure::new(format!(
                "{name:?} names several resources: {}; say which",
                names.join(", ")
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(kind: &str, name: &str) -> ResourceId {
        ResourceId {
            kind: kind.into(),
            name: name.into(),
        }
    }
    fn view(kind: &str, name: &str) -> ResourceView {
        ResourceView {
            kind: kind.into(),
            name: name.into(),
            ..Default::default()
        }
    }

    #[test]
    fn three_ways_to_write_a_name() {
        assert_eq!(parse("web-1", "demo"), Ok(Named::Bare("web-1".into())));
        assert_eq!(
            parse("web-1.ssh", "demo"),
            Ok(Named::Full(id("ssh", "web-1")))
        );
        assert_eq!(
            parse("web-1.ssh.demo", "demo"),
            Ok(Named::Full(id("ssh", "web-1")))
        );
        assert_eq!(
            parse("web-1.ssh.eu.example.com.", "eu.example.com"),
            Ok(Named::Full(id("ssh", "web-1")))
        );
    }

    #[test]
    fn another_cluster_and_bad_names_are_refused() {
        let e = parse("web-1.ssh.other", "demo").unwrap_err();
        assert_eq!(
            (e.to_string().as_str(), e.code()),
            (
                "\"web-1.ssh.other\" names nothing in cluster demo; write NAME, NAME.KIND or NAME.KIND.demo",
                2
            )
        );
        for bad in ["", "Web_1", "-x", "web-1..demo", "a b.ssh"] {
            assert!(parse(bad, "demo").is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_bare_name_has_to_be_unique() {
        let all = [
            view("ssh", "web-1"),
            view("tcp", "orders"),
            view("ssh", "orders"),
            view("ssh", "orders"),
        ];
        assert_eq!(pick("web-1", &all), Ok(id("ssh", "web-1")));
        assert_eq!(
            pick("orders", &all).unwrap_err().to_string(),
            "\"orders\" names several resources: orders.ssh, orders.tcp; say which"
        );
        assert_eq!(
            pick("db", &all).unwrap_err().to_string(),
            "there is no resource \"db\" that you may reach; see: postern ls"
        );
    }
}
