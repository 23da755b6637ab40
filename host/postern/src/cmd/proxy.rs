//! `postern proxy`: a way for any program to a resource, over standard input and output (as
//! OpenSSH's `ProxyCommand`) or a loopback listener.

use crate::cli::Global;
use crate::failure::Failure;
use crate::helper::Helper;
use crate::profile::Home;
use crate::resolve;
use crate::session::carry;
use crate::stdio::Stdio;
use crate::{cmd::proxy::listen::listen, resolve::resolve};
use clap::Args;
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

pub mod listen;

/// Give any program a way to a resource, through a local port or standard input and output
///
/// With --listen or --port, a port of this computer leads to the resource while the command runs; every connection
/// is a session of its own, authenticated with your certificate, and encrypted from here to the agent. Programs that
/// connect need no password for the way there, so only this computer can: the port is on the loopback interface.
/// Other users of this computer can connect too; do not leave it running on a shared one.
///
/// With --stdio, or when standard input or output is not a terminal, the session is on standard input and output:
/// what OpenSSH's ProxyCommand expects. On a terminal the default is a free port.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  postern proxy orders --port 5432     then: psql -h 127.0.0.1 -p 5432
  postern proxy orders                 a free port, which is printed
  postern proxy web-1.ssh --stdio      as in: ssh -o ProxyCommand='postern proxy --stdio %h' …")]
pub struct ProxyArgs {
    /// NAME, NAME.KIND or NAME.KIND.CLUSTER
    #[arg(value_name = "NAME")]
    name: String,
    /// Use standard input and output
    #[arg(long, conflicts_with_all = ["listen", "port"])]
    stdio: bool,
    /// Listen on this loopback address; port 0 is a free one
    #[arg(long, value_name = "ADDR:PORT", conflicts_with = "port")]
    listen: Option<SocketAddr>,
    /// Listen on this port of 127.0.0.1
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
}

/// A session on standard input and output.
#[derive(Debug, PartialEq, Eq)]
pub struct StdioRequest {
    home: Option<PathBuf>,
    name: String,
}

/// Recognises `[--home DIR] proxy --stdio NAME`, which OpenSSH runs for every connection, without
/// the work of describing and parsing the whole command line. Anything else is `None`.
pub fn short_way(args: &[OsString]) -> Option<StdioRequest> {
    let (home, rest) = match args {
        [flag, dir, rest @ ..] if flag == "--home" => (Some(PathBuf::from(dir)), rest),
        rest => (std::env::var_os("POSTERN_HOME").map(PathBuf::from), rest),
    };
    match rest {
        [command, flag, name] if command == "proxy" && flag == "--stdio" => {
            let name = name.to_str().filter(|n| !n.starts_with('-'))?;
            Some(StdioRequest {
                home,
                name: name.to_owned(),
            })
        }
        _ => None,
    }
}

pub async fn run(global: &Global, args: ProxyArgs) -> Result<(), Failure> {
    let address = match (args.listen, args.port) {
        (Some(address), _) => Some(address),
        (None, Some(port)) => Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        (None, None) if args.stdio || !io::stdin().is_terminal() || !io::stdout().is_terminal() => {
            None
        }
        (None, None) => Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
    };
    let Some(address) = address else {
        return stdio(StdioRequest {
            home: global.home.clone(),
            name: args.name,
        })
        .await;
    };
    let home = Home::locate(global.home.as_deref())?;
    let profile = home.logged_in()?;
    let id = resolve(&args.name, &home, &profile).await?;
    listen(&home, &profile, id, address, global.json).await
}

/// One session on standard input and output.
pub async fn stdio(request: StdioRequest) -> Result<(), Failure> {
    let home = Home::locate(request.home.as_deref())?;
    let profile = home.logged_in()?;
    let id = match resolve::parse(&request.name, &profile.cluster)? {
        resolve::Named::Full(id) => id,
        resolve::Named::Bare(_) => resolve(&request.name, &home, &profile).await?,
    };
    let remote = Helper::new(&home, &profile)?.open(&id).await?;
    let mut local = Stdio::open()
        .map_err(|e| Failure::new(format!("cannot use standard input and output: {e}")))?;
    let carried = carry(&mut local, remote, &id).await;
    local.finish().await;
    carried
}

#[cfg(test)]
mod tests;
