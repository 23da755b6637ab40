//! The configuration while the daemon runs: watched, read, checked, compared, applied (D4). One task owns the agent
//! and the configuration in force; nothing else changes either. What can't be applied changes nothing: the old one
//! stays in force, and log and status say why.

mod watch;

use crate::daemon::Surroundings;
use crate::log;
use postern_agent::{Agent, Plan};
use postern_config::{Change, Config};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch as state};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use watch::Watcher;

/// What vanished counts once it has been gone for so long: a file that is being replaced, or is half written, looks
/// the same.
const VANISHED: Duration = Duration::from_secs(5);
/// How often services that are gone altogether are forgotten.
const SWEEP: Duration = Duration::from_secs(30);

/// What `posternd status` says of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigState {
    /// Since when the configuration in force has been so.
    pub since: jiff::Timestamp,
    /// Why the files on disk are not in force.
    pub invalid: Option<String>,
}

/// What was applied, a line per change; or why nothing was.
pub type Outcome = Result<Vec<String>, String>;

enum Command {
    /// Read the files now.
    Reload(oneshot::Sender<Outcome>),
    /// What this file would change.
    Compare(PathBuf, oneshot::Sender<Outcome>),
    /// Hands over the agent and the configuration in force.
    Stop(oneshot::Sender<(Agent, Config)>),
}

/// Asks the task that owns the configuration. Cheap to clone.
#[derive(Clone)]
pub struct Reload {
    commands: mpsc::Sender<Command>,
    state: state::Receiver<ConfigState>,
}

impl Reload {
    pub fn state(&self) -> ConfigState {
        self.state.borrow().clone()
    }

    /// Reads and applies the files now, without waiting for what vanished to come back.
    pub async fn now(&self) -> Outcome {
        self.ask(Command::Reload).await
    }

    /// What `file` would change, if it were the configuration.
    pub async fn compare(&self, file: PathBuf) -> Outcome {
        self.ask(|answer| Command::Compare(file, answer)).await
    }

    async fn ask(&self, command: impl FnOnce(oneshot::Sender<Outcome>) -> Command) -> Outcome {
        let (answer, answered) = oneshot::channel();
        let stopping = || Err("the daemon is stopping".to_owned());
        if self.commands.send(command(answer)).await.is_err() {
            return stopping();
        }
        answered.await.unwrap_or_else(|_| stopping())
    }
}

/// The task; dropping it ends the agent with it.
pub struct Reloading {
    commands: mpsc::Sender<Command>,
    task: JoinHandle<()>,
}

impl Reloading {
    /// Begins with `config`, which is in force except for its services: those are started now.
    pub fn start(
        config: Config,
        path: &Path,
        agent: Agent,
        surroundings: Surroundings,
        log: Option<log::Handle>,
    ) -> (Self, Reload) {
        let (commands, asked) = mpsc::channel(8);
        let now = ConfigState {
            since: jiff::Timestamp::now(),
            invalid: None,
        };
        let (state_tx, state) = state::channel(now);
        let owner = Owner {
            watcher: Watcher::new(path, postern_agent::plugin_files(&config)),
            path: path.to_owned(),
            running: config,
            agent,
            surroundings,
            log,
            state: state_tx,
            vanished: BTreeMap::new(),
            file_gone: None,
        };
        let task = tokio::spawn(owner.run(asked));
        let reload = Reload {
            commands: commands.clone(),
            state,
        };
        (Reloading { commands, task }, reload)
    }

    /// Ends the reloading and hands over the agent and the configuration in force.
    pub async fn stop(&mut self) -> Option<(Agent, Config)> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(Command::Stop(answer)).await.ok()?;
        answered.await.ok()
    }
}

impl Drop for Reloading {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Owner {
    path: PathBuf,
    /// In force.
    running: Config,
    agent: Agent,
    surroundings: Surroundings,
    log: Option<log::Handle>,
    watcher: Watcher,
    state: state::Sender<ConfigState>,
    /// Services that are no longer in the files, and since when.
    vanished: BTreeMap<String, Instant>,
    /// Since when the file itself is gone.
    file_gone: Option<Instant>,
}

/// Why files on disk are looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// They changed, or time has passed.
    Seen,
    /// Somebody asked.
    Asked,
}

/// One edit, ready to be applied.
struct Edit {
    config: Config,
    plan: Plan,
    changes: Vec<Change>,
}

impl Edit {
    /// A line per change, with the service that it concerns.
    fn lines(&self) -> Vec<(Option<String>, String)> {
        let changes = self.changes.iter().map(|change| {
            let service = match change {
                Change::ServiceAdded { name }
                | Change::ServiceRemoved { name, .. }
                | Change::ServiceChanged { name, .. } => Some(name.clone()),
                _ => None,
            };
            (service, change.to_string())
        });
        let plugins = self.plan.plugins.iter();
        let plugins = plugins.map(|p| (Some(p.service.clone()), p.to_string()));
        changes.chain(plugins).collect()
    }
}

impl Owner {
    async fn run(mut self, mut asked: mpsc::Receiver<Command>) {
        self.begin().await;
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            let due = self.due();
            tokio::select! {
                command = asked.recv() => match command {
                    Some(Command::Reload(answer)) => {
                        let outcome = self.reload(Cause::Asked).await;
                        let _ = answer.send(outcome);
                    }
                    Some(Command::Compare(file, answer)) => {
                        let outcome = self.compare(&file).await;
                        let _ = answer.send(outcome);
                    }
                    Some(Command::Stop(answer)) => {
                        let _ = answer.send((self.agent, self.running));
                        return;
                    }
                    None => return,
                },
                () = self.watcher.changed() => {
                    let _ = self.reload(Cause::Seen).await;
                }
                () = at(due) => {
                    let _ = self.reload(Cause::Seen).await;
                }
                _ = sweep.tick() => self.agent.sweep(),
            }
        }
    }

    /// Starts what the configuration has; a service that can't run keeps no other from running.
    async fn begin(&mut self) {
        let local = self.surroundings.local(&self.running).await;
        match self.agent.plan(&self.running, &local, true).await {
            Ok(plan) => self.agent.apply(&self.running, plan, &[]),
            Err(errors) => {
                let why = joined(&errors);
                tracing::error!("no service can be started: {why}");
                self.invalid(why);
            }
        }
        // What was edited between being read and being watched.
        let _ = self.reload(Cause::Seen).await;
    }

    async fn reload(&mut self, cause: Cause) -> Outcome {
        if cause == Cause::Asked {
            self.watcher.read_elsewhere();
        }
        let config = match postern_config::load(&self.path) {
            Ok(config) => config,
            Err(e) => {
                if !self.path.exists() && cause == Cause::Seen {
                    let since = *self.file_gone.get_or_insert_with(Instant::now);
                    if since.elapsed() < VANISHED {
                        return Ok(Vec::new());
                    }
                }
                return Err(self.invalid(e.to_string()));
            }
        };
        self.file_gone = None;
        let config = self.with_vanished(config, cause);
        let edit = match self.prepare(config).await {
            Ok(edit) => edit,
            Err(why) => return Err(self.invalid(why)),
        };
        Ok(self.apply(edit))
    }

    async fn compare(&mut self, file: &Path) -> Outcome {
        let config = postern_config::load(file).map_err(|e| e.to_string())?;
        let edit = self.prepare(config).await?;
        Ok(edit.lines().into_iter().map(|(_, line)| line).collect())
    }

    /// Checks a configuration against the one in force. Changes nothing.
    async fn prepare(&mut self, config: Config) -> Result<Edit, String> {
        let changes = postern_config::diff(&self.running, &config);
        let restart: Vec<String> = changes
            .iter()
            .filter(|c| matches!(c, Change::NeedsRestart { .. }))
            .map(ToString::to_string)
            .collect();
        if !restart.is_empty() {
            return Err(format!(
                "what a running process can't change was changed, so nothing was applied: {}; restart posternd, or take it back",
                restart.join(", ")
            ));
        }
        let local = self.surroundings.local(&config).await;
        let plan = self.agent.plan(&config, &local, false).await;
        let plan = plan.map_err(|errors| joined(&errors))?;
        Ok(Edit {
            config,
            plan,
            changes,
        })
    }

    fn apply(&mut self, edit: Edit) -> Vec<String> {
        let lines = edit.lines();
        for (_, line) in &lines {
            tracing::info!("configuration: {line}");
        }
        if edit.changes.contains(&Change::LogChanged)
            && let Some(log) = &self.log
            && let Err(e) = log.set(&edit.config.log)
        {
            tracing::error!("{e:#}");
        }
        for warning in postern_config::warnings(&edit.config) {
            if !postern_config::warnings(&self.running).contains(&warning) {
                tracing::warn!("{warning}");
            }
        }
        self.agent.apply(&edit.config, edit.plan, &lines);
        self.running = edit.config;
        self.watcher
            .plugins(postern_agent::plugin_files(&self.running));
        self.state.send_if_modified(|s| {
            let before = s.clone();
            s.invalid = None;
            if !lines.is_empty() {
                s.since = jiff::Timestamp::now();
            }
            *s != before
        });
        metrics::counter!("postern_config_reloads_total", "outcome" => "ok")
            .increment(u64::from(!lines.is_empty()));
        lines.into_iter().map(|(_, line)| line).collect()
    }

    /// Nothing is changed; says why, once.
    fn invalid(&mut self, why: String) -> String {
        let news = self.state.send_if_modified(|s| {
            let news = s.invalid.as_ref() != Some(&why);
            s.invalid = Some(why.clone());
            news
        });
        if news {
            metrics::counter!("postern_config_reloads_total", "outcome" => "refused").increment(1);
            tracing::error!("configuration not applied, the one in force stays: {why}");
        }
        why
    }

    /// Puts services back that have only just vanished from the files.
    fn with_vanished(&mut self, mut config: Config, cause: Cause) -> Config {
        self.vanished
            .retain(|name, _| !config.services.contains_key(name));
        if cause == Cause::Asked {
            self.vanished.clear();
            return config;
        }
        for (name, service) in &self.running.services {
            if config.services.contains_key(name) || !service.enabled {
                continue;
            }
            let since = self.vanished.entry(name.clone());
            if since.or_insert_with(Instant::now).elapsed() < VANISHED {
                config.services.insert(name.clone(), service.clone());
            } else {
                self.vanished.remove(name);
            }
        }
        config
    }

    /// When what vanished counts.
    fn due(&self) -> Option<Instant> {
        let gone = self.vanished.values().chain(&self.file_gone);
        let to_come = gone.filter(|since| since.elapsed() < VANISHED).min();
        to_come.map(|since| *since + VANISHED)
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn joined(errors: &[impl ToString]) -> String {
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    errors.join("\n")
}
