//! Where the log goes: standard error, as text for people or JSON for machines. Level and format can be exchanged
//! while the process runs.

use anyhow::Context;
use postern_config::{Log, LogFormat};
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, prelude::*, reload};

type Sink = Box<dyn Layer<Registry> + Send + Sync>;

/// Changes how the process logs.
#[derive(Clone)]
pub struct Handle(reload::Handle<Sink, Registry>);

impl Handle {
    /// From the next line on.
    pub fn set(&self, log: &Log) -> anyhow::Result<()> {
        let sink = sink(log)?;
        self.0.reload(sink).context("log")
    }
}

/// Installs the process's logger. `RUST_LOG` wins over the configuration.
pub fn init(log: &Log) -> anyhow::Result<Handle> {
    let (layer, handle) = reload::Layer::new(sink(log)?);
    tracing_subscriber::registry().with(layer).try_init()?;
    Ok(Handle(handle))
}

fn sink(log: &Log) -> anyhow::Result<Sink> {
    let filter = match EnvFilter::try_from_default_env() {
        Ok(filter) => filter,
        Err(_) => EnvFilter::try_new(&log.level)
            .map_err(|e| anyhow::anyhow!("log.level {:?}: {e}", log.level))?,
    };
    let lines = fmt::layer().with_writer(std::io::stderr);
    Ok(match log.format {
        LogFormat::Text => lines.with_target(false).with_filter(filter).boxed(),
        LogFormat::Json => lines.json().with_filter(filter).boxed(),
    })
}
