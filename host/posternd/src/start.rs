//! `posternd start`: one daemon in the foreground, until a signal ends it or another process takes over.

use crate::args::StartArgs;
use crate::daemon::{Daemon, Listeners, Remains};
use crate::takeover::{self, Predecessor, Successor, TakeBack};
use crate::{diag, log};
use anyhow::Context;
use postern_config::Config;
use sd_notify::NotifyState;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub fn run(args: &StartArgs) -> anyhow::Result<()> {
    // Before an upgrade puts another program in its place.
    let program = takeover::program()?;
    let config = postern_config::load(&args.config)?;
    let log = log::init(&config.log)?;
    runtime()?.block_on(serve(&config, args, log, program))
}

/// The runtime of the daemon.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?)
}

/// What a person or systemd says to the process.
struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
    usr2: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Signals {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
            usr2: signal(SignalKind::user_defined2())?,
        })
    }

    /// The next one that ends the process.
    async fn end(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}

/// What ends the serving.
enum End {
    Signal(&'static str),
    TakeOver(Box<Successor>),
}

async fn serve(
    config: &Config,
    args: &StartArgs,
    log: log::Handle,
    program: PathBuf,
) -> anyhow::Result<()> {
    // Before anything listens, so that an early signal is not the default one.
    let mut signals = Signals::listen()?;
    for warning in postern_config::warnings(config) {
        tracing::warn!("{warning}");
    }
    let path = args.config.as_path();
    let mut before = args.take_over.then(Predecessor::at_stdin).transpose()?;
    let metrics = diag::install_metrics()?;
    let starting = async {
        let inherited = match &mut before {
            Some(before) => before.take().await?,
            None => Listeners::default(),
        };
        Daemon::start(config, path, Some(log.clone()), inherited, metrics).await
    };
    let mut daemon = tokio::select! {
        started = starting => started?,
        _ = signals.end() => return Ok(()),
    };
    if let Some(mut before) = before {
        before.serving().await?;
        let parts = daemon.watch();
        tokio::spawn(
            before.ready(move || parts.upgrade().is_none_or(|p| p.not_ready().is_empty())),
        );
    }
    sd_notify::notify(false, &[NotifyState::Ready]).ok();
    loop {
        match until_end(&mut daemon, &mut signals, &program, path).await? {
            End::Signal(name) => return stop(daemon, name, config.shutdown_timeout, signals).await,
            End::TakeOver(successor) => {
                let pid = successor.pid();
                match successor.take(daemon).await {
                    Ok(remains) => return stay_with(remains, pid, config, signals).await,
                    Err(failed) => daemon = begin_again(*failed, path, &log).await?,
                }
            }
        }
    }
}

/// Lets sessions end.
async fn stop(
    daemon: Daemon,
    signal: &str,
    limit: Duration,
    mut signals: Signals,
) -> anyhow::Result<()> {
    tracing::info!(
        "{signal}: no new sessions; waiting up to {} for the open ones (again to stop at once)",
        humantime::format_duration(limit)
    );
    sd_notify::notify(false, &[NotifyState::Stopping]).ok();
    tokio::select! {
        () = daemon.drain(limit) => tracing::info!("stopped"),
        _ = signals.end() => tracing::warn!("stopped at once"),
    }
    Ok(())
}

/// Another process is the daemon now; this one has its open sessions.
async fn stay_with(
    remains: Remains,
    pid: Option<u32>,
    config: &Config,
    mut signals: Signals,
) -> anyhow::Result<()> {
    if let Some(pid) = pid {
        sd_notify::notify(false, &[NotifyState::MainPid(pid)]).ok();
    }
    let limit = config
        .agent
        .as_ref()
        .map_or(Duration::from_secs(3600), |a| a.drain_timeout);
    tokio::select! {
        () = remains.drain(limit) => tracing::info!("the last session has ended, and this process with it"),
        _ = signals.end() => tracing::warn!("stopped at once"),
    }
    Ok(())
}

/// The new process failed after it had been given everything.
async fn begin_again(failed: TakeBack, path: &Path, log: &log::Handle) -> anyhow::Result<Daemon> {
    let TakeBack {
        remains,
        listeners,
        why,
    } = failed;
    tracing::error!(
        "the new process took over and failed ({why:#}); this one begins again, its sessions go on"
    );
    let (config, metrics) = remains.again().context("the configuration is lost")?;
    let limit = config
        .agent
        .as_ref()
        .map_or(Duration::from_secs(3600), |a| a.drain_timeout);
    tokio::spawn(remains.drain(limit));
    Daemon::start(&config, path, Some(log.clone()), listeners, metrics).await
}

async fn until_end(
    daemon: &mut Daemon,
    signals: &mut Signals,
    program: &Path,
    config: &Path,
) -> anyhow::Result<End> {
    loop {
        tokio::select! {
            _ = signals.term.recv() => return Ok(End::Signal("SIGTERM")),
            _ = signals.int.recv() => return Ok(End::Signal("SIGINT")),
            died = daemon.died() => return Err(died),
            _ = signals.hup.recv() => {
                tracing::info!("SIGHUP: reading the configuration");
                // What came of it is logged there; a long compilation must not delay other signals.
                let reload = daemon.reload();
                tokio::spawn(async move { reload.now().await });
            }
            _ = signals.usr2.recv() => {
                tracing::info!("SIGUSR2: starting {} to take over", program.display());
                let started = tokio::select! {
                    started = Successor::start(program, config) => started,
                    name = signals.end() => return Ok(End::Signal(name)),
                };
                match started {
                    Ok(successor) => return Ok(End::TakeOver(Box::new(successor))),
                    Err(e) => tracing::error!("nothing was handed over, this process goes on: {e:#}"),
                }
            }
        }
    }
}
