//! The room a test works in: a temporary directory, and the places where its programs run.

use super::logins::Logins;
use super::{Netns, Run, is_root};
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;

/// A temporary directory with logins of its own. What runs in it ends before it.
pub struct Lab {
    dir: TempDir,
    logins: Option<Logins>,
    /// Print the daemons' logs when they end, for a failing test (cargo shows them only then).
    pub tell_logs: bool,
}

impl Lab {
    pub fn new() -> Result<Arc<Lab>> {
        Self::with(true)
    }

    /// Without the daemons' logs on stderr: for the demo.
    pub fn quiet() -> Result<Arc<Lab>> {
        Self::with(false)
    }

    fn with(tell_logs: bool) -> Result<Arc<Lab>> {
        let dir = tempfile::Builder::new()
            .prefix("postern-lab-")
            .tempdir()
            .context("a temporary directory")?;
        use std::os::unix::fs::PermissionsExt;
        // Other logins have homes in here; every directory that holds secrets is 0700 by itself.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
        let logins = if is_root() {
            Some(Logins::create(&dir.path().join("logins"))?)
        } else {
            None
        };
        Ok(Arc::new(Lab {
            dir,
            logins,
            tell_logs,
        }))
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file for the test's own use.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.join(name);
        std::fs::write(&path, content).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    pub fn logins(&self) -> Option<&Logins> {
        self.logins.as_ref()
    }

    /// The login that sessions run as: one of the lab's own, or without root the person who runs the test.
    pub fn login(&self) -> Result<String> {
        if self.logins.is_some() {
            return Ok(super::LOGIN.to_string());
        }
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid())?;
        Ok(user.context("the user who runs this has no name")?.name)
    }

    /// That login's home.
    pub fn home(&self) -> Result<PathBuf> {
        Ok(match &self.logins {
            Some(logins) => logins.home(super::LOGIN),
            None => std::env::var_os("HOME").context("HOME")?.into(),
        })
    }
}

/// Where a program runs: in which network, and which logins it finds.
#[derive(Clone, Default)]
pub struct Place {
    net: Option<Arc<Netns>>,
    /// What goes in front of the program.
    wrap: Vec<OsString>,
}

impl Place {
    /// The machine as it is.
    pub fn here() -> Self {
        Place::default()
    }

    pub fn net(mut self, net: &Arc<Netns>) -> Self {
        self.net = Some(net.clone());
        self
    }

    /// With the lab's logins in `/etc/passwd` (a private mount; the machine's own file stays as it is).
    pub fn with_logins(mut self, lab: &Lab) -> Self {
        if let Some(logins) = lab.logins() {
            self.wrap.extend(logins.wrapper());
        }
        self
    }

    /// With this in its environment.
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.wrap
            .extend(["env".to_owned(), format!("{key}={value}")].map(OsString::from));
        self
    }

    /// A program in this place. Its process id is the program's own: everything in front of it `exec`s.
    pub fn command(&self, program: &Path) -> Command {
        let mut words: Vec<OsString> = Vec::new();
        if let Some(net) = &self.net {
            words.extend(["ip", "netns", "exec", net.name()].map(OsString::from));
        }
        words.extend(self.wrap.iter().cloned());
        words.push(program.into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    }

    pub fn run(&self, program: &Path) -> Run {
        Run::new(self.command(program))
    }

    pub fn netns(&self) -> Option<&Arc<Netns>> {
        self.net.as_ref()
    }
}
