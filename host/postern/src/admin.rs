//! Administration: gRPC over the Unix socket in Auth's data directory. Who may open the socket
//! (mode 0600) is an administrator.

use crate::failure::Failure;
use crate::{out, rpc, when};
use clap::{Args, Subcommand};
use postern_api::v1::{
    GetRequest, ListRequest, RemoveRequest, admin_service_client::AdminServiceClient,
};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tokio_stream::StreamExt;
use tonic::transport::Channel;

pub type Client = AdminServiceClient<Channel>;

/// Where Auth is.
#[derive(Debug, Clone, Args)]
pub struct AdminArgs {
    /// Data directory of the Auth Service on this host
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "POSTERN_DATA_DIR",
        hide_env_values = true,
        default_value = "/var/lib/postern",
        help_heading = "Global options"
    )]
    pub data_dir: PathBuf,
}

/// What can be done with every kind of object.
#[derive(Debug, Subcommand)]
pub enum Common {
    /// List all
    Ls,
    /// Show one
    Get(NameArg),
    /// Remove one
    Rm(NameArg),
}

#[derive(Debug, Args)]
pub struct NameArg {
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// A kind of object: how it is called, and how its table reads.
pub struct Kind {
    /// As the API calls it.
    pub word: &'static str,
    pub head: &'static [&'static str],
    pub row: fn(&Object) -> Vec<String>,
    /// What `ls` says where there are none.
    pub none: &'static str,
    /// What has happened after `rm`, beside the name.
    pub removed: &'static str,
}

/// An object as Auth stores it.
pub struct Object {
    pub name: String,
    pub value: Value,
    /// Unix time at which it was asked for.
    pub now: i64,
}

pub const VIA: &str = "Auth";

/// A client on the socket; the error says what to do where it is not there.
pub fn connect(args: &AdminArgs) -> Result<Client, Failure> {
    let socket = args.data_dir.join("admin.sock");
    reachable(&socket)?;
    Ok(Client::new(postern_api::connect_unix(&socket)))
}

fn reachable(socket: &Path) -> Result<(), Failure> {
    let shown = socket.display();
    // Connecting tells apart what the transport would wrap up in one error.
    match std::os::unix::net::UnixStream::connect(socket) {
        Ok(_) => Ok(()),
        Err(e) => Err(Failure::new(match e.kind() {
            std::io::ErrorKind::NotFound => format!(
                "there is no Auth Service at {shown}; run this on the Auth host, or name its data directory with --data-dir (or POSTERN_DATA_DIR)"
            ),
            std::io::ErrorKind::PermissionDenied => format!(
                "you may not administer the cluster: {shown}: permission denied; run this as the user that posternd runs as (often: sudo postern …)"
            ),
            std::io::ErrorKind::ConnectionRefused => {
                format!("the Auth Service at {shown} is not running; start posternd")
            }
            _ => format!("cannot reach the Auth Service at {shown}: {e}"),
        })),
    }
}

/// `ls`, `get` and `rm`, alike for every kind.
pub async fn common(
    json: bool,
    args: &AdminArgs,
    kind: &Kind,
    command: Common,
) -> Result<(), Failure> {
    let mut client = connect(args)?;
    match command {
        Common::Ls => {
            let objects = list(&mut client, kind.word).await?;
            if json {
                out::json(&objects.into_iter().map(|o| o.value).collect::<Vec<_>>())
            } else if objects.is_empty() {
                out::say(kind.none)
            } else {
                out::say(&out::table(kind.head, objects.iter().map(kind.row)))
            }
        }
        Common::Get(NameArg { name }) => {
            let got = rpc::call(
                VIA,
                client.get(GetRequest {
                    kind: kind.word.into(),
                    name,
                }),
            )
            .await?;
            let object = parse(got)?;
            if json || kind.word == "role" {
                out::json(&object.value)
            } else {
                out::say(&describe(&object))
            }
        }
        Common::Rm(NameArg { name }) => {
            rpc::call(
                VIA,
                client.remove(RemoveRequest {
                    kind: kind.word.into(),
                    name: name.clone(),
                }),
            )
            .await?;
            if json {
                out::json(&serde_json::json!({ "removed": name }))
            } else {
                out::say(&format!("{} {name}: {}", kind.word, kind.removed))
            }
        }
    }
}

async fn list(client: &mut Client, kind: &str) -> Result<Vec<Object>, Failure> {
    let mut stream = rpc::call(VIA, client.list(ListRequest { kind: kind.into() })).await?;
    let mut objects = Vec::new();
    while let Some(object) = stream.next().await {
        objects.push(parse(object.map_err(|s| rpc::failure(VIA, &s))?)?);
    }
    objects.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(objects)
}

fn parse(object: postern_api::v1::Object) -> Result<Object, Failure> {
    let value = serde_json::from_str(&object.json).map_err(|e| {
        Failure::new(format!(
            "Auth's answer about {} {} is not JSON: {e}",
            object.kind, object.name
        ))
    })?;
    Ok(Object {
        name: object.name,
        value,
        now: when::now(),
    })
}

/// All fields, one a line; times as people say them, lists of things one thing a line.
fn describe(object: &Object) -> String {
    let Some(map) = object.value.as_object() else {
        return out::clean(&object.value.to_string());
    };
    let mut facts: Vec<(&str, String)> = Vec::new();
    for (key, value) in map {
        let shown = key.strip_suffix("_unix").unwrap_or(key);
        match (value.as_array(), time_of(key, value)) {
            (_, Some(t)) => facts.push((
                shown,
                format!("{} ({})", when::relative(object.now, t), when::local(t)),
            )),
            (Some(items), _) if items.iter().any(Value::is_object) => {
                facts.extend(items.iter().map(|item| (shown, named(item))));
            }
            _ => facts.push((shown, plain(value))),
        }
    }
    out::facts(&facts)
}

/// Times are RFC 3339 texts, or seconds since 1970 in fields that say so.
fn time_of(key: &str, value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => when::parse(text),
        other if key.ends_with("_unix") => other.as_i64().filter(|t| *t != 0),
        _ => None,
    }
}

/// A thing by its name, with what else there is to say about it.
fn named(item: &Value) -> String {
    let Some((map, name)) = item
        .as_object()
        .zip(item.get("name").and_then(Value::as_str))
    else {
        return plain(item);
    };
    let said = |v: &&Value| !matches!(v, Value::Null | Value::Bool(false)) && plain(v) != "-";
    let rest = map.iter().filter(|(k, v)| *k != "name" && said(v));
    let rest: Vec<String> = rest.map(|(k, v)| format!("{k} {}", plain(v))).collect();
    if rest.is_empty() {
        name.to_owned()
    } else {
        format!("{name} ({})", rest.join(", "))
    }
}

/// A JSON value without its punctuation.
pub fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(s) => s.clone(),
        Value::Array(items) if items.is_empty() => "-".into(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::Object(map) if map.is_empty() => "-".into(),
        Value::Object(map) => map
            .iter()
            .map(|(k, v)| format!("{k}={}", plain(v)))
            .collect::<Vec<_>>()
            .join(" "),
        other => other.to_string(),
    }
}

impl Object {
    /// A field as text; a dash where it is missing.
    pub fn text(&self, key: &str) -> String {
        self.value.get(key).map_or_else(|| "-".into(), plain)
    }

    /// When a field says it is, as Unix time.
    pub fn unix(&self, key: &str) -> Option<i64> {
        time_of(key, self.value.get(key)?)
    }

    /// A time as "3 min ago"; a dash where there is none.
    pub fn time(&self, key: &str) -> String {
        self.unix(key)
            .map_or_else(|| "-".into(), |t| when::relative(self.now, t))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_missing_socket_says_where_to_go() {
        let e = connect(&AdminArgs {
            data_dir: "/nowhere".into(),
        })
        .unwrap_err()
        .to_string();
        assert_eq!(
            e,
            "there is no Auth Service at /nowhere/admin.sock; run this on the Auth host, or name its data directory with --data-dir (or POSTERN_DATA_DIR)"
        );
    }

    #[test]
    fn a_socket_that_nobody_serves_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("admin.sock");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let e = connect(&AdminArgs {
            data_dir: dir.path().into(),
        })
        .unwrap_err()
        .to_string();
        assert!(e.ends_with("is not running; start posternd"), "{e}");
    }

    #[test]
    fn an_object_is_described_line_by_line() {
        let value = json!({
            "kinds": ["ssh", "tcp"], "expires": "1970-01-01T00:17:40Z", "labels": {"env": "prod"},
            "resources": [{"name": "a", "labels": {"env": "prod"}, "direct": false}, {"name": "b"}], "uses": 1, "zz": null,
        });
        let object = Object {
            name: "x".into(),
            value,
            now: 1000,
        };
        let shown = describe(&object);
        let mut lines: Vec<&str> = shown.lines().collect();
        lines.sort_unstable();
        assert!(lines[0].starts_with("expires    in 60 s (19"), "{shown}");
        assert_eq!(
            lines[1..],
            [
                "kinds      ssh, tcp",
                "labels     env=prod",
                "resources  a (labels env=prod)",
                "resources  b",
                "uses       1",
                "zz         -"
            ]
        );
    }
}
