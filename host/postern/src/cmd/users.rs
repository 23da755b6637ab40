//! `postern users`

use crate::admin::{self, AdminArgs, Common, Kind, Object};
use crate::cli::Global;
use crate::failure::Failure;
use crate::{out, rpc, when};
use clap::{Args, Subcommand};
use postern_api::v1::{CreateUserRequest, Empty, StringList};
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
        user.time("created"),
    ]
}

/// As Auth says it, and until when an unused link is good.
fn state(user: &Object) -> String {
    match user.unix("code_expires") {
        Some(t) => format!(
            "{}, link expires {}",
            user.text("state"),
            when::relative(user.now, t)
        ),
        None => user.text("state"),
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
    let link = if made.link.is_empty() {
        placeholder(&mut client, &name, &made.code).await?
    } else {
        made.link.clone()
    };
    if global.json {
        return out::json(
            &serde_json::json!({ "user": name, "roles": roles, "code": made.code, "link": link, "expires_unix": made.expires_unix }),
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
        link
    ))?;
    if made.link.is_empty() {
        out::say(
            "The cluster has no proxy yet: put the address of yours in the place of PROXY.\n",
        )?;
    }
    Ok(())
}

/// The link of a cluster whose proxy's address Auth does not know.
async fn placeholder(
    client: &mut admin::Client,
    user: &str,
    code: &str,
) -> Result<String, Failure> {
    let cluster = rpc::call(admin::VIA, client.cluster_info(Empty {})).await?;
    let user = user.replace('+', "%2B").replace('@', "%40");
    let pins: String = cluster
        .ca_pins
        .iter()
        .map(|p| format!("&ca_pin={p}"))
        .collect();
    Ok(format!(
        "https://PROXY/enroll?cluster={}&user={user}&code={code}{pins}",
        cluster.cluster
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
                json!({"roles": ["access"], "traits": {"logins": ["root", "ubuntu"]}, "state": "enrolled", "created": "1969-12-25T00:16:40Z", "code_expires": null}),
            ),
            user(
                "bob",
                json!({"roles": [], "state": "invited", "code_expires": "1970-01-01T00:46:40Z"}),
            ),
        ];
        assert_eq!(
            out::table(KIND.head, rows),
            "\
USER   ROLES   LOGINS        STATE                            CREATED
alice  access  root, ubuntu  enrolled                         7 days ago
bob    -       -             invited, link expires in 30 min  -
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
