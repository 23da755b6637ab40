//! `posternd start`: one daemon in the foreground, until a signal.

use crate::args::StartArgs;
use crate::daemon::Daemon;
use crate::log;
use postern_config::Config;
use std::path::Path;
use tokio::signal::unix::{SignalKind, signal};

pub fn run(args: &StartArgs) -> anyhow::Result<()> {
    let config = postern_config::load(&args.config)?;
    let log = log::init(&config.log)?;
    runtime()?.block_on(serve(&config, &args.config, log))
}

/// The runtime of the daemon.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?)
}

async fn serve(config: &Config, path: &Path, log: log::Handle) -> anyhow::Result<()> {
    // Before anything listens, so that an early signal is not the default one.
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let mut hup = signal(SignalKind::hangup())?;
    for warning in postern_config::warnings(config) {
        tracing::warn!("{warning}");
    }
    let mut daemon = tokio::select! {
        started = Daemon::start(config, path, Some(log)) => started?,
        _ = term.recv() => return Ok(()),
        _ = int.recv() => return Ok(()),
    };
    sd_notify::notify(false, &[sd_notify::NotifyState::Ready]).ok();
    let reload = daemon.reload();
    let name = loop {
        tokio::select! {
            _ = term.recv() => break "SIGTERM",
            _ = int.recv() => break "SIGINT",
            died = daemon.died() => return Err(died),
            _ = hup.recv() => {
                tracing::info!("SIGHUP: reading the configuration");
                // What came of it is logged there; a long compilation must not delay other signals.
                let reload = reload.clone();
                tokio::spawn(async move { reload.now().await });
            }
        }
    };
    tracing::info!(
        "{name}: no new sessions; waiting up to {} for the open ones (again to stop at once)",
        humantime::format_duration(config.shutdown_timeout)
    );
    sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]).ok();
    tokio::select! {
        () = daemon.drain(config.shutdown_timeout) => tracing::info!("stopped"),
        _ = term.recv() => tracing::warn!("stopped at once"),
        _ = int.recv() => tracing::warn!("stopped at once"),
    }
    Ok(())
}
