//! `postern db`: databases with their own clients.

use crate::admin::AdminArgs;
use crate::cli::Global;
use crate::cmd::ls;
use crate::failure::Failure;
use crate::profile::{Home, Profile};
use crate::resolve::{self, Named};
use clap::{Args, Subcommand};
use postern_identity::ResourceId;

mod certs;
mod connect;
mod env;

/// The kind of all databases that there are so far.
const KIND: &str = "postgres";

/// Reach databases: list them, open psql, set up other clients
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  postern db ls
  postern db connect orders --db-user app --db-name orders
  postern proxy orders.postgres --port 5432     then: psql -h 127.0.0.1 -U app orders

On the Auth host, as root:
  postern db certs sign --host db.internal --out /etc/postgresql/tls"
)]
pub struct DbArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the databases that you may reach
    Ls(LsArgs),
    Connect(connect::ConnectArgs),
    Env(env::EnvArgs),
    /// Certificates for the databases themselves
    Certs(CertsArgs),
}

#[derive(Debug, Args)]
struct LsArgs {
    /// Labels that must match
    #[arg(value_name = "LABEL=VALUE")]
    labels: Vec<String>,
}

#[derive(Debug, Args)]
struct CertsArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(subcommand)]
    command: Certs,
}

#[derive(Debug, Subcommand)]
enum Certs {
    Sign(certs::SignArgs),
}

/// The exit status is that of psql, where it was started.
pub async fn run(global: &Global, args: DbArgs) -> Result<u8, Failure> {
    match args.command {
        Command::Ls(args) => {
            let filter = std::iter::once(KIND.to_owned()).chain(args.labels);
            ls::run(global, ls::LsArgs::of(filter.collect())).await?;
        }
        Command::Connect(args) => return connect::run(global, args).await,
        Command::Env(args) => env::run(global, args).await?,
        Command::Certs(args) => {
            let Certs::Sign(sign) = args.command;
            certs::sign(global, &args.admin, sign).await?;
        }
    }
    Ok(0)
}

/// A database's name needs no look-up: its kind is known.
fn database(name: &str, profile: &Profile) -> Result<ResourceId, Failure> {
    match resolve::parse(name, &profile.cluster)? {
        Named::Bare(name) => Ok(ResourceId::new(KIND, &name)?),
        Named::Full(id) if id.kind == KIND => Ok(id),
        Named::Full(id) => Err(Failure::usage(format!(
            "{name} is not a database but of kind {}; run: postern proxy {name}",
            id.kind
        ))),
    }
}

fn home(global: &Global) -> Result<(Home, Profile), Failure> {
    let home = Home::locate(global.home.as_deref())?;
    let profile = home.logged_in()?;
    Ok((home, profile))
}
