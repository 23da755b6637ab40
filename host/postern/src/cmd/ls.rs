//! `postern ls`

use crate::cli::Global;
use crate::failure::Failure;
use crate::profile::Home;
use crate::{out, rpc};
use clap::Args;
use postern_api::v1::{ListResourcesRequest, ResourceView, user_service_client::UserServiceClient};
use std::collections::BTreeMap;

/// List what you may reach: servers, databases, clusters
///
/// STATE is `up` where an agent serves the resource now. LOGINS are the names that `postern ssh LOGIN@NAME` takes.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  postern ls\n  postern ls ssh\n  postern ls ssh env=prod region=eu"
)]
pub struct LsArgs {
    /// A kind (ssh, tcp, …) and labels that must match, in any order
    #[arg(value_name = "KIND | LABEL=VALUE")]
    filter: Vec<String>,
}

impl LsArgs {
    /// As if these words had been typed.
    pub fn of(filter: Vec<String>) -> Self {
        LsArgs { filter }
    }
}

pub async fn run(global: &Global, args: LsArgs) -> Result<(), Failure> {
    let request = filter(&args.filter)?;
    let filtered = request != ListResourcesRequest::default();
    let home = Home::locate(global.home.as_deref())?;
    let profile = home.logged_in()?;
    let mut client = UserServiceClient::new(rpc::user_channel(&home, &profile)?);
    let mut list = rpc::call(&rpc::via(&profile.proxy), client.list_resources(request))
        .await?
        .resources;
    list.sort_by(|a, b| (&a.kind, &a.name).cmp(&(&b.kind, &b.name)));
    if global.json {
        return out::json(&list.iter().map(json).collect::<Vec<_>>());
    }
    if list.is_empty() {
        return out::say(if filtered {
            "Nothing that you may reach matches; see: postern ls"
        } else {
            "There is nothing that you may reach yet: no agent serves anything, or your roles do not allow it (they are shown by: postern status)"
        });
    }
    out::say(&table(&list))
}

fn filter(words: &[String]) -> Result<ListResourcesRequest, Failure> {
    let mut request = ListResourcesRequest::default();
    for word in words {
        match word.split_once('=') {
            Some(("", _)) => {
                return Err(Failure::usage(format!(
                    "{word:?} names no label; write LABEL=VALUE"
                )));
            }
            Some((label, value)) => {
                if request
                    .labels
                    .insert(label.to_owned(), value.to_owned())
                    .is_some()
                {
                    return Err(Failure::usage(format!("label {label:?} is given twice")));
                }
            }
            None if request.kind.is_empty() => {
                postern_identity::check_label("kind", word)?;
                request.kind.clone_from(word);
            }
            None => {
                return Err(Failure::usage(format!(
                    "one kind at most: {:?} or {word:?}; labels are written LABEL=VALUE",
                    request.kind
                )));
            }
        }
    }
    Ok(request)
}

fn table(list: &[ResourceView]) -> String {
    let rows = list.iter().map(|r| {
        let logins = if r.logins.is_empty() {
            "-".to_owned()
        } else {
            r.logins.join(",")
        };
        vec![
            r.kind.clone(),
            r.name.clone(),
            if r.healthy { "up" } else { "down" }.to_owned(),
            logins,
            labels(&r.labels),
            r.dns.clone(),
        ]
    });
    out::table(
        &["KIND", "NAME", "STATE", "LOGINS", "LABELS", "FULL NAME"],
        rows,
    )
}

fn labels(labels: &BTreeMap<String, String>) -> String {
    if labels.is_empty() {
        "-".to_owned()
    } else {
        labels
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect::<Vec<_>>()
            .join(" ")
    }
}

fn json(r: &ResourceView) -> serde_json::Value {
    serde_json::json!({ "kind": r.kind, "name": r.name, "dns": r.dns, "labels": r.labels, "logins": r.logins, "healthy": r.healthy, "agents": r.agents, "direct": r.direct })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Result<ListResourcesRequest, Failure> {
        filter(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn kind_and_labels_in_any_order() {
        let got = words(&["env=prod", "ssh", "expr=a=b"]).unwrap();
        assert_eq!(got.kind, "ssh");
        assert_eq!(labels(&got.labels), "env=prod expr=a=b");
        assert_eq!(
            words(&["ssh", "tcp"]).unwrap_err().to_string(),
            "one kind at most: \"ssh\" or \"tcp\"; labels are written LABEL=VALUE"
        );
        assert!(words(&["=x"]).is_err());
        assert!(words(&["a=1", "a=2"]).is_err());
    }

    #[test]
    fn the_table() {
        let view =
            |kind: &str, name: &str, healthy, logins: &[&str], l: &[(&str, &str)]| ResourceView {
                kind: kind.into(),
                name: name.into(),
                healthy,
                logins: logins.iter().map(|l| (*l).to_owned()).collect(),
                labels: l
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                    .collect(),
                dns: format!("{name}.{kind}.demo"),
                ..Default::default()
            };
        let list = [
            view(
                "ssh",
                "web-1",
                true,
                &["root", "ubuntu"],
                &[("region", "eu"), ("env", "prod")],
            ),
            view("tcp", "orders", false, &[], &[]),
        ];
        assert_eq!(
            table(&list),
            "\
KIND  NAME    STATE  LOGINS       LABELS              FULL NAME
ssh   web-1   up     root,ubuntu  env=prod region=eu  web-1.ssh.demo
tcp   orders  down   -            -                   orders.tcp.demo
"
        );
    }
}
