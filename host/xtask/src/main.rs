//! `cargo xtask …`: what a developer or CI does with this repository, each command in a file of its own.
//!
//! Nothing here asks a question, and nothing is installed outside `target/` but the Debian packages and the wasm
//! target that [`setup`] names before it installs them.

mod api;
mod bench;
mod demo;
mod examples;
mod fuzz;
mod lint;
mod paths;
mod product;
mod setup;
mod sh;
mod test;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Builds, shows, tests and measures Postern",
    bin_name = "cargo xtask"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the main job: cluster, agent behind a closed network, real ssh, roles, audit
    Demo(demo::Args),
    /// Run all tests (further arguments go to cargo-nextest, e.g. `-p postern-access` or a test's name)
    Test(test::Args),
    /// Check formatting, clippy with warnings denied, licences, bans and sources
    Lint(lint::Args),
    /// Measure: `bench ssh`; writes target/bench/SUITE.json and prints a table
    Bench(bench::Args),
    /// Fuzz the parsers of network bytes, a minute each (needs a nightly toolchain)
    Fuzz(fuzz::Args),
    /// Build the built-in plugins and put them beside the binaries
    Plugins(product::PluginArgs),
    /// Install what the other commands need, and say what can't be installed
    Setup,
    /// Generate host/api/src/gen from the .proto files again
    Api,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Demo(a) => demo::run(a),
        Command::Test(a) => test::run(a),
        Command::Lint(a) => lint::run(a),
        Command::Bench(a) => bench::run(a),
        Command::Fuzz(a) => fuzz::run(a),
        Command::Plugins(a) => product::plugins_command(a),
        Command::Setup => setup::everything(),
        Command::Api => api::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}
