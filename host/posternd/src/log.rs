//! Where the log goes: standard error, as text for people or JSON for machines. Level and format can be exchanged
//! while the process runs.

use anyhow::Context;
use postern_config::{Log, LogFormat};
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, prelude::*, reload};

/// Changes how the process logs. Both formats are always there, and only what passes their filters is exchanged: a
/// layer with a filter that came later would be unknown to the registry, and panic at the next line.
#[derive(Clone)]
pub struct Handle {
    text: reload::Handle<EnvFilter, Registry>,
    json: reload::Handle<EnvFilter, Registry>,
}

impl Handle {
    /// From the next line on.
    pub fn set(&self, log: &Log) -> anyhow::Result<()> {
        let [text, json] = filters(log)?;
        self.text.reload(text).context("log")?;
        self.json.reload(json).context("log")
    }
}

/// Installs the process's logger. `RUST_LOG` wins over the configuration.
pub fn init(log: &Log) -> anyhow::Result<Handle> {
    let (layers, handle) = layers(log)?;
    tracing_subscriber::registry().with(layers).try_init()?;
    Ok(handle)
}

type Layers = Vec<Box<dyn Layer<Registry> + Send + Sync>>;

fn layers(log: &Log) -> anyhow::Result<(Layers, Handle)> {
    let [text, json] = filters(log)?;
    let (text_filter, text) = reload::Layer::new(text);
    let (json_filter, json) = reload::Layer::new(json);
    let lines = || fmt::layer().with_writer(std::io::stderr);
    let layers = vec![
        lines().with_target(false).with_filter(text_filter).boxed(),
        lines().json().with_filter(json_filter).boxed(),
    ];
    Ok((layers, Handle { text, json }))
}

/// What is written as text, and what as JSON: one of them is nothing.
fn filters(log: &Log) -> anyhow::Result<[EnvFilter; 2]> {
    let filter = match EnvFilter::try_from_default_env() {
        Ok(filter) => filter,
        Err(_) => EnvFilter::try_new(&log.level)
            .map_err(|e| anyhow::anyhow!("log.level {:?}: {e}", log.level))?,
    };
    let nothing = EnvFilter::new("off");
    Ok(match log.format {
        LogFormat::Text => [filter, nothing],
        LogFormat::Json => [nothing, filter],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_and_format_are_exchanged_while_lines_are_written() {
        let log = |level: &str, format| Log {
            level: level.into(),
            format,
        };
        let (layers, handle) = layers(&log("warn", LogFormat::Text)).unwrap();
        let subscriber = tracing_subscriber::registry().with(layers);
        tracing::subscriber::with_default(subscriber, || {
            let before = tracing::warn_span!("before").entered();
            assert!(!tracing::enabled!(tracing::Level::INFO));
            for (level, format) in [
                ("debug", LogFormat::Json),
                ("info", LogFormat::Text),
                ("info", LogFormat::Json),
            ] {
                handle.set(&log(level, format)).unwrap();
                assert!(tracing::enabled!(tracing::Level::INFO));
                tracing::info!("a line in a span of before");
                tracing::info_span!("after").in_scope(|| tracing::info!("and in one more"));
            }
            handle.set(&log("error", LogFormat::Text)).unwrap();
            assert!(!tracing::enabled!(tracing::Level::INFO));
            drop(before);
        });
    }
}
