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
    /// Make the running daemon read its configuration now, and say what changed or why nothing did.
    ///
    /// It does so by itself when a file changes; this waits for the outcome.
    Reload(ReloadArgs),
    /// Show the public key of a key pair for the join method bound_keypair, made where there is none yet.
    JoinKey(JoinKeyArgs),
    /// A whole cluster on loopback in a throw-away directory, with a user who is logged in.
    Dev(DevArgs),
    /// For plugin authors: check a plugin's file, play sessions through it. Needs no cluster.
    #[command(subcommand)]
    Plugin(PluginCommand),
}

#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// Say what a plugin is and whether this posternd can run it. Exits with 1 if it can't.
    Check(PluginCheckArgs),
    /// Play the sessions of a script through a plugin and print every step that it answers.
    ///
    /// Exits with 1 at the first answer that is not the expected one. docs/plugins.md has all of what a script can say.
    ///
    /// Example of a script:
    ///   [[session]]
    ///   events = [
    ///     { client = "alice\n", expect = ["skip 6", 'authorize users="alice"'] },
    ///     { authorize = "deny", expect = ["close ..."] },
    ///   ]
    #[command(verbatim_doc_comment)]
    Run(PluginRunArgs),
}

#[derive(Debug, ClapArgs)]
pub struct JoinKeyArgs {
    /// Where the private key is, or goes to: `key_file` in `join_params`. Its directory is made with mode 0700.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub struct PluginFile {
    /// The component.
    #[arg(value_name = "FILE.wasm")]
    pub file: PathBuf,
    /// Settings as they would stand in `[services.<name>.settings]`: a TOML or (by its name) JSON file.
    #[arg(long, value_name = "FILE")]
    pub settings: Option<PathBuf>,
    /// What one instance may use, as `limits.memory_mb` of a service.
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub memory_mb: u32,
    /// What one call may take, as `limits.cpu_ms_per_call` of a service.
    #[arg(long, value_name = "MS", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub cpu_ms_per_call: u32,
    /// For machines.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct PluginCheckArgs {
    #[command(flatten)]
    pub plugin: PluginFile,
}

#[derive(Debug, ClapArgs)]
pub struct PluginRunArgs {
    #[command(flatten)]
    pub plugin: PluginFile,
    /// The script.
    #[arg(long, value_name = "FILE.toml")]
    pub script: PathBuf,
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
    /// Take over from the process at the other end of standard input. For posternd itself, on SIGUSR2.
    #[arg(long, hide = true)]
    pub take_over: bool,
}

#[derive(Debug, ClapArgs)]
pub struct CheckArgs {
    /// The configuration file to check.
    #[arg(value_name = "FILE", default_value = "/etc/postern/postern.toml")]
    pub config: PathBuf,
    /// Show what it would change in the daemon that runs now. Needs the daemon of the same data_dir.
    #[arg(long)]
    pub against_running: bool,
}

#[derive(Debug, ClapArgs)]
pub struct ReloadArgs {
    /// Which daemon: its configuration file.
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "/etc/postern/postern.toml"
    )]
    pub config: PathBuf,
    /// The data directory, where the configuration file can't be read at the moment.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
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
    /// The data directory, where the configuration file can't be read at the moment.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
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
