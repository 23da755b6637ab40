//! `postern agents`

use crate::admin::{self, AdminArgs, Common, Kind, Object};
use crate::cli::Global;
use crate::failure::Failure;
use clap::{Args, Subcommand};
use serde_json::Value;

/// Agents that joined: hosts, their services, and whether they are alive (on the Auth host)
///
/// An agent is named HOST_ID/SERVICE. Removing one revokes it at once; HOST_ID alone removes all services of the
/// host and its grant. It comes back with a new token, once the lock that the removal left is lifted: postern locks rm host:HOST_ID.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  postern agents ls\n  postern agents get 9f86d081884c7d65/ssh\n  postern agents rm 9f86d081884c7d65"
)]
pub struct AgentsArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Common(Common),
}

const KIND: Kind = Kind {
    word: "agent",
    head: &[
        "AGENT",
        "HOST",
        "KIND",
        "RESOURCES",
        "STATE",
        "SEEN",
        "RTT",
        "VERSION",
    ],
    row,
    none: "No agent has joined. Make a token with: postern tokens create --kinds ssh",
    removed: "removed and revoked",
};

fn row(agent: &Object) -> Vec<String> {
    let rtt = agent
        .value
        .get("tunnel_rtt_ms")
        .and_then(Value::as_f64)
        .filter(|ms| *ms > 0.0)
        .map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"));
    vec![
        agent.name.clone(),
        agent.text("hostname"),
        agent.text("kind"),
        resources(agent),
        state(agent),
        agent.time("last_seen"),
        rtt,
        agent.text("version"),
    ]
}

fn resources(agent: &Object) -> String {
    let names: Vec<String> = ["resources", "names"]
        .iter()
        .find_map(|key| {
            agent
                .value
                .get(key)
                .and_then(Value::as_array)
                .filter(|a| !a.is_empty())
        })
        .into_iter()
        .flatten()
        .map(|r| r.get("name").map_or_else(|| admin::plain(r), admin::plain))
        .collect();
    if names.is_empty() {
        "-".to_owned()
    } else {
        names.join(", ")
    }
}

fn state(agent: &Object) -> String {
    let has = |key: &str| agent.value.get(key).is_some_and(|v| !v.is_null());
    match agent.value.get("healthy").and_then(Value::as_bool) {
        _ if has("locked") => "locked".to_owned(),
        // What it holds stays in use; `agents get` says why it gets nothing new.
        Some(true) if has("join_failed") => "up, join refused".to_owned(),
        Some(true) => "up".to_owned(),
        _ if has("join_failed") => "join-failed".to_owned(),
        _ => "down".to_owned(),
    }
}

pub async fn run(global: &Global, args: AgentsArgs) -> Result<(), Failure> {
    let Command::Common(common) = args.command;
    admin::common(global.json, &args.admin, &KIND, common).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::out;
    use serde_json::json;

    #[test]
    fn agents_in_the_list() {
        let agent = |name: &str, value| {
            row(&Object {
                name: name.into(),
                value,
                now: 1000,
            })
        };
        let rows = [
            agent(
                "9f86d081/ssh",
                json!({"hostname": "web-1", "kind": "ssh", "resources": [{"name": "web-1", "labels": {}}], "healthy": true, "last_seen": "1970-01-01T00:16:36Z", "locked": null, "tunnel_rtt_ms": 1.234, "version": "0.1.0"}),
            ),
            agent(
                "9f86d081/tcp",
                json!({"hostname": "web-1", "kind": "tcp", "names": ["orders", "billing"], "healthy": false, "last_seen": "1970-01-01T00:06:40Z"}),
            ),
            agent(
                "9f86d081/web",
                json!({"kind": "http", "healthy": false, "last_seen": "1970-01-01T00:06:40Z", "join_failed": "this host's grant does not cover kind \"http\""}),
            ),
        ];
        assert_eq!(
            out::table(KIND.head, rows),
            "\
AGENT         HOST   KIND  RESOURCES        STATE        SEEN        RTT     VERSION
9f86d081/ssh  web-1  ssh   web-1            up           just now    1.2 ms  0.1.0
9f86d081/tcp  web-1  tcp   orders, billing  down         10 min ago  -       -
9f86d081/web  -      http  -                join-failed  10 min ago  -       -
"
        );
    }
}
