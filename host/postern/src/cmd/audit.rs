//! `postern audit`

use crate::admin::{self, AdminArgs};
use crate::cli::Global;
use crate::failure::Failure;
use crate::{out, rpc, when};
use clap::Args;
use postern_api::v1::AuditRequest;
use serde_json::{Map, Value};
use std::time::Duration;
use tokio_stream::StreamExt;

/// Show the audit log (on the Auth host)
///
/// One event a line: local time, name, then what is known about it. With --json, the events as they are stored,
/// one JSON object a line.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  postern audit                          the last 50 events
  postern audit --follow --event 'session.*'
  postern audit --last 0 --json | jq 'select(.user == \"alice\")'     all of them")]
pub struct AuditArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Go on with new events as they come, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    /// How many to show; 0 for all
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50)]
    last: u32,
    /// Only events of this name; with a * at its end, of names that begin so
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    event: String,
}

/// Between attempts while Auth is away.
const RETRY: Duration = Duration::from_secs(1);

pub async fn run(global: &Global, args: AuditArgs) -> Result<(), Failure> {
    let mut seen = None;
    loop {
        match show(global, &args, &mut seen).await {
            Ok(()) if args.follow => {}
            // Once it follows, it follows through a restart of Auth, and misses nothing.
            Err(failure) if args.follow && seen.is_some() => {
                eprintln!("postern: {failure}; trying again")
            }
            other => return other,
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// One stream, from where the last one ended. `seen` is set once Auth has answered.
async fn show(global: &Global, args: &AuditArgs, seen: &mut Option<u64>) -> Result<(), Failure> {
    let mut client = admin::connect(&args.admin)?;
    let request = AuditRequest {
        follow: args.follow,
        last: if seen.is_some() { 0 } else { args.last },
        event: args.event.clone(),
        after_seq: seen.unwrap_or(0),
    };
    let mut events = rpc::call(admin::VIA, client.audit(request)).await?;
    seen.get_or_insert(0);
    while let Some(event) = events.next().await {
        let event = event.map_err(|s| rpc::failure(admin::VIA, &s))?;
        *seen = Some(event.seq);
        out::say(&if global.json {
            event.json
        } else {
            line(&event.json)
        })?;
    }
    Ok(())
}

/// Not worth a person's attention in every line; `--json` has them.
const HIDDEN: [&str; 9] = [
    "uid",
    "event",
    "version",
    "time",
    "cluster",
    "session_id",
    "roles",
    "not_after",
    "generation",
];
/// Shown first, in this order.
const FIRST: [&str; 9] = [
    "user", "login", "kind", "resource", "what", "command", "reason", "host_id", "service",
];
/// Of a host id, so much tells hosts apart.
const HOST_ID_SHOWN: usize = 8;

fn line(json: &str) -> String {
    let Ok(Value::Object(event)) = serde_json::from_str::<Value>(json) else {
        return out::clean(json);
    };
    let time = event.get("time").and_then(Value::as_str).unwrap_or("-");
    let time = when::parse(time).map_or_else(|| out::clean(time), when::local_seconds);
    let name = event.get("event").and_then(Value::as_str).unwrap_or("-");
    format!("{time}  {:<18}  {}", out::clean(name), fields(&event))
        .trim_end()
        .to_owned()
}

fn fields(event: &Map<String, Value>) -> String {
    let first = FIRST
        .iter()
        .filter_map(|key| event.get(*key).map(|v| (*key, v)));
    let rest = event
        .iter()
        .map(|(k, v)| (k.as_str(), v))
        .filter(|(k, _)| !FIRST.contains(k) && !HIDDEN.contains(k));
    let shown: Vec<String> = first.chain(rest).filter_map(|(k, v)| field(k, v)).collect();
    shown.join(" ")
}

/// `None` for what says nothing: empty values, and that it went well.
fn field(key: &str, value: &Value) -> Option<String> {
    match (key, value) {
        (_, Value::Null) | ("success", Value::Bool(true)) => None,
        (_, Value::Array(items)) if items.is_empty() => None,
        (_, Value::Object(map)) if map.is_empty() => None,
        ("host_id", Value::String(id)) => {
            let short: String = id.chars().take(HOST_ID_SHOWN).collect();
            Some(format!("host={}", quoted(&Value::String(short))))
        }
        _ => Some(format!("{}={}", out::clean(key), quoted(value))),
    }
}

/// Values with spaces in quotes, so that no value can pass for another field.
fn quoted(value: &Value) -> String {
    let text = match value {
        Value::String(s) => s.clone(),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            items.iter().map(admin::plain).collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    };
    let plain =
        !text.is_empty() && !text.contains([' ', '"', '=', '\\']) && out::clean(&text) == text;
    match value {
        _ if plain => text,
        // Nested values are JSON as they are: their own quotes keep them apart.
        Value::Object(_) | Value::Array(_) => out::clean(&value.to_string()),
        _ => out::clean(&Value::String(text).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(json: &str) -> String {
        // The time is local: leave it out.
        line(json).split_once("  ").unwrap().1.to_owned()
    }

    #[test]
    fn an_event_is_a_line() {
        let json = r#"{"uid":"0","event":"session.start","version":1,"time":"2026-11-23T04:55:01.123Z","cluster":"demo","role":"access","resource":"web-1","user":"alice","login":"root","recorded":null,"roles":["a","b"],"host_id":"9f86d081884c7d65","names":[],"success":true}"#;
        assert_eq!(
            shown(json),
            "session.start       user=alice login=root resource=web-1 host=9f86d081 role=access"
        );
    }

    #[test]
    fn no_value_can_pass_for_another_field_or_reach_the_terminal() {
        let json = r#"{"event":"exec","time":"2026-11-23T04:55:01Z","command":"echo user=root \u001b[2J\nx","empty":""}"#;
        assert_eq!(
            shown(json),
            r#"exec                command="echo user=root \u001b[2J\nx" empty="""#
        );
    }

    #[test]
    fn failures_and_nested_values_are_shown() {
        let json = r#"{"event":"user.create","time":"2026-11-23T04:55:01Z","traits":{"logins":["root"]},"names":["a b","c"],"success":false}"#;
        assert_eq!(
            shown(json),
            r#"user.create         names=["a b","c"] success=false traits={"logins":["root"]}"#
        );
    }

    #[test]
    fn a_line_that_is_no_json_is_shown_anyway() {
        assert_eq!(line("oops\u{7}"), "oops\\u{7}");
    }
}
