//! The command line of `posternd`.

use clap::{Args as ClapArgs, Parser, Subcommand};
use std::path::PathBuf;

/// The Postern daemon: Auth Service, Proxy Service and agent, by what its configuration has a section for.
///
/// Examples:
///   posternd check /etc/postern/postern.toml
///   posternd start -c /etc/postern/postern.toml
///   posternd status
///   posternd dev
#[derive(Debug, Parser)]
#[command(version, verbatim_doc_comment)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run in the foreground until SIGTERM, which waits for sessions to end.
    Start(StartArgs),
    /// Say whether a configuration is valid, without running it. Exits with 1 if it is not.
    Check(CheckArgs),
    /// Show what the running daemon does: services, joins, tunnels, sessions.
    Status(StatusArgs),
    /// A whole cluster on loopback in a throw-away directory, with a user who is logged in.
    Dev(DevArgs),
}

#[derive(Debug, ClapArgs)]
pub struct StartArgs {
    /// The configuration file. `conf.d/*.toml` beside it is read too.
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "/etc/postern/postern.toml"
    )]
    pub config: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub struct CheckArgs {
    /// The configuration file to check.
    #[arg(value_name = "FILE", default_value = "/etc/postern/postern.toml")]
    pub config: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub struct StatusArgs {
    /// Which daemon: its configuration file.
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "/etc/postern/postern.toml"
    )]
    pub config: PathBuf,
    /// For machines.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct DevArgs {
    /// Keep the directory (and use this one), instead of a throw-away one.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Args::command().debug_assert();
    }
}
