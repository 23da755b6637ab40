//! The command line: what `postern --help` documents. Each command's own arguments are beside
//! its code in [`crate::cmd`].

use crate::cmd;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Parser)]
#[command(
    name = "postern",
    version,
    about = "Reach servers, databases and clusters that no network path reaches",
    long_about = "Reach servers, databases and clusters that no network path reaches.\n\n\
        Log in once a day; then `postern ls` shows what you may reach, `postern ssh` opens a shell, \
        and `postern proxy` gives any other program a way there. What you may do is decided by your roles.",
    after_help = EXAMPLES,
    max_term_width = 100,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  postern login --proxy proxy.example.com:443 --user alice
  postern ls ssh env=prod
  postern ssh root@web-1
  postern db connect orders --db-user app --db-name orders
  postern proxy orders --port 5432
  postern config >> ~/.ssh/config     then: scp, sftp, rsync, ansible with web-1.ssh.CLUSTER

On the Auth host, as root:
  postern tokens create --kinds ssh
  postern users create alice --roles access --logins root,ubuntu
  postern audit --follow";

/// Options that every command takes.
#[derive(Debug, Clone, Default, Args)]
pub struct Global {
    /// Print JSON instead of text
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// Where your profile (keys, certificates) is kept [default: ~/.postern]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "POSTERN_HOME",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub home: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Login(cmd::login::LoginArgs),
    Logout(cmd::logout::LogoutArgs),
    /// Show who you are, until when, and whether the cluster answers
    Status,
    Ls(cmd::ls::LsArgs),
    Ssh(cmd::ssh::SshArgs),
    /// Print an OpenSSH configuration block for ssh, scp, sftp, rsync and Ansible
    ///
    /// With the block in ~/.ssh/config, everything that uses OpenSSH reaches the cluster's servers by their full
    /// name, NAME.ssh.CLUSTER. The block holds no secret and stays valid when you log in again.
    #[command(
        after_help = "Examples:\n  postern config >> ~/.ssh/config\n  ssh root@web-1.ssh.demo\n  rsync -a site/ root@web-1.ssh.demo:/srv/site/"
    )]
    Config,
    Proxy(cmd::proxy::ProxyArgs),
    Db(cmd::db::DbArgs),
    Tokens(cmd::tokens::TokensArgs),
    Users(cmd::users::UsersArgs),
    Roles(cmd::roles::RolesArgs),
    Agents(cmd::agents::AgentsArgs),
    Locks(cmd::locks::LocksArgs),
    Audit(cmd::audit::AuditArgs),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_a_help_text() {
        for sub in Cli::command().get_subcommands() {
            assert!(
                sub.get_about().is_some(),
                "{} has no description",
                sub.get_name()
            );
        }
    }
}
