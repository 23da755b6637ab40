//! A cluster, an agent whose file is edited, and somebody who uses it.

use crate::draft::{Draft, Service, pairs};
use anyhow::{Context, Result, bail};
use postern_tests::cluster::NAME;
use postern_tests::{Cluster, ClusterSpec, Daemon, Lab, Place, User, wait};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

pub struct World {
    pub lab: Arc<Lab>,
    pub cluster: Cluster,
    pub agent: Daemon,
    /// What is in its file.
    pub draft: Draft,
    pub alice: User,
    pub login: String,
}

/// What `posternd reload` said: what was applied, or why nothing was.
pub type Outcome = std::result::Result<String, String>;

impl World {
    /// An agent with these services; `auth`: lines in `[auth]`.
    pub fn start(auth: &str, services: BTreeMap<String, Service>) -> Result<World> {
        let lab = Lab::new()?;
        let cluster = ClusterSpec::new(&lab).auth_lines(auth).start()?;
        let draft = Draft {
            top: pairs(&[
                ("version", "1"),
                ("cluster", &format!("{NAME:?}")),
                ("data_dir", "\"{data_dir}\""),
                ("shutdown_timeout", "\"1s\""),
            ]),
            level: "info".into(),
            format: "text".into(),
            agent: pairs(&[
                ("proxy", &format!("{:?}", cluster.proxy_addr)),
                ("ca_pin", &format!("[{:?}]", cluster.pin)),
                ("join_params", &token(&cluster)?),
                ("forget_after", "\"0s\""),
            ]),
            services,
        };
        let place = Place::here().with_logins(&lab);
        let mut agent = Daemon::start(&lab, "agent", place, &draft.to_string())?;
        agent.ready()?;
        let login = lab.login()?;
        let alice = cluster.user("alice", &[&login])?;
        Ok(World {
            lab,
            cluster,
            agent,
            draft,
            alice,
            login,
        })
    }

    /// Another token that covers the same.
    pub fn token(&self) -> Result<String> {
        token(&self.cluster)
    }

    /// Replaces the agent's file, as a configuration manager does.
    pub fn save(&self, text: &str) -> Result<()> {
        save(&self.agent, text)
    }

    /// Saves the draft and waits for what becomes of it.
    pub fn reload(&self) -> Result<Outcome> {
        self.save(&self.draft.to_string())?;
        self.agent.reload()
    }

    /// The same, for an edit that must be applied.
    pub fn apply(&self) -> Result<String> {
        let applied = self.reload()?;
        applied.map_err(|why| anyhow::anyhow!("{why}\n{}", self.draft))
    }

    /// What comes through a resource of kind `tcp`: the greeting of the server behind it.
    pub fn fetch(&self, name: &str) -> Result<String> {
        let ran = self.alice.postern()?.args(["proxy", "--stdio"]);
        Ok(ran.arg(format!("{name}.tcp")).stdin("").run()?.out())
    }

    /// Waits until a user gets through to the server behind it.
    pub fn reachable(&self, name: &str) -> Result<()> {
        wait::holds(&format!("{name} to be reachable"), wait::LONG, || {
            self.fetch(name).is_ok_and(|out| out == GREETING)
        })
        .with_context(|| self.agent.log_tail(30))
    }
}

fn token(cluster: &Cluster) -> Result<String> {
    // Names: several hosts of a test may serve the same.
    let token = cluster.token_with(&["--kinds", "ssh,tcp,thing", "--names", "*", "--ttl", "8h"])?;
    Ok(format!("{{ method = \"token\", token = {token:?} }}"))
}

/// By rename: nobody sees half of it.
pub fn save(daemon: &Daemon, text: &str) -> Result<()> {
    let text = text.replace("{data_dir}", &daemon.data_dir().display().to_string());
    let new = daemon.dir().join("postern.new");
    std::fs::write(&new, text)?;
    Ok(std::fs::rename(&new, daemon.config_path())?)
}

/// Renamed over, as package managers do.
pub fn put(from: &Path, to: &Path) -> Result<()> {
    let new = to.with_extension("new");
    std::fs::copy(from, &new)?;
    Ok(std::fs::rename(&new, to)?)
}

/// Of `posternd status --json`, what two agents with the same file have in common once both have settled.
pub fn services(daemon: &Daemon) -> Result<Value> {
    // As `posternd status --json` prints it, also while the file is invalid.
    let (_, body) = daemon.get("/status")?;
    let status: Value = serde_json::from_str(&body)?;
    let services = status["agent"]["services"].as_array().cloned();
    let shown = services.unwrap_or_default().into_iter().map(|s| {
        let keys = [
            "name",
            "kind",
            "plugin",
            "sha256",
            "resources",
            "state",
            "reason",
            "renewal_failed",
            "rolled_back",
        ];
        keys.map(|k| (k.to_owned(), s[k].clone()))
            .into_iter()
            .collect::<serde_json::Map<_, _>>()
            .into()
    });
    let invalid = &status["config_state"]["invalid"];
    Ok(
        json!({"ready": status["ready"], "invalid": invalid, "services": shown.collect::<Vec<Value>>()}),
    )
}

/// Waits until the status of its services is that.
pub fn settles(daemon: &Daemon, wanted: &Value) -> Result<()> {
    let mut last = Value::Null;
    wait::until("the agent to settle", wait::LONG, || {
        last = services(daemon)?;
        Ok((last == *wanted).then_some(()))
    })
    .with_context(|| {
        format!(
            "{last:#}\nbut should be\n{wanted:#}\n{}",
            daemon.log_tail(60)
        )
    })
}

/// What the server behind every `tcp` resource says first.
pub const GREETING: &str = "hello";

/// A server that says hello and then repeats what it is told.
pub fn server() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || -> std::io::Result<()> {
                (&stream).write_all(GREETING.as_bytes())?;
                let mut bytes = [0u8; 4096];
                loop {
                    match (&stream).read(&mut bytes)? {
                        0 => return Ok(()),
                        n => (&stream).write_all(bytes.get(..n).unwrap_or_default())?,
                    }
                }
            });
        }
    });
    Ok(port)
}

/// `services/` of the data directory.
pub fn homes(daemon: &Daemon) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(daemon.data_dir().join("services"))? {
        match entry?.file_name().into_string() {
            Ok(name) => names.push(name),
            Err(name) => bail!("a service with the name {name:?}"),
        }
    }
    names.sort();
    Ok(names)
}
