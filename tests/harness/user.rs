//! A person: a profile directory, and the programs they use with it.

use super::cluster::NAME;
use super::{Agent, Cluster, Place, Run, bin};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Somebody who is logged in (or was).
pub struct User {
    pub name: String,
    pub home: PathBuf,
    pub password: String,
    place: Place,
    proxy_addr: String,
}

impl User {
    /// Sets the password by the link, as a new user does, and writes the OpenSSH configuration.
    pub fn enroll(cluster: &Cluster, name: &str, link: &str) -> Result<User> {
        let user = Self::nobody(cluster, name);
        user.postern()?
            .args(["login", "--password-stdin", link])
            .stdin(format!("{}\n", user.password))
            .ok()?;
        user.write_ssh_config()?;
        Ok(user)
    }

    /// Somebody who has a directory and never logged in.
    pub fn nobody(cluster: &Cluster, name: &str) -> User {
        User {
            name: name.into(),
            home: cluster.lab.join(&format!("home-{name}")),
            password: format!("correct horse {name} staple"),
            place: cluster.place.clone(),
            proxy_addr: cluster.proxy_addr.clone(),
        }
    }

    /// `postern` with this person's profile.
    pub fn postern(&self) -> Result<Run> {
        Ok(self
            .place
            .run(&bin("postern")?)
            .env("POSTERN_HOME", &self.home)
            .env("HOME", &self.home))
    }

    /// Logs in by password.
    pub fn login(&self, pin: &str) -> Result<Run> {
        let login =
            self.postern()?
                .args(["login", "--password-stdin", "--proxy", &self.proxy_addr]);
        Ok(login
            .args(["--user", &self.name, "--ca-pin", pin])
            .stdin(format!("{}\n", self.password)))
    }

    /// `postern config`, for `ssh -F`.
    pub fn write_ssh_config(&self) -> Result<()> {
        let block = self.postern()?.arg("config").ok()?;
        std::fs::write(self.ssh_config(), block).context("writing the OpenSSH configuration")
    }

    pub fn ssh_config(&self) -> PathBuf {
        self.home.join("openssh.config")
    }

    /// A program that speaks OpenSSH's options (`ssh`, `scp`, `sftp`), with the configuration and no questions.
    pub fn openssh(&self, program: &str) -> Run {
        let run = self
            .place
            .run(Path::new(program))
            .env("POSTERN_HOME", &self.home)
            .arg("-F")
            .arg(self.ssh_config());
        run.args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=20"])
    }

    /// `ssh login@resource.ssh.cluster …`; add the remote command with `arg`.
    pub fn ssh_as(&self, login: &str, resource: &str) -> Run {
        self.openssh("ssh")
            .arg(format!("{login}@{resource}.ssh.{NAME}"))
    }

    pub fn ssh(&self, agent: &Agent) -> Run {
        self.ssh_as(&agent.login, &agent.resource)
    }

    /// The way ssh is given to rsync, Ansible, git: one line.
    pub fn ssh_line(&self) -> String {
        let words: Vec<String> = self.place_words();
        format!(
            "{} -F {} -o BatchMode=yes",
            words.join(" "),
            self.ssh_config().display()
        )
    }

    fn place_words(&self) -> Vec<String> {
        let command = self.place.command(Path::new("ssh"));
        let mut words = vec![command.get_program().to_string_lossy().into_owned()];
        words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
        words
    }

    pub fn place(&self) -> &Place {
        &self.place
    }
}
