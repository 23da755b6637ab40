//! `posternd check FILE`.

use crate::args::CheckArgs;
use crate::{diag, reload_command};
use anyhow::Context;

pub fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let config = postern_config::load(&args.config)?;
    for warning in postern_config::warnings(&config) {
        eprintln!("warning: {warning}");
    }
    let runs: Vec<String> = [
        config.auth.as_ref().map(|_| "Auth Service".to_owned()),
        config.proxy.as_ref().map(|_| "Proxy Service".to_owned()),
    ]
    .into_iter()
    .flatten()
    .chain(
        config
            .services
            .iter()
            .filter(|(_, s)| s.enabled)
            .map(|(n, _)| format!("service {n}")),
    )
    .collect();
    let runs = if runs.is_empty() {
        "nothing: there is no [auth], [proxy] or enabled service".to_owned()
    } else {
        runs.join(", ")
    };
    println!("{}: valid; it runs {runs}", args.config.display());
    if !args.against_running {
        return Ok(());
    }
    let file = std::path::absolute(&args.config).context("--against-running")?;
    let body = file.to_str().context("the path is not UTF-8")?.to_owned();
    let lines = reload_command::ask(&diag::address(&config), "/compare", body)?;
    if lines.is_empty() {
        println!("it changes nothing in the running daemon");
    } else {
        println!("in the running daemon it changes:");
    }
    for line in lines {
        println!("  {line}");
    }
    Ok(())
}
