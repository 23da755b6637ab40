//! What the suites share: programs, processes that end with their test, and the parts of a cluster.

mod agent;
mod bins;
pub mod cluster;
mod daemon;
mod database;
mod lab;
mod logins;
mod netns;
mod ports;
mod postgres;
pub mod procfs;
pub mod run;
mod sshd;
mod user;
pub mod wait;

pub use agent::{Agent, AgentSpec};
pub use bins::{bin, bin_dir, example_plugin, plugin, testing_plugin};
pub use cluster::{Cluster, ClusterSpec};
pub use daemon::Daemon;
pub use database::{Database, DatabaseSpec, Helper, Login};
pub use lab::{Lab, Place};
pub use logins::{EXPIRED_LOGIN, LOGIN, OTHER_LOGIN};
pub use netns::{Closed, Netns};
pub use ports::free_port;
pub use postgres::{Postgres, PostgresSpec, PostgresTls};
pub use run::{Background, Ran, Run};
pub use sshd::Sshd;
pub use user::User;

/// Whether this process is root: then agents run with logins of their own and in closed networks.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Ends a test early, saying why, where the machine lacks something.
#[macro_export]
macro_rules! skip_unless {
    ($condition:expr, $why:expr) => {
        if !$condition {
            eprintln!("skipped: {}", $why);
            return Ok(());
        }
    };
}
