//! `posternd plugin check` and `posternd plugin run`: for plugin authors. What is checked and how a script is played is in
//! `postern-plugin`; here are files, output and exit status.

mod cache;
mod describe;

use crate::args::{PluginCommand, PluginFile, PluginRunArgs};
use crate::start;
use anyhow::{Context, bail, ensure};
use postern_plugin::script::Script;
use postern_plugin::{Limits, Plugin, PluginSource};
use serde_json::{Map, Value};
use std::path::Path;
use tracing_subscriber::{filter::filter_fn, fmt, prelude::*};

pub fn run(command: &PluginCommand) -> anyhow::Result<()> {
    show_the_plugins_log()?;
    start::runtime()?.block_on(async {
        match command {
            PluginCommand::Check(args) => check(&args.plugin).await,
            PluginCommand::Run(args) => play(args).await,
        }
    })
}

/// What the plugin writes, by `log` or on stderr, is for its author; what the host notes about it is in our own output.
fn show_the_plugins_log() -> anyhow::Result<()> {
    let by_plugin = filter_fn(|event| {
        event.target() == "postern::plugin" && event.fields().field("version").is_some()
    });
    let layer = fmt::layer()
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .with_ansi(false);
    // Not by `try_init`: it also asks for all that the compiler says by the `log` crate, which doubles its work.
    let subscriber = tracing_subscriber::registry().with(layer.with_filter(by_plugin));
    Ok(tracing::subscriber::set_global_default(subscriber)?)
}

async fn check(args: &PluginFile) -> anyhow::Result<()> {
    let (plugin, _cache) = load(args).await?;
    let settings = settings(args)?;
    if let Some(settings) = &settings {
        plugin
            .validate(&Value::Object(settings.clone()).to_string())
            .await?;
    }
    if args.json {
        println!("{:#}", describe::json(&plugin)?);
        return Ok(());
    }
    print!("{}", describe::text(&plugin, args)?);
    if let Some(file) = &args.settings {
        println!("\n{}: the plugin accepts these settings", file.display());
    }
    Ok(())
}

async fn play(args: &PluginRunArgs) -> anyhow::Result<()> {
    let file = args.script.display();
    let text =
        std::fs::read_to_string(&args.script).with_context(|| format!("cannot read {file}"))?;
    let script = Script::parse(&text).with_context(|| file.to_string())?;
    let settings = settings(&args.plugin)?;
    let (plugin, _cache) = load(&args.plugin).await?;
    let report = script.play(&plugin, settings.as_ref()).await;
    if args.plugin.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    match report.failure {
        Some(failure) => Err(failure).with_context(|| file.to_string()),
        None if args.plugin.json => Ok(()),
        None => {
            println!(
                "{file}: {} played, {} met",
                count(report.sessions.len(), "session"),
                count(report.checked, "expectation")
            );
            Ok(())
        }
    }
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// As a service would load it. What is given besides has to live as long as the plugin.
async fn load(args: &PluginFile) -> anyhow::Result<(Plugin, cache::Cached)> {
    let (runtime, cached) = cache::runtime()?;
    let file = args.file.display().to_string();
    ensure!(
        args.file.is_file() || !args.file.exists(),
        "{file} is not a file; name the component that was built, e.g. target/wasm32-wasip2/release/NAME.wasm"
    );
    let limits = Limits {
        memory: Some(args.memory_mb as usize * (1 << 20)),
        cpu_ms_per_call: args.cpu_ms_per_call,
    };
    let source = PluginSource::file(&file, &args.file);
    let plugin = runtime.load(&source, limits).await?;
    Ok((plugin, cached))
}

/// `--settings`: TOML, or JSON by its name.
fn settings(args: &PluginFile) -> anyhow::Result<Option<Map<String, Value>>> {
    let Some(path) = &args.settings else {
        return Ok(None);
    };
    let file = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {file}"))?;
    let value: Value = if is_json(path) {
        serde_json::from_str(&text).with_context(|| file.to_string())?
    } else {
        toml::from_str(&text).with_context(|| file.to_string())?
    };
    match value {
        Value::Object(settings) => Ok(Some(settings)),
        _ => bail!("{file}: settings are an object of names and values"),
    }
}

fn is_json(path: &Path) -> bool {
    path.extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("json"))
}
