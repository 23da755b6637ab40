//! A cluster: Auth Service and Proxy Service, in one process or in two, and what an administrator does with it.

use super::agent::AgentSpec;
use super::{Daemon, Lab, Place, Run, User, bin, free_port, wait};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Its name in every test.
pub const NAME: &str = "demo";

/// What kind of cluster a test wants.
pub struct ClusterSpec {
    lab: Arc<Lab>,
    place: Place,
    listen: String,
    split: bool,
    auth_extra: String,
}

/// A running cluster.
pub struct Cluster {
    pub lab: Arc<Lab>,
    /// Auth Service; the Proxy Service too, unless [`Cluster::proxy`] is there.
    pub auth: Daemon,
    /// The Proxy Service in a process of its own.
    pub proxy: Option<Daemon>,
    /// Where users and agents dial.
    pub proxy_addr: String,
    pub auth_addr: String,
    pub pin: String,
    pub place: Place,
}

impl ClusterSpec {
    pub fn new(lab: &Arc<Lab>) -> Self {
        let lab = lab.clone();
        ClusterSpec {
            lab,
            place: Place::here(),
            listen: "127.0.0.1".into(),
            split: false,
            auth_extra: String::new(),
        }
    }

    /// Auth and proxy in two processes, so that one can fail alone.
    pub fn split(mut self) -> Self {
        self.split = true;
        self
    }

    /// In another network, listening on that address there.
    pub fn place(mut self, place: Place, addr: &str) -> Self {
        self.place = place;
        self.listen = addr.into();
        self
    }

    /// Further lines in `[auth]`.
    pub fn auth_lines(mut self, lines: &str) -> Self {
        self.auth_extra = lines.into();
        self
    }

    pub fn start(self) -> Result<Cluster> {
        let ClusterSpec {
            lab,
            place,
            listen,
            split,
            auth_extra,
        } = self;
        let auth_addr = format!("127.0.0.1:{}", free_port()?);
        let proxy_addr = format!("{listen}:{}", free_port()?);
        let head = format!(
            "version = 1\ncluster = \"{NAME}\"\ndata_dir = \"{{data_dir}}\"\n[log]\nlevel = \"info\"\n"
        );
        let auth_part = format!("[auth]\nlisten = \"{auth_addr}\"\n{auth_extra}\n");
        let proxy_part =
            format!("[proxy]\nlisten = \"{proxy_addr}\"\npublic_addr = \"{proxy_addr}\"\n");
        if !split {
            let mut auth = Daemon::start(
                &lab,
                "cluster",
                place.clone(),
                &(head + &auth_part + &proxy_part),
            )?;
            auth.ready()?;
            return Cluster {
                lab,
                auth,
                proxy: None,
                proxy_addr,
                auth_addr,
                pin: String::new(),
                place,
            }
            .with_pin();
        }
        let mut auth = Daemon::start(&lab, "auth", place.clone(), &(head.clone() + &auth_part))?;
        auth.ready()?;
        let mut cluster = Cluster {
            lab: lab.clone(),
            auth,
            proxy: None,
            proxy_addr,
            auth_addr,
            pin: String::new(),
            place,
        }
        .with_pin()?;
        let token = cluster.admin(&["tokens", "create", "--kinds", "proxy"])?;
        let token = token["token"].as_str().context("no token")?;
        let join = format!(
            "auth_server = \"{}\"\nca_pin = [\"{}\"]\njoin_params = {{ method = \"token\", token = \"{token}\" }}\n",
            cluster.auth_addr, cluster.pin
        );
        let mut proxy = Daemon::start(
            &lab,
            "proxy",
            cluster.place.clone(),
            &(head + &proxy_part + &join),
        )?;
        proxy.ready()?;
        cluster.proxy = Some(proxy);
        Ok(cluster)
    }
}

impl Cluster {
    /// Auth and proxy in one process on loopback.
    pub fn start(lab: &Arc<Lab>) -> Result<Cluster> {
        ClusterSpec::new(lab).start()
    }

    fn with_pin(mut self) -> Result<Cluster> {
        let token = self.admin(&["tokens", "create", "--kinds", "ssh", "--ttl", "1m"])?;
        self.pin = find_pin(&token)
            .with_context(|| format!("`postern tokens create` told no pin: {token}"))?;
        Ok(self)
    }

    /// A `postern` command on the Auth host.
    pub fn admin_run(&self) -> Result<Run> {
        let run = self.place.run(&bin("postern")?);
        Ok(run
            .env("POSTERN_DATA_DIR", self.auth.data_dir())
            .env("POSTERN_HOME", self.lab.join("nobody")))
    }

    /// The same with `--json`: what it answered.
    pub fn admin(&self, args: &[&str]) -> Result<Value> {
        let out = self.admin_run()?.arg("--json").args(args).ok()?;
        if out.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&out).with_context(|| format!("not JSON: {out}"))
    }

    /// A directory with certificates of a database server on `127.0.0.1`: `server.key`, `server.crt`, `ca.crt`.
    pub fn db_certs(&self) -> Result<PathBuf> {
        let certs = self.lab.join("db-certs");
        let out = certs.display().to_string();
        self.admin(&["db", "certs", "sign", "--host", "127.0.0.1", "--out", &out])?;
        Ok(certs)
    }

    /// A join token for these kinds.
    pub fn token(&self, kinds: &str) -> Result<String> {
        self.token_with(&["--kinds", kinds])
    }

    pub fn token_with(&self, args: &[&str]) -> Result<String> {
        let made = self.admin(&[&["tokens", "create"], args].concat())?;
        Ok(made["token"]
            .as_str()
            .context("no token in the answer")?
            .to_string())
    }

    /// An agent's description, with a token that covers what the description asks for.
    pub fn agent(&self, name: &str) -> AgentSpec<'_> {
        AgentSpec::new(self, name)
    }

    /// Makes a user who may do what the role `access` allows, with these logins, and logs in.
    pub fn user(&self, name: &str, logins: &[&str]) -> Result<User> {
        self.user_with(name, &["access"], logins)
    }

    pub fn user_with(&self, name: &str, roles: &[&str], logins: &[&str]) -> Result<User> {
        let (roles, logins) = (roles.join(","), logins.join(","));
        let mut args = vec!["users", "create", name, "--roles", &roles];
        if !logins.is_empty() {
            args.extend(["--logins", &logins]);
        }
        let made = self.admin(&args)?;
        let link = made["link"]
            .as_str()
            .with_context(|| format!("no link in {made}"))?;
        User::enroll(self, name, &self.mend(link))
    }

    /// An Auth Service without a proxy in its process does not know the proxy's port, only its name.
    fn mend(&self, link: &str) -> String {
        let name = self.proxy_addr.split(':').next().unwrap_or_default();
        link.replacen(
            &format!("https://{name}/"),
            &format!("https://{}/", self.proxy_addr),
            1,
        )
    }

    /// Puts a role from JSON.
    pub fn role(&self, role: &Value) -> Result<()> {
        let name = role["name"].as_str().context("a role needs a name")?;
        let file = self
            .lab
            .file(&format!("role-{name}.json"), role.to_string())?;
        let file = file.display().to_string();
        let run = self
            .admin_run()?
            .args(["roles", "create", "--replace", "-f", &file])
            .run()?;
        ensure!(run.status.success(), "{}", run.told());
        Ok(())
    }

    /// Every audit event stored so far, oldest first.
    pub fn audit(&self) -> Result<Vec<Value>> {
        // One JSON object per line: it is a log.
        let out = self
            .admin_run()?
            .args(["--json", "audit", "--last", "0"])
            .timeout(Duration::from_secs(60))
            .ok()?;
        let lines = out.lines().filter(|l| !l.trim().is_empty());
        lines
            .map(|l| serde_json::from_str(l).with_context(|| format!("not JSON: {l}")))
            .collect()
    }

    /// Waits for an event of that name that satisfies the condition.
    pub fn audited(&self, event: &str, matches: impl Fn(&Value) -> bool) -> Result<Value> {
        wait::until(&format!("the audit event {event}"), wait::LONG, || {
            Ok(self
                .audit()?
                .into_iter()
                .find(|e| e["event"] == event && matches(e)))
        })
        .with_context(|| format!("there are: {}", self.event_names()))
    }

    fn event_names(&self) -> String {
        let events = self.audit().unwrap_or_default();
        let told: Vec<String> = events.iter().rev().take(12).map(Value::to_string).collect();
        format!("{} events, the last: {}", events.len(), told.join("\n"))
    }

    /// The daemon that listens for users and agents.
    pub fn proxy_daemon(&mut self) -> &mut Daemon {
        self.proxy.as_mut().unwrap_or(&mut self.auth)
    }

    /// Where Auth keeps its state.
    pub fn data_dir(&self) -> PathBuf {
        self.auth.data_dir()
    }
}

/// The pin is where the answer has a text `sha256:…`, alone or in a list.
fn find_pin(v: &Value) -> Option<String> {
    match v {
        Value::String(s) if s.starts_with("sha256:") => Some(s.clone()),
        Value::Array(a) => a.iter().find_map(find_pin),
        Value::Object(o) => o.values().find_map(find_pin),
        _ => None,
    }
}
