//! `postern`, the command people type: it logs in, lists what may be reached, opens sessions
//! through the proxy, and administers the cluster over Auth's local socket.
//!
//! Everything runs on one thread. `postern proxy --stdio NAME` is what OpenSSH starts for each
//! connection, so it takes a short way past argument parsing and gRPC ([`cmd::proxy`]).
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod admin;
mod cli;
mod cmd;
mod failure;
mod frame;
mod helper;
mod link;
mod openssh;
mod out;
mod profile;
mod resolve;
mod rpc;
mod session;
mod stdio;
mod when;

use clap::Parser;
use failure::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let result = match cmd::proxy::short_way(&args) {
        Some(request) => block_on(cmd::proxy::stdio(request)).map(|()| 0),
        None => run(cli::Cli::parse()),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            // One line: inside ssh this is all the user sees of us.
            eprintln!("postern: {failure}");
            ExitCode::from(failure.code())
        }
    }
}

/// The exit status.
fn run(cli: cli::Cli) -> Result<u8, Failure> {
    use cli::Command;
    let cli::Cli { global, command } = cli;
    match command {
        Command::Login(args) => block_on(cmd::login::run(&global, args)),
        Command::Logout(args) => cmd::logout::run(&global, &args),
        Command::Status => block_on(cmd::status::run(&global)),
        Command::Ls(args) => block_on(cmd::ls::run(&global, args)),
        Command::Ssh(args) => cmd::ssh::run(&global, args),
        Command::Config => cmd::config::run(&global),
        Command::Proxy(args) => block_on(cmd::proxy::run(&global, args)),
        Command::Db(args) => return block_on(cmd::db::run(&global, args)),
        Command::Tokens(args) => block_on(cmd::tokens::run(&global, args)),
        Command::Users(args) => block_on(cmd::users::run(&global, args)),
        Command::Roles(args) => block_on(cmd::roles::run(&global, args)),
        Command::Agents(args) => block_on(cmd::agents::run(&global, args)),
        Command::Locks(args) => block_on(cmd::locks::run(&global, args)),
        Command::Audit(args) => block_on(cmd::audit::run(&global, args)),
    }
    .map(|()| 0)
}

fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(format!("cannot start: {e}")))?
        .block_on(work)
}
