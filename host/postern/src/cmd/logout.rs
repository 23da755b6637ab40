//! `postern logout`

use crate::cli::Global;
use crate::failure::Failure;
use crate::out;
use crate::profile::Home;
use clap::Args;

/// Delete your keys and certificates from this computer
///
/// The cluster's address and CA stay, so that `postern login` alone logs in again. Sessions that run go on.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  postern logout\n  postern logout --forget")]
pub struct LogoutArgs {
    /// Delete the cluster's address and CA too
    #[arg(long)]
    forget: bool,
}

pub fn run(global: &Global, args: &LogoutArgs) -> Result<(), Failure> {
    let home = Home::locate(global.home.as_deref())?;
    let had = if !home.dir().exists() {
        false
    } else if args.forget {
        home.forget()?
    } else {
        home.log_out()?
    };
    if global.json {
        return out::json(&serde_json::json!({ "logged_out": had }));
    }
    out::say(if had {
        "Logged out: keys and certificates are deleted."
    } else {
        "You were not logged in."
    })
}
