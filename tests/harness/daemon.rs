//! One `posternd` process: its configuration, its log, and what a test does to it.

use super::{Lab, Place, Run, bin, wait};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// A `posternd start`; killed when dropped.
pub struct Daemon {
    pub name: String,
    lab: Arc<Lab>,
    place: Place,
    dir: PathBuf,
    child: Option<Child>,
    /// The process that took over from `child`.
    successor: Option<u32>,
}

impl Daemon {
    /// Writes `config` (`{data_dir}` in it is replaced) and starts a daemon with it; does not wait for anything.
    pub fn start(lab: &Arc<Lab>, name: &str, place: Place, config: &str) -> Result<Daemon> {
        let mut daemon = Self::prepare(lab, name, place, config)?;
        daemon.launch()?;
        Ok(daemon)
    }

    /// Writes the configuration only.
    pub fn prepare(lab: &Arc<Lab>, name: &str, place: Place, config: &str) -> Result<Daemon> {
        let dir = lab.join(name);
        std::fs::create_dir_all(&dir)?;
        let daemon = Daemon {
            name: name.into(),
            lab: lab.clone(),
            place,
            dir,
            child: None,
            successor: None,
        };
        daemon.write_config(config)?;
        Ok(daemon)
    }

    pub fn write_config(&self, config: &str) -> Result<()> {
        let config = config.replace("{data_dir}", &self.data_dir().display().to_string());
        Ok(std::fs::write(self.config_path(), config)?)
    }

    /// Starts it (again).
    pub fn launch(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let mut command = self.place.command(&bin("posternd")?);
        command.arg("start").arg("-c").arg(self.config_path());
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .env("NO_COLOR", "1");
        self.child = Some(
            command
                .spawn()
                .with_context(|| format!("cannot start posternd ({})", self.name))?,
        );
        Ok(())
    }

    pub fn config_path(&self) -> PathBuf {
        self.dir.join("postern.toml")
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    pub fn pid(&self) -> Result<u32> {
        if let Some(pid) = self.successor {
            return Ok(pid);
        }
        Ok(self
            .child
            .as_ref()
            .with_context(|| format!("{} does not run", self.name))?
            .id())
    }

    pub fn log(&self) -> String {
        let content = std::fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&content).into_owned()
    }

    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Waits for a line of the log.
    pub fn wait_log(&self, needle: &str, timeout: Duration) -> Result<()> {
        wait::holds(
            &format!("{needle:?} in the log of {}", self.name),
            timeout,
            || self.log().contains(needle),
        )
        .with_context(|| self.log_tail(20))
    }

    /// Waits until `/readyz` says so.
    pub fn ready(&mut self) -> Result<()> {
        self.ready_within(wait::LONG)
    }

    pub fn ready_within(&mut self, timeout: Duration) -> Result<()> {
        let mut last = String::new();
        let waited = wait::until(&format!("{} to be ready", self.name), timeout, || {
            if let Some(status) = self
                .child
                .as_mut()
                .and_then(|c| c.try_wait().transpose())
                .transpose()?
            {
                bail!("{} ended ({status}) before it was ready", self.name);
            }
            match self.get("/readyz") {
                Ok((200, _)) => return Ok(Some(())),
                Ok((code, body)) => last = format!("{code}: {}", body.trim()),
                Err(e) => last = format!("{e:#}"),
            }
            Ok(None)
        });
        waited.with_context(|| format!("{last}\n--- log of {}:\n{}", self.name, self.log_tail(40)))
    }

    /// One GET on the diagnostic socket: status code and body.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        let mut socket = UnixStream::connect(self.data_dir().join("posternd.sock"))?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(
            socket,
            "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        let code = head
            .split(' ')
            .nth(1)
            .and_then(|c| c.parse().ok())
            .context("no status code")?;
        Ok((code, body.to_string()))
    }

    /// `posternd status --json`, as the operator would.
    pub fn status(&self) -> Result<Value> {
        let status = Run::new(self.place.command(&bin("posternd")?));
        let out = status
            .args(["status", "--json", "-c"])
            .arg(self.config_path())
            .ok()?;
        Ok(serde_json::from_str(&out)?)
    }

    /// `posternd reload`, as the operator would: what was applied, or why nothing was.
    pub fn reload(&self) -> Result<std::result::Result<String, String>> {
        let reload = Run::new(self.place.command(&bin("posternd")?));
        // By the data directory: the file may be one that can't be read.
        let ran = reload.args(["reload", "--data-dir"]);
        let ran = ran.arg(self.data_dir()).run()?;
        if ran.status.success() {
            return Ok(Ok(ran.out()));
        }
        ensure!(ran.err().contains("nothing was applied"), "{}", ran.told());
        Ok(Err(ran.err()))
    }

    /// One service's part of the status.
    pub fn service(&self, name: &str) -> Result<Value> {
        let (_, body) = self.get("/status")?;
        let status: Value = serde_json::from_str(&body)?;
        let services = status["agent"]["services"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        services
            .into_iter()
            .find(|s| s["name"] == name)
            .with_context(|| format!("no service {name:?} in {body}"))
    }

    /// Waits until the service is in this state; gives the reason that it tells.
    pub fn service_state(&self, name: &str, state: &str, timeout: Duration) -> Result<String> {
        let mut last = String::new();
        wait::until(
            &format!("service {name:?} of {} to be {state}", self.name),
            timeout,
            || {
                let Ok(service) = self.service(name) else {
                    return Ok(None);
                };
                last = service.to_string();
                let reason = service["reason"].as_str().unwrap_or_default().to_string();
                Ok((service["state"] == state).then_some(reason))
            },
        )
        .with_context(|| format!("{last}\n{}", self.log_tail(20)))
    }

    /// A metric's value, summed over its labels.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let (_, body) = self.get("/metrics")?;
        let lines = body.lines().filter(|l| {
            l.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(' ') || rest.starts_with('{'))
        });
        Ok(lines
            .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
            .fold(0.0, |sum, value| sum + value))
    }

    pub fn is_running(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|c| matches!(c.try_wait(), Ok(None)))
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()?)?;
        Ok(kill(Pid::from_raw(pid), signal)?)
    }

    /// SIGUSR2: another process takes over. Returns the old one, which goes on until its sessions have ended.
    pub fn hand_over(&mut self) -> Result<Child> {
        let before = self.pid()?;
        ensure!(self.successor.is_none(), "once is enough");
        self.signal(Signal::SIGUSR2)?;
        let waited = wait::until("another process to take over", wait::LONG, || {
            let Ok((200, body)) = self.get("/status") else {
                return Ok(None);
            };
            let status: Value = serde_json::from_str(&body)?;
            let pid = status["pid"].as_u64().and_then(|p| u32::try_from(p).ok());
            Ok(pid.filter(|pid| *pid != before))
        });
        self.successor = Some(waited.with_context(|| self.log_tail(20))?);
        self.child.take().context("does not run")
    }

    /// As a power cut would: no goodbye.
    pub fn kill9(&mut self) -> Result<()> {
        let mut child = self.child.take().context("does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// SIGTERM, and its end.
    pub fn stop(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.ended(timeout)
    }

    /// Waits for it to end by itself.
    pub fn ended(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let mut child = self.child.take().context("does not run")?;
        match super::run::wait(&mut child, timeout)? {
            Some(status) => Ok(status),
            None => bail!(
                "{} did not end within {timeout:?} (killed)\n{}",
                self.name,
                self.log_tail(40)
            ),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(pid) = self.successor.and_then(|p| i32::try_from(p).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if self.lab.tell_logs {
            eprintln!("--- log of {}:\n{}", self.name, self.log_tail(60));
        }
    }
}
