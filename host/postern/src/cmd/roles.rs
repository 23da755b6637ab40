//! `postern roles`

use crate::admin::{self, AdminArgs, Common, Kind, Object};
use crate::cli::Global;
use crate::failure::Failure;
use crate::{out, rpc};
use clap::{Args, Subcommand};
use postern_access::Role;
use postern_api::v1::PutRoleRequest;
use serde_json::Value;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Roles: who may reach what, and as whom (on the Auth host)
///
/// A role allows and denies per kind, by labels and principals. Nothing is allowed that no role allows; what any
/// role denies is denied. Changes reach the agents at once, also for users who are logged in.
#[derive(Debug, Args)]
pub struct RolesArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Create(CreateArgs),
    #[command(flatten)]
    Common(Common),
}

/// Make a role from a file, or replace one
///
/// TOML or JSON; labels are exact values, *, globs or ^regular expressions$; every key beside labels is a kind of
/// principal. {{internal.NAME}} stands for the user's traits.
#[derive(Debug, Args)]
#[command(after_help = "\
Example file, deployers.toml:
  name = \"deployers\"
  [allow.ssh]
  labels = { env = [\"test\", \"staging-*\"] }
  logins = [\"deploy\", \"{{internal.logins}}\"]
  [deny.ssh]
  labels = { tier = [\"secret\"] }

Examples:
  postern roles create -f deployers.toml
  postern roles get deployers > role.json     edit it, then:
  postern roles create --replace -f role.json")]
struct CreateArgs {
    /// File with the role; - for standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Replace the role of that name, if there is one
    #[arg(long)]
    replace: bool,
}

const KIND: Kind = Kind {
    word: "role",
    head: &["ROLE", "ALLOWS", "DENIES"],
    row,
    none: "There are no roles.",
    removed: "removed",
};

fn row(role: &Object) -> Vec<String> {
    let side = |key: &str| {
        let rules = role.value.get(key).and_then(Value::as_object);
        let text: Vec<String> = rules
            .into_iter()
            .flatten()
            .map(|(kind, rule)| summary(kind, rule))
            .collect();
        if text.is_empty() {
            "-".to_owned()
        } else {
            text.join("; ")
        }
    };
    vec![role.name.clone(), side("allow"), side("deny")]
}

/// `ssh where env=prod|staging, logins root`
fn summary(kind: &str, rule: &Value) -> String {
    let values = |v: &Value| {
        v.as_array()
            .map(|a| a.iter().map(admin::plain).collect::<Vec<_>>().join("|"))
            .unwrap_or_default()
    };
    let labels = rule.get("labels").and_then(Value::as_object);
    let labels: Vec<String> = labels
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", values(v)))
        .collect();
    let mut text = kind.to_owned();
    if !labels.is_empty() && labels != ["*=*"] {
        text += &format!(" where {}", labels.join(" "));
    }
    for (principal, v) in rule
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(k, _)| *k != "labels")
    {
        text += &format!(", {principal} {}", values(v));
    }
    text
}

pub async fn run(global: &Global, args: RolesArgs) -> Result<(), Failure> {
    match args.command {
        Command::Create(create_args) => create(global, &args.admin, &create_args).await,
        Command::Common(common) => admin::common(global.json, &args.admin, &KIND, common).await,
    }
}

async fn create(global: &Global, admin: &AdminArgs, args: &CreateArgs) -> Result<(), Failure> {
    let role = parse(&read(&args.file)?, &args.file)?;
    let mut client = admin::connect(admin)?;
    let role_json = serde_json::to_string(&role).map_err(|e| Failure::new(e.to_string()))?;
    rpc::call(
        admin::VIA,
        client.put_role(PutRoleRequest {
            role_json,
            replace: args.replace,
        }),
    )
    .await?;
    if global.json {
        out::json(&role)
    } else {
        out::say(&format!(
            "Role {} is {}.",
            role.name,
            if args.replace { "stored" } else { "made" }
        ))
    }
}

fn read(file: &Path) -> Result<String, Failure> {
    let text = if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin()
            .lock()
            .take(1 << 20)
            .read_to_string(&mut text)
            .map(|_| text)
    } else {
        std::fs::read_to_string(file)
    };
    text.map_err(|e| Failure::new(format!("cannot read {}: {e}", file.display())))
}

/// JSON if it looks like it, else TOML; checked here too, so that the error names the file.
fn parse(text: &str, file: &Path) -> Result<Role, Failure> {
    let wrong = |e: String| Failure::new(format!("{}: {}", file.display(), e.trim_end()));
    let role: Role = if text.trim_start().starts_with('{') {
        serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?
    } else {
        toml::from_str(text).map_err(|e| wrong(e.to_string()))?
    };
    role.validate().map_err(|e| wrong(e.to_string()))?;
    Ok(role)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_example_in_the_help_is_a_role() {
        let help = {
            use clap::Args;
            let command = CreateArgs::augment_args(clap::Command::new("create"));
            command.get_after_help().unwrap().to_string()
        };
        let example: String = help
            .lines()
            .skip(1)
            .take_while(|l| !l.is_empty())
            .map(|l| format!("{}\n", l.trim_start()))
            .collect();
        let role = parse(&example, Path::new("deployers.toml")).unwrap();
        assert_eq!(role.name, "deployers");
        let as_json = serde_json::to_string(&role).unwrap();
        assert_eq!(parse(&as_json, Path::new("role.json")).unwrap(), role);
    }

    #[test]
    fn a_mistake_is_named_with_its_file() {
        let e = parse("name = \"x\"\nalow = {}\n", Path::new("r.toml"))
            .unwrap_err()
            .to_string();
        assert!(e.starts_with("r.toml: ") && e.contains("alow"), "{e}");
    }

    #[test]
    fn roles_in_the_list() {
        let role = |name: &str, value| {
            row(&Object {
                name: name.into(),
                value,
                now: 0,
            })
        };
        let rows = [
            role(
                "access",
                json!({"allow": {"ssh": {"labels": {"*": ["*"]}, "logins": ["{{internal.logins}}"]}, "tcp": {"labels": {"*": ["*"]}}}, "deny": {}}),
            ),
            role(
                "deployers",
                json!({"allow": {"ssh": {"labels": {"env": ["test", "staging-*"]}, "logins": ["deploy"]}}, "deny": {"ssh": {"labels": {"tier": ["secret"]}}}}),
            ),
        ];
        assert_eq!(
            out::table(KIND.head, rows),
            "\
ROLE       ALLOWS                                        DENIES
access     ssh, logins {{internal.logins}}; tcp          -
deployers  ssh where env=test|staging-*, logins deploy   ssh where tier=secret
"
            .replace("   ssh where tier", "  ssh where tier")
            .replace("          -\n", "         -\n")
            .replace(
                "ALLOWS                                        DENIES",
                "ALLOWS                                       DENIES"
            )
        );
    }
}
