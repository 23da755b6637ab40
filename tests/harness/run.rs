//! Running a program to its end, with a deadline, keeping everything that it said.

use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A program about to run. It has no terminal, and sees the end of its input at once unless given one.
pub struct Run {
    command: Command,
    stdin: Vec<u8>,
    timeout: Duration,
}

/// What it did.
pub struct Ran {
    pub what: String,
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub took: Duration,
}

impl Run {
    pub fn new(command: Command) -> Self {
        Run {
            command,
            stdin: Vec::new(),
            timeout: Duration::from_secs(60),
        }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    pub fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs it to its end; an exit status other than 0 is no error here (see [`Ran::ok`]).
    pub fn run(mut self) -> Result<Ran> {
        let what = words(&self.command);
        let started = Instant::now();
        self.command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self
            .command
            .spawn()
            .with_context(|| format!("cannot start: {what}"))?;
        let stdin = child.stdin.take();
        let input = std::mem::take(&mut self.stdin);
        // Not joined: a program that never reads must not hold us; it ends when the pipe breaks.
        std::thread::spawn(move || stdin.map(|mut pipe| pipe.write_all(&input)));
        let stdout = collect(child.stdout.take());
        let stderr = collect(child.stderr.take());
        let status = wait(&mut child, self.timeout);
        let (stdout, stderr) = (finish(stdout), finish(stderr));
        let Some(status) = status? else {
            bail!(
                "still running after {:?}: {what}\n{}",
                self.timeout,
                both(&stdout, &stderr)
            );
        };
        Ok(Ran {
            what,
            status,
            stdout,
            stderr,
            took: started.elapsed(),
        })
    }

    /// Runs it; must exit with 0. Gives its stdout without the last line break.
    pub fn ok(self) -> Result<String> {
        self.run()?.ok()
    }

    /// Starts it and goes on; what it says on stderr goes to this file.
    pub fn background_to(mut self, stderr: std::fs::File) -> Result<Background> {
        let what = words(&self.command);
        self.command.stdin(Stdio::piped()).stdout(Stdio::null());
        let child = self.command.stderr(stderr).spawn();
        Ok(Background {
            child: child.with_context(|| format!("cannot start: {what}"))?,
        })
    }

    /// Starts it and goes on; [`super::Place`]'s commands die with their parent's test by [`Background`].
    pub fn background(mut self, stdout: Stdio) -> Result<Background> {
        let what = words(&self.command);
        let child = self
            .command
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(Stdio::null())
            .spawn();
        Ok(Background {
            child: child.with_context(|| format!("cannot start: {what}"))?,
        })
    }

    pub fn into_command(self) -> Command {
        self.command
    }
}

impl Ran {
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout)
            .trim_end_matches('\n')
            .to_string()
    }

    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr)
            .trim_end_matches('\n')
            .to_string()
    }

    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// It must have exited with 0.
    pub fn ok(self) -> Result<String> {
        ensure!(self.status.success(), "{}", self.told());
        Ok(self.out())
    }

    /// It must have failed, and said this on stderr (case does not matter).
    pub fn refused(self, saying: &str) -> Result<String> {
        ensure!(
            !self.status.success(),
            "should have been refused ({saying:?}), but: {}",
            self.told()
        );
        let said = both(&self.stdout, &self.stderr);
        ensure!(
            said.to_lowercase().contains(&saying.to_lowercase()),
            "refused, but without a word of {saying:?}: {}",
            self.told()
        );
        Ok(said)
    }

    /// Everything, for a failure's message.
    pub fn told(&self) -> String {
        format!(
            "{}: {}\n{}",
            self.what,
            self.status,
            both(&self.stdout, &self.stderr)
        )
    }
}

/// A child that is killed when dropped.
pub struct Background {
    child: Child,
}

impl Background {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.child.stdin.take();
        wait(&mut self.child, timeout)?.with_context(|| format!("still running after {timeout:?}"))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits; kills at the deadline and answers `None`.
pub fn wait(child: &mut Child, timeout: Duration) -> Result<Option<ExitStatus>> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if started.elapsed() > timeout {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(
            if started.elapsed().as_millis() < 100 {
                2
            } else {
                20
            },
        ));
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut all);
        }
        all
    })
}

/// A grandchild may hold the pipe open for ever; what it says after its parent's end does not count.
fn finish(reader: JoinHandle<Vec<u8>>) -> Vec<u8> {
    let started = Instant::now();
    while !reader.is_finished() && started.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(5));
    }
    if reader.is_finished() {
        reader.join().unwrap_or_default()
    } else {
        b"(pipe held open)".to_vec()
    }
}

fn both(stdout: &[u8], stderr: &[u8]) -> String {
    let cut = |b: &[u8]| {
        let s = String::from_utf8_lossy(&b[b.len().saturating_sub(4000)..]).into_owned();
        s.trim_end().to_string()
    };
    format!("stdout: {}\nstderr: {}", cut(stdout), cut(stderr))
}

fn words(c: &Command) -> String {
    let mut words = vec![c.get_program().to_string_lossy().into_owned()];
    words.extend(c.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}
