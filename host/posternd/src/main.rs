//! `posternd`: the daemon. Runs what its configuration has a section for: Auth Service,
//! Proxy Service, the agent's services.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod args;
mod check;
mod daemon;
mod dev;
mod diag;
mod join_key;
mod lockfile;
mod log;
mod plugin;
mod reload;
mod reload_command;
mod start;
mod status;
mod takeover;

use std::process::ExitCode;

fn main() -> ExitCode {
    // First of all: the re-executed process that becomes a user's shell. Nothing may be set up before.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|a| a == "session-child")
    {
        postern_sshd::session_child_main();
    }
    let outcome = match <args::Args as clap::Parser>::parse().command {
        args::Command::Start(a) => start::run(&a),
        args::Command::Check(a) => check::run(&a),
        args::Command::Status(a) => status::run(&a),
        args::Command::Reload(a) => reload_command::run(&a),
        args::Command::Dev(a) => dev::run(&a),
        args::Command::Plugin(a) => plugin::run(&a),
        args::Command::JoinKey(a) => join_key::run(&a),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // The cause is part of the sentence: errors here are worded for operators.
            eprintln!("posternd: {e:#}");
            ExitCode::FAILURE
        }
    }
}
