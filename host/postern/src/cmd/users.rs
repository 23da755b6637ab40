//! `postern users`

use crate::admin::{self, AdminArgs, Common, Kind, Object};
use crate::cli::Global;
use crate::failure::Failure;
use crate::{out, rpc, when};
use clap::{Args, Subcommand};
use postern_api::v1::{CreateUserRequest, StringList};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// Users of the cluster (on the Auth host)
#[derive(Debug, Args)]
pub struct UsersArgs {
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

/// Make a user; prints the enrolment link to give them
///
/// The link works once: with it the user sets a password and is logged in. Whoever has it can do that, so hand it
/// over on a way you trust. Logins and other traits fill the templates in roles, such as {{internal.logins}}.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  postern users create alice --roles access --logins root,ubuntu
  postern users create bob --roles access,dba --logins bob --trait team=payments,ops
  postern users create alice --reset        a new link: alice forgot her password
  postern users create alice --reset --roles access,dba")]
struct CreateArgs {
    /// The user's name
    name: String,
    /// Roles [default: access, for a new user]
    #[arg(long, value_name = "ROLE,…", value_delimiter = ',')]
    roles: Vec<String>,
    /// Names under which the user may log in to servers
    #[arg(long, value_name = "LOGIN,…", value_delimiter = ',')]
    logins: Vec<String>,
    /// Another trait; may be given several times
    #[arg(long = "trait", value_name = "KEY=VALUE,…", value_parser = parse_trait)]
    traits: Vec<(String, Vec<String>)>,
    /// The user exists: make a new link, and change roles and traits where given
    #[arg(long)]
    reset: bool,
    /// How long the link can be used
    #[arg(long, value_name = "TIME", value_parser = when::parse_ttl, default_value = "1h")]
    ttl: Duration,
}

fn parse_trait(text: &str) -> Result<(String, Vec<String>), String> {
    match text.split_once('=') {
        Some((key, values)) if !key.is_empty() => Ok((
            key.to_owned(),
            values
                .split(',')
                .filter(|v| !v.is_empty())
                .map(str::to_owned)
                .collect(),
        )),
        _ => Err("write KEY=VALUE,VALUE".to_owned()),
    }
}

const KIND: Kind = Kind {
    word: "user",
    head: &["USER", "ROLES", "LOGINS", "STATE", "CREATED"],
    row,
    none: "There are no users. Make one with: postern users create NAME --roles access --logins LOGIN",
    removed: "removed; what they hold expires with their certificates (at once: postern locks create user:NAME)",
};

fn row(user: &Object) -> Vec<String> {
    let logins = user
        .value
        .get("traits")
        .and_then(|t| t.get("logins"))
        .map_or_else(|| "-".to_owned(), admin::plain);
    vec![
        user.name.clone(),
        user.text("roles"),
        logins,
        state(user),
        user.time("created_unix"),
    ]
}

/// Auth never hands out password hashes: it says whether there is one.
fn state(user: &Object) -> String {
    let enrolled = ["enrolled", "has_password", "password"]
        .iter()
        .find_map(|k| user.value.get(k))
        .is_some_and(|v| !matches!(v, Value::Null | Value::Bool(false)));
    let link = ["code_expires_unix", "link_expires_unix"]
        .iter()
        .find_map(|k| user.value.get(k))
        .and_then(Value::as_i64)
        .filter(|t| *t != 0);
    match (enrolled, link) {
        (_, Some(t)) if t > user.now => format!("link expires {}", when::relative(user.now, t)),
        (true, _) => "enrolled".to_owned(),
        (false, Some(_)) => "link expired".to_owned(),
        (false, None) => "not enrolled".to_owned(),
    }
}

pub async fn run(global: &Global, args: UsersArgs) -> Result<(), Failure> {
    match args.command {
        Command::Create(create_args) => create(global, &args.admin, create_args).await,
        Command::Common(common) => admin::common(global.json, &args.admin, &KIND, common).await,
    }
}

async fn create(global: &Global, admin: &AdminArgs, args: CreateArgs) -> Result<(), Failure> {
    let mut client = admin::connect(admin)?;
    let request = request(&args)?;
    let (name, roles) = (request.name.clone(), request.roles.clone());
    let made = rpc::call(admin::VIA, client.create_user(request)).await?;
    if global.json {
        return out::json(
            &serde_json::json!({ "user": name, "roles": roles, "code": made.code, "link": made.link, "expires_unix": made.expires_unix }),
        );
    }
    let what = if args.reset {
        format!("User {name} has a new link.")
    } else {
        format!("User {name} is made, with roles {}.", out::list(&roles))
    };
    let now = when::now();
    out::say(&format!(
        "{what} Give them this; it works once, and expires {} ({}):\n\n  postern login '{}'\n",
        when::relative(now, made.expires_unix),
        when::local(made.expires_unix),
        made.link
    ))
}

fn request(args: &CreateArgs) -> Result<CreateUserRequest, Failure> {
    let mut traits: BTreeMap<String, StringList> = BTreeMap::new();
    let logins = (!args.logins.is_empty()).then(|| ("logins".to_owned(), args.logins.clone()));
    for (key, values) in args.traits.iter().cloned().chain(logins) {
        if traits.insert(key.clone(), StringList { values }).is_some() {
            return Err(Failure::usage(format!("trait {key:?} is given twice")));
        }
    }
    let roles = if args.roles.is_empty() && !args.reset {
        vec!["access".to_owned()]
    } else {
        args.roles.clone()
    };
    Ok(CreateUserRequest {
        name: args.name.clone(),
        roles,
        traits,
        reset: args.reset,
        ttl_seconds: args.ttl.as_secs(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn users_in_the_list() {
        let user = |name: &str, value| {
            row(&Object {
                name: name.into(),
                value,
                now: 1000,
            })
        };
        let rows = [
            user(
                "alice",
                json!({"roles": ["access"], "traits": {"logins": ["root", "ubuntu"]}, "enrolled": true, "created_unix": 1000 - 7 * 86400}),
            ),
            user(
                "bob",
                json!({"roles": [], "enrolled": false, "code_expires_unix": 1000 + 1800}),
            ),
        ];
        assert_eq!(
            out::table(KIND.head, rows),
            "\
USER   ROLES   LOGINS        STATE                   CREATED
alice  access  root, ubuntu  enrolled                7 days ago
bob    -       -             link expires in 30 min  -
"
        );
    }

    #[test]
    fn traits_are_key_and_values() {
        assert_eq!(
            parse_trait("team=a,b"),
            Ok(("team".into(), vec!["a".into(), "b".into()]))
        );
        assert!(parse_trait("team").is_err());
    }
}
