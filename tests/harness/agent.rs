//! Agents: their configuration, and the daemon that runs with it.

use super::cluster::NAME;
use super::{Cluster, Daemon, Place};
use anyhow::Result;
use std::ops::{Deref, DerefMut};

/// What an agent shall serve. The default: one service `ssh` with one resource, named as the agent.
pub struct AgentSpec<'a> {
    cluster: &'a Cluster,
    name: String,
    place: Place,
    labels: String,
    join_params: Option<String>,
    pin: Option<String>,
    proxy: Option<String>,
    ssh: bool,
    plugin: String,
    agent_lines: String,
    ssh_lines: String,
    services: String,
    kinds: Vec<String>,
}

/// A running agent.
pub struct Agent {
    daemon: Daemon,
    /// The login that its sessions are made for.
    pub login: String,
    /// The SSH resource's name.
    pub resource: String,
}

impl<'a> AgentSpec<'a> {
    pub(super) fn new(cluster: &'a Cluster, name: &str) -> Self {
        AgentSpec {
            cluster,
            name: name.into(),
            place: Place::here(),
            labels: "env = \"test\"".into(),
            join_params: None,
            pin: None,
            proxy: None,
            ssh: true,
            plugin: "ssh".into(),
            agent_lines: String::new(),
            ssh_lines: String::new(),
            services: String::new(),
            kinds: vec!["ssh".into()],
        }
    }

    /// Labels of the SSH resource, as the inside of a TOML table.
    pub fn labels(mut self, labels: &str) -> Self {
        self.labels = labels.into();
        self
    }

    /// This token instead of a good one.
    pub fn token(self, token: &str) -> Self {
        self.join_params(&secret_token(token))
    }

    /// Another way to join, as a TOML value.
    pub fn join_params(mut self, toml: &str) -> Self {
        self.join_params = Some(toml.into());
        self
    }

    /// This pin instead of the right one.
    pub fn pin(mut self, pin: &str) -> Self {
        self.pin = Some(pin.into());
        self
    }

    /// Another way to the proxy.
    pub fn proxy(mut self, addr: &str) -> Self {
        self.proxy = Some(addr.into());
        self
    }

    pub fn place(mut self, place: Place) -> Self {
        self.place = place;
        self
    }

    /// Another plugin for the SSH service: a built-in name or a path.
    pub fn plugin(mut self, plugin: &str) -> Self {
        self.plugin = plugin.into();
        self
    }

    /// Lines in `[agent]`.
    pub fn agent_lines(mut self, lines: &str) -> Self {
        self.agent_lines = lines.into();
        self
    }

    /// Lines in `[services.ssh]`; `settings = {…}`, `limits = {…}`, `ssh = {…}`.
    pub fn ssh_lines(mut self, lines: &str) -> Self {
        self.ssh_lines = lines.into();
        self
    }

    /// No SSH service.
    pub fn no_ssh(mut self) -> Self {
        self.ssh = false;
        self.kinds.retain(|k| k != "ssh");
        self
    }

    /// A further service of this kind, as TOML.
    pub fn service(mut self, kind: &str, toml: &str) -> Self {
        if !self.kinds.iter().any(|k| k == kind) {
            self.kinds.push(kind.into());
        }
        self.services += toml;
        self.services.push('\n');
        self
    }

    /// The configuration file.
    pub fn config(&self) -> Result<String> {
        let join_params = match &self.join_params {
            Some(toml) => toml.clone(),
            None => secret_token(&self.cluster.token(&self.kinds.join(","))?),
        };
        let proxy = self.proxy.as_deref().unwrap_or(&self.cluster.proxy_addr);
        let pin = self.pin.as_deref().unwrap_or(&self.cluster.pin);
        let mut config = format!(
            "version = 1\ncluster = \"{NAME}\"\ndata_dir = \"{{data_dir}}\"\n[log]\nlevel = \"info\"\n\
             [agent]\nproxy = \"{proxy}\"\nca_pin = [\"{pin}\"]\n\
             join_params = {join_params}\n{}\n",
            self.agent_lines
        );
        if self.ssh {
            let same_user = if self.cluster.lab.logins().is_none() {
                "ssh = { allow_same_user = true }\n"
            } else {
                ""
            };
            let ssh = if self.ssh_lines.contains("ssh =") {
                ""
            } else {
                same_user
            };
            config += &format!(
                "[services.ssh]\nplugin = \"{}\"\n{ssh}{}\n[[services.ssh.resources]]\nname = \"{}\"\nlabels = {{ {} }}\n",
                self.plugin, self.ssh_lines, self.name, self.labels
            );
        }
        Ok(config + &self.services)
    }

    /// Starts it; does not wait for anything.
    pub fn launch(self) -> Result<Agent> {
        let config = self.config()?;
        let lab = &self.cluster.lab;
        let place = self.place.with_logins(lab);
        let daemon = Daemon::start(lab, &format!("agent-{}", self.name), place, &config)?;
        Ok(Agent {
            daemon,
            login: lab.login()?,
            resource: self.name,
        })
    }

    /// Starts it and waits until its services are up.
    pub fn start(self) -> Result<Agent> {
        let mut agent = self.launch()?;
        agent.ready()?;
        Ok(agent)
    }
}

fn secret_token(token: &str) -> String {
    format!("{{ method = \"token\", token = \"{token}\" }}")
}

impl Agent {
    /// What `ssh` calls it.
    pub fn host(&self) -> String {
        format!("{}.ssh.{NAME}", self.resource)
    }
}

impl Deref for Agent {
    type Target = Daemon;
    fn deref(&self) -> &Daemon {
        &self.daemon
    }
}

impl DerefMut for Agent {
    fn deref_mut(&mut self) -> &mut Daemon {
        &mut self.daemon
    }
}
