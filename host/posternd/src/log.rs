//! Where the log goes: standard error, as text for people or JSON for machines.

use postern_config::{Log, LogFormat};
use tracing_subscriber::{EnvFilter, fmt, prelude::*};

/// Installs the process's logger. `RUST_LOG` wins over the configuration.
pub fn init(log: &Log) -> anyhow::Result<()> {
    let filter = match EnvFilter::try_from_default_env() {
        Ok(filter) => filter,
        Err(_) => EnvFilter::try_new(&log.level)
            .map_err(|e| anyhow::anyhow!("log.level {:?}: {e}", log.level))?,
    };
    let registry = tracing_subscriber::registry().with(filter);
    match log.format {
        LogFormat::Text => registry
            .with(fmt::layer().with_writer(std::io::stderr).with_target(false))
            .try_init()?,
        LogFormat::Json => registry
            .with(fmt::layer().json().with_writer(std::io::stderr))
            .try_init()?,
    }
    Ok(())
}
