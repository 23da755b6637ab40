//! `postern ls`

use crate::cli::Global;
use crate::failure::Failure;
use crate::profile::Home;
use crate::{out, rpc, when};
use clap::Args;
use postern_api::v1::{
    ListResourcesRequest, ResourceView, Unreachable, user_service_client::UserServiceClient,
};
use std::collections::BTreeMap;

/// List what you may reach: servers, databases, clusters
///
/// STATE is `up` where an agent serves the resource now, `degraded` where one of several agents can't reach it, `unreachable` where
/// none can, and `down` where no agent serves it. LOGINS are the names that `postern ssh LOGIN@NAME` takes.
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

/// Lines below the table.
const REMARKS: usize = 20;

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
    out::say(&(table(&list) + &remarks(&list, when::now())))
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
            state(r).to_owned(),
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

fn state(r: &ResourceView) -> &'static str {
    match (r.agents, r.agents_failing) {
        (0, _) => "down",
        (_, 0) => "up",
        (all, failing) if failing < all => "degraded",
        _ => "unreachable",
    }
}

/// What STATE has no room for.
fn remarks(list: &[ResourceView], now: i64) -> String {
    let of = |r: &ResourceView| {
        let Unreachable { reason, since_unix } = r.unreachable.as_ref()?;
        let who = match (r.agents_failing, r.agents) {
            (_, ..=1) => "its agent can't reach it".to_owned(),
            (failing, all) if failing < all => {
                format!("{failing} of {all} agents can't reach it")
            }
            (_, all) => format!("none of {all} agents can reach it"),
        };
        let (at, ago) = (when::local(*since_unix), when::relative(now, *since_unix));
        let line = format!("{}.{}: {who}: {reason}, since {at} ({ago})", r.name, r.kind);
        Some(out::clean(&line) + "\n")
    };
    let all: Vec<String> = list.iter().filter_map(of).collect();
    let (shown, more) = all.split_at(all.len().min(REMARKS));
    match (shown, more.len()) {
        ([], _) => String::new(),
        (shown, 0) => format!("\n{}", shown.concat()),
        (shown, more) => format!("\n{}… and {more} more (--json has them)\n", shown.concat()),
    }
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
    let unreachable = r.unreachable.as_ref().map(
        |u| serde_json::json!({ "reason": u.reason, "since": when::rfc3339(u.since_unix), "agents": r.agents_failing }),
    );
    serde_json::json!({ "kind": r.kind, "name": r.name, "dns": r.dns, "labels": r.labels, "logins": r.logins, "state": state(r), "healthy": r.healthy, "agents": r.agents, "unreachable": unreachable, "direct": r.direct })
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
            |kind: &str, name: &str, agents, logins: &[&str], l: &[(&str, &str)]| ResourceView {
                kind: kind.into(),
                name: name.into(),
                agents,
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
                1,
                &["root", "ubuntu"],
                &[("region", "eu"), ("env", "prod")],
            ),
            view("tcp", "orders", 0, &[], &[]),
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

    #[test]
    fn what_agents_cannot_reach() {
        let view = |name: &str, agents, agents_failing| ResourceView {
            kind: "postgres".into(),
            name: name.into(),
            healthy: agents_failing < agents,
            agents,
            agents_failing,
            unreachable: (agents_failing > 0).then(|| Unreachable {
                reason: "connection refused".into(),
                since_unix: 1000,
            }),
            ..Default::default()
        };
        let list = [
            view("a", 2, 0),
            view("b", 2, 1),
            view("c", 1, 1),
            view("d", 0, 0),
            view("e", 3, 3),
        ];
        assert_eq!(
            list.iter().map(state).collect::<Vec<_>>(),
            ["up", "degraded", "unreachable", "down", "unreachable"]
        );
        let at = when::local(1000);
        assert_eq!(
            remarks(&list, 1180),
            format!(
                "\nb.postgres: 1 of 2 agents can't reach it: connection refused, since {at} (3 min ago)\n\
                 c.postgres: its agent can't reach it: connection refused, since {at} (3 min ago)\n\
                 e.postgres: none of 3 agents can reach it: connection refused, since {at} (3 min ago)\n"
            )
        );
        assert_eq!(remarks(&list[..1], 1180), "");
        let many = vec![view("c", 1, 1); 25];
        assert!(remarks(&many, 1180).ends_with(")\n… and 5 more (--json has them)\n"));
        assert_eq!(
            json(&list[2])["unreachable"],
            serde_json::json!({"reason": "connection refused", "since": "1970-01-01T00:16:40Z", "agents": 1})
        );
        assert!(json(&list[0])["unreachable"].is_null());
    }
}
