//! `postern locks`

use crate::admin::{self, AdminArgs, Common, Kind, Object};
use crate::cli::Global;
use crate::failure::Failure;
use crate::{out, rpc, when};
use clap::{Args, Subcommand};
use postern_access::Lock;
use postern_api::v1::PutLockRequest;
use std::time::Duration;

/// Locks: stop a user or a host at once, everywhere (on the Auth host)
#[derive(Debug, Args)]
pub struct LocksArgs {
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

/// Lock a user, a host or a service
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  postern locks create user:alice --reason 'laptop stolen'
  postern locks create host:9f86d081884c7d65 --reason maintenance --ttl 2h
  postern locks rm user:alice")]
struct CreateArgs {
    /// user:NAME, host:HOST_ID or service:HOST_ID/SERVICE
    #[arg(value_parser = parse_target)]
    target: String,
    /// Why; shown to whoever is refused, and in the audit log
    #[arg(long)]
    reason: String,
    /// How long [default: until removed]
    #[arg(long, value_name = "TIME", value_parser = when::parse_ttl)]
    ttl: Option<Duration>,
}

fn parse_target(text: &str) -> Result<String, String> {
    match text.split_once(':') {
        Some(("user" | "host", name)) if !name.is_empty() => Ok(text.to_owned()),
        Some(("service", name))
            if name
                .split_once('/')
                .is_some_and(|(host, service)| !host.is_empty() && !service.is_empty()) =>
        {
            Ok(text.to_owned())
        }
        _ => Err("write user:NAME, host:HOST_ID or service:HOST_ID/SERVICE".to_owned()),
    }
}

const KIND: Kind = Kind {
    word: "lock",
    head: &["TARGET", "REASON", "EXPIRES"],
    row,
    none: "Nothing is locked.",
    removed: "lifted",
};

fn row(lock: &Object) -> Vec<String> {
    let expires = lock.time("expires_unix");
    vec![
        lock.name.clone(),
        lock.text("reason"),
        if expires == "-" {
            "never".to_owned()
        } else {
            expires
        },
    ]
}

pub async fn run(global: &Global, args: LocksArgs) -> Result<(), Failure> {
    match args.command {
        Command::Create(create_args) => create(global, &args.admin, create_args).await,
        Command::Common(common) => admin::common(global.json, &args.admin, &KIND, common).await,
    }
}

async fn create(global: &Global, admin: &AdminArgs, args: CreateArgs) -> Result<(), Failure> {
    let expires_unix = args
        .ttl
        .map(|ttl| u64::try_from(when::now()).unwrap_or(0) + ttl.as_secs());
    let lock = Lock {
        target: args.target,
        reason: args.reason,
        expires_unix,
    };
    let mut client = admin::connect(admin)?;
    let lock_json = serde_json::to_string(&lock).map_err(|e| Failure::new(e.to_string()))?;
    rpc::call(admin::VIA, client.put_lock(PutLockRequest { lock_json })).await?;
    if global.json {
        return out::json(&lock);
    }
    out::say(&format!(
        "{} is locked. Lift it with: postern locks rm {}",
        lock.target, lock.target
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_checked() {
        for good in ["user:alice", "host:9f86", "service:9f86/ssh"] {
            assert!(parse_target(good).is_ok(), "{good}");
        }
        for bad in ["alice", "user:", "service:9f86", "team:x", "service:/ssh"] {
            assert!(parse_target(bad).is_err(), "{bad}");
        }
    }
}
