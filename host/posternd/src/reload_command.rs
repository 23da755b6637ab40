//! `posternd reload`: asks the running daemon over its diagnostic socket, and waits for the outcome.

use crate::args::ReloadArgs;
use crate::diag;
use crate::reload::Outcome;
use anyhow::Context;

pub fn run(args: &ReloadArgs) -> anyhow::Result<()> {
    let listen = diag::of(&args.config, args.data_dir.as_deref())?;
    let lines = ask(&listen, "/reload", String::new())?;
    if lines.is_empty() {
        println!("nothing has changed");
    }
    for line in lines {
        println!("{line}");
    }
    Ok(())
}

/// The daemon's answer to a POST.
pub fn ask(listen: &str, path: &str, body: String) -> anyhow::Result<Vec<String>> {
    let answer = diag::blocking(diag::request(listen, http::Method::POST, path, body))
        .with_context(|| {
            format!("no daemon answers at {listen}; is posternd running with this data_dir?")
        })?;
    let outcome: Outcome =
        serde_json::from_str(&answer).with_context(|| answer.trim().to_owned())?;
    outcome.map_err(|why| anyhow::anyhow!("nothing was applied: {why}"))
}
