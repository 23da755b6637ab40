//! What is counted per plugin and version. Names are stable; `docs/plugins.md` lists them.

use crate::error::TrapKind;
use metrics::{Counter, Gauge, counter, gauge};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

pub(crate) struct Metrics {
    plugin: String,
    version: String,
    calls: Counter,
    errors: Counter,
    live: Gauge,
    cpu: Gauge,
    memory_peak: Gauge,
    peak: AtomicUsize,
}

impl Metrics {
    pub(crate) fn new(plugin: &str, version: &str) -> Self {
        let labels = || {
            vec![
                metrics::Label::new("plugin", plugin.to_string()),
                metrics::Label::new("version", version.to_string()),
            ]
        };
        Metrics {
            plugin: plugin.into(),
            version: version.into(),
            calls: counter!("postern_plugin_calls_total", labels()),
            errors: counter!("postern_plugin_errors_total", labels()),
            live: gauge!("postern_plugin_instances_live", labels()),
            cpu: gauge!("postern_plugin_cpu_seconds_total", labels()),
            memory_peak: gauge!("postern_plugin_memory_peak_bytes", labels()),
            peak: AtomicUsize::new(0),
        }
    }

    pub(crate) fn called(&self, cpu: Duration) {
        self.calls.increment(1);
        self.cpu.increment(cpu.as_secs_f64());
    }

    /// A call, or an instance, that failed; `trap` where it trapped.
    pub(crate) fn failed(&self, trap: Option<TrapKind>) {
        self.errors.increment(1);
        if let Some(kind) = trap {
            counter!("postern_plugin_traps_total", "plugin" => self.plugin.clone(), "version" => self.version.clone(), "cause" => kind.as_str())
                .increment(1);
        }
    }

    pub(crate) fn memory(&self, bytes: usize) {
        if self.peak.fetch_max(bytes, Relaxed) < bytes {
            #[allow(clippy::cast_precision_loss)]
            self.memory_peak.set(self.peak.load(Relaxed) as f64);
        }
    }

    pub(crate) fn instance(&self, change: f64) {
        self.live.increment(change);
    }
}
