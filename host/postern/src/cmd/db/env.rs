//! `postern db env`: what libpq's clients need to know to connect without our help.

use crate::cli::Global;
use crate::cmd::db::{database, home};
use crate::failure::Failure;
use crate::{out, rpc};
use clap::Args;
use postern_api::v1::{ListResourcesRequest, user_service_client::UserServiceClient};
use std::collections::BTreeMap;

/// Print environment variables for psql and other clients of libpq
///
/// For databases whose operator allows connections without a helper (direct = true): the client dials the proxy itself and
/// shows your certificate; TLS ends at the agent. The variables name files of your profile and are good until you log out.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  eval \"$(postern db env orders)\"
  psql -U app -d orders")]
pub struct EnvArgs {
    /// NAME, NAME.postgres or NAME.postgres.CLUSTER
    #[arg(value_name = "NAME")]
    name: String,
}

pub async fn run(global: &Global, args: EnvArgs) -> Result<(), Failure> {
    let (home, profile) = home(global)?;
    let id = database(&args.name, &profile)?;
    let dns = id.dns(&profile.cluster);
    let mut client = UserServiceClient::new(rpc::user_channel(&home, &profile)?);
    let request = ListResourcesRequest {
        kind: id.kind.clone(),
        ..ListResourcesRequest::default()
    };
    let list = rpc::call(&rpc::via(&profile.proxy), client.list_resources(request)).await?;
    match list.resources.iter().find(|r| r.name == id.name) {
        None => {
            return Err(Failure::new(format!(
                "there is no database {:?} that you may reach; see: postern db ls",
                id.name
            )));
        }
        Some(found) if !found.direct => {
            return Err(Failure::new(format!(
                "{dns} takes no connections without a helper (its operator has not set direct = true); run: postern proxy {}.{} --port 5432",
                id.name, id.kind
            )));
        }
        Some(_) => {}
    }
    let (host, port) = profile
        .proxy
        .rsplit_once(':')
        .ok_or_else(|| Failure::new("the profile's proxy has no port; run: postern login"))?;
    // The name need not be in any DNS: libpq dials the address, and verifies the name.
    let addr = tokio::net::lookup_host(&profile.proxy)
        .await
        .ok()
        .and_then(|mut all| all.next())
        .ok_or_else(|| Failure::new(format!("there is no address of {host}")))?;
    let path = |p: std::path::PathBuf| p.to_string_lossy().into_owned();
    let vars: BTreeMap<&str, String> = [
        ("PGHOST", dns),
        ("PGHOSTADDR", addr.ip().to_string()),
        ("PGPORT", port.to_owned()),
        ("PGSSLMODE", "verify-full".to_owned()),
        ("PGSSLROOTCERT", path(home.host_ca()?)),
        ("PGSSLCERT", path(home.tls_cert())),
        ("PGSSLKEY", path(home.tls_key())),
    ]
    .into();
    if global.json {
        return out::json(&vars);
    }
    let lines = vars
        .iter()
        .map(|(k, v)| format!("export {k}={}\n", quoted(v)));
    out::say(&lines.collect::<String>())
}

/// For a shell.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_back_what_is_quoted() {
        for value in ["a", "it's", "a b\"$x`y\\"] {
            let script = format!("printf %s {}", quoted(value));
            let run = std::process::Command::new("sh")
                .args(["-c", &script])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(run.stdout).unwrap(), value);
        }
    }
}
