//! `postern tokens`

use crate::admin::{self, AdminArgs, Common, Kind, Object};
use crate::cli::Global;
use crate::failure::Failure;
use crate::{out, rpc, when};
use clap::{Args, Subcommand};
use method::{Method, MethodArgs};
use postern_api::v1::{ClusterInfoResponse, CreateTokenRequest, CreateTokenResponse, Empty};
use serde_json::Value;
use std::time::Duration;

mod method;
mod snippet;

/// Join tokens, with which hosts join the cluster (on the Auth host)
///
/// What a token covers becomes the host's grant: services within it join with the host's own key from then on, so a
/// token is needed again only for another kind, or a name outside it.
#[derive(Debug, Args)]
pub struct TokensArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Create(Box<CreateArgs>),
    #[command(flatten)]
    Common(Common),
}

/// Make a token; prints it once, with the configuration that uses it
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  postern tokens create --kinds ssh
  postern tokens create --kinds ssh,tcp --names 'web-*,orders' --ttl 30m --uses 1
  postern tokens create --kinds ssh --quiet > /etc/postern/token
  postern tokens create --kinds ssh --name ci --method github --must-match repository=acme/shop,ref=refs/heads/main
  postern tokens create --kinds ssh --name pods --method kubernetes --jwks jwks.json --must-match sub=system:serviceaccount:web:agent
  postern tokens create --kinds ssh --name edge-1 --method bound_keypair --recoveries 3")]
struct CreateArgs {
    /// Kinds of resource that a host may serve with it: ssh, tcp, …
    #[arg(long, value_name = "KIND,…", value_delimiter = ',', required = true)]
    kinds: Vec<String>,
    /// Names, or globs, that it may serve, even if another host has them already (agents that share a resource)
    /// [default: any name that no host has yet]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    names: Vec<String>,
    /// How long it can be used, or the registration secret of a bound_keypair [default: 30m; without a secret: for ever]
    #[arg(long, value_name = "TIME", value_parser = when::parse_ttl)]
    ttl: Option<Duration>,
    /// How often it can be used [default: without limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    uses: Option<u32>,
    /// Print the token alone
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    method: MethodArgs,
}

const KIND: Kind = Kind {
    word: "token",
    head: &[
        "TOKEN", "METHOD", "KINDS", "NAMES", "USED", "STATE", "CREATED", "EXPIRES",
    ],
    row,
    none: "There are no tokens. Make one with: postern tokens create --kinds ssh",
    removed: "removed; hosts that joined with it stay",
};

fn row(token: &Object) -> Vec<String> {
    let used = token.value.get("used").and_then(Value::as_u64).unwrap_or(0);
    let uses = match token.value.get("uses").and_then(Value::as_u64) {
        Some(n) if n > 0 => format!("{used} of {n}"),
        _ => used.to_string(),
    };
    vec![
        token.name.clone(),
        token.text("method"),
        token.text("kinds"),
        names(&token.text("names")),
        uses,
        token.text("state"),
        token.time("created"),
        match token.time("expires").as_str() {
            "-" => "never".to_owned(),
            time => time.to_owned(),
        },
    ]
}

fn names(listed: &str) -> String {
    if listed == "-" {
        "any new".to_owned()
    } else {
        listed.to_owned()
    }
}

pub async fn run(global: &Global, args: TokensArgs) -> Result<(), Failure> {
    match args.command {
        Command::Create(create_args) => create(global, &args.admin, *create_args).await,
        Command::Common(common) => {
            admin::common(global.json, &args.admin, &KIND, public_id(common)).await
        }
    }
}

/// Whoever pastes a whole token means its public id; the secret goes nowhere. Hex digits alone are an id, all else is the
/// name of a token without a secret.
fn public_id(mut common: Common) -> Common {
    if let Common::Get(arg) | Common::Rm(arg) = &mut common {
        let id = match arg.name.strip_prefix("pt_") {
            Some(rest) => rest.split('_').next().unwrap_or(rest),
            None if arg.name.bytes().all(|b| b.is_ascii_hexdigit()) => &arg.name,
            None => return common,
        };
        arg.name = format!("pt_{id}");
    }
    common
}

async fn create(global: &Global, admin: &AdminArgs, args: CreateArgs) -> Result<(), Failure> {
    let mut client = admin::connect(admin)?;
    let request = CreateTokenRequest {
        kinds: args.kinds.clone(),
        names: args.names.clone(),
        ttl_seconds: args.ttl.map_or(0, |ttl| ttl.as_secs()),
        uses: args.uses.unwrap_or(0),
        method: args.method.request()?,
        name: args.method.name.clone().unwrap_or_default(),
    };
    let token = rpc::call(admin::VIA, client.create_token(request)).await?;
    if args.quiet && !global.json {
        return out::say(&token.token);
    }
    let cluster = rpc::call(admin::VIA, client.cluster_info(Empty {})).await?;
    let join_params = args.join_params(&token.token);
    let config = snippet::config(&cluster, &join_params, &args.kinds, &args.names);
    if global.json {
        return out::json(&serde_json::json!({
            "token": token.token, "method": args.method.method.word(), "id": token.id, "expires_unix": token.expires_unix, "kinds": args.kinds, "names": args.names, "uses": args.uses,
            "cluster": cluster.cluster, "proxy": snippet::proxy(&cluster), "ca_pins": cluster.ca_pins, "config": config,
        }));
    }
    out::say(&text(&token, &args, &cluster, &config, when::now()))
}

fn text(
    token: &CreateTokenResponse,
    args: &CreateArgs,
    cluster: &ClusterInfoResponse,
    config: &str,
    now: i64,
) -> String {
    let uses = match args.uses {
        None if args.method.method == Method::BoundKeypair => "one host".to_owned(),
        None => "any number of hosts".to_owned(),
        Some(1) => "one use".to_owned(),
        Some(n) => format!("{n} uses"),
    };
    let names = if args.names.is_empty() {
        "any name that no host has yet".to_owned()
    } else {
        format!("names {}", args.names.join(", "))
    };
    let scope = format!("kinds {}; {names}; {uses}", args.kinds.join(", "));
    let until = match token.expires_unix {
        0 => String::new(),
        at => format!("; until {} ({})", when::local(at), when::relative(now, at)),
    };
    let first = match args.method.method {
        Method::Token => format!(
            "Token for cluster {}, shown this once: {scope}{until}.\n\n  {}\n",
            cluster.cluster, token.token
        ),
        Method::BoundKeypair if !token.token.is_empty() => format!(
            "Token {} for cluster {}: {scope}.\nThe first host to show this registration secret registers its key pair; it is shown this once:\n\n  {}\n",
            token.id, cluster.cluster, token.token
        ),
        _ => format!(
            "Token {} for cluster {}: {scope}{until}. It has no secret.\n",
            token.id, cluster.cluster
        ),
    };
    format!(
        "{first}\nOn the host that joins, as /etc/postern/postern.toml, then: posternd start -c /etc/postern/postern.toml\n\n{config}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::NameArg;
    use serde_json::json;

    #[test]
    fn a_token_in_the_list() {
        let value = json!({
            "id": "pt_3f9a", "method": "token", "kinds": ["ssh"], "names": [], "uses": 3, "used": 1, "state": "valid",
            "created": "1970-01-01T00:14:40Z", "expires": "1970-01-01T00:44:40Z",
        });
        let token = Object {
            name: "pt_3f9a".into(),
            value,
            now: 1000,
        };
        assert_eq!(
            out::table(KIND.head, [row(&token)]),
            "\
TOKEN    METHOD  KINDS  NAMES    USED    STATE  CREATED    EXPIRES
pt_3f9a  token   ssh    any new  1 of 3  valid  2 min ago  in 28 min
"
        );
    }

    #[test]
    fn the_secret_of_a_pasted_token_is_dropped() {
        for pasted in ["pt_3f9a_c2VjcmV0", "pt_3f9a", "3f9a"] {
            let Common::Rm(arg) = public_id(Common::Rm(NameArg {
                name: pasted.into(),
            })) else {
                panic!("not rm")
            };
            assert_eq!(arg.name, "pt_3f9a");
        }
        let Common::Rm(arg) = public_id(Common::Rm(NameArg {
            name: "edge-1".into(),
        })) else {
            panic!("not rm")
        };
        assert_eq!(arg.name, "edge-1");
    }
}
