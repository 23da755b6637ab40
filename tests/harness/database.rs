//! PostgreSQL servers behind an agent, and somebody who may use them: what tests of databases begin with.

use super::run::{Background, Run};
use super::{Agent, Cluster, Lab, Postgres, PostgresSpec, PostgresTls, User, free_port, wait};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

const PASSWORD: &str = "a password with blanks";

/// How the agent logs in at the server, and what the server wants.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Login {
    Certificate,
    Scram,
    Md5,
    Cleartext,
    /// The server lets everybody in who comes by TLS.
    Trust,
}

/// What a test wants. The default: one server `orders` with a database of that name, the account `app` that owns it, and
/// `other`; the user alice may use the first two.
pub struct DatabaseSpec {
    login: Login,
    names: Vec<String>,
    role_options: Value,
    db_users: Vec<String>,
    db_names: Vec<String>,
    settings: Vec<String>,
    hba: Vec<String>,
    service_lines: String,
    resources: String,
}

/// A cluster with an agent before the servers. Parts end in this order.
pub struct Database {
    pub alice: User,
    pub agent: Agent,
    /// In the order of their names.
    pub servers: Vec<Postgres>,
    pub cluster: Cluster,
    pub lab: std::sync::Arc<Lab>,
}

/// A `postern proxy` for one resource, ended when dropped.
pub struct Helper {
    pub port: u16,
    pub process: Background,
    log: PathBuf,
}

impl DatabaseSpec {
    pub fn new(login: Login) -> Self {
        DatabaseSpec {
            login,
            names: vec!["orders".into()],
            role_options: json!({}),
            db_users: vec!["app".into()],
            db_names: vec!["orders".into()],
            settings: vec!["log_statement = all".into()],
            hba: vec![],
            service_lines: String::new(),
            resources: String::new(),
        }
    }

    /// `options` of the role.
    pub fn role_options(mut self, options: Value) -> Self {
        self.role_options = options;
        self
    }

    /// Another account that alice may use.
    pub fn db_user(mut self, name: &str) -> Self {
        self.db_users.push(name.into());
        self
    }

    /// Another database that alice may use.
    pub fn db_name(mut self, name: &str) -> Self {
        self.db_names.push(name.into());
        self
    }

    /// A line of the servers' `postgresql.conf`.
    pub fn setting(mut self, line: &str) -> Self {
        self.settings.push(line.into());
        self
    }

    /// A line of the servers' `pg_hba.conf`, after the one that lets agents in.
    pub fn hba(mut self, line: &str) -> Self {
        self.hba.push(line.into());
        self
    }

    /// Lines in `[services.db]`.
    pub fn service_lines(mut self, lines: &str) -> Self {
        self.service_lines += lines;
        self
    }

    /// One more server, and a resource of that name.
    pub fn server(mut self, name: &str) -> Self {
        self.names.push(name.into());
        self
    }

    /// A resource whose server is the test's own affair.
    pub fn resource(mut self, name: &str, address: &str) -> Self {
        self.resources += &resource(name, address, "");
        self
    }

    pub fn start(self) -> Result<Database> {
        let lab = Lab::new()?;
        let cluster = Cluster::start(&lab)?;
        let certs = cluster.db_certs()?;
        let mut servers = Vec::new();
        for name in &self.names {
            servers.push(self.server_of(&lab, &certs, name)?);
        }
        let file = lab.file("app.password", format!("{PASSWORD}\n"))?;
        let auth = match self.login {
            Login::Certificate => String::new(),
            _ => format!(
                "auth = {{ method = \"password\", passwords = {{ app = {{ file = \"{}\" }} }} }}\n",
                file.display()
            ),
        };
        let mut service = format!(
            "[services.db]\nplugin = \"postgres\"\n{}\n",
            self.service_lines
        );
        for (name, server) in self.names.iter().zip(&servers) {
            service += &resource(name, &server.address(), &auth);
        }
        service += &self.resources;
        let agent = cluster.agent("db-1").no_ssh();
        let agent = agent.service("postgres", &service).start()?;
        cluster.role(&json!({
            "name": "dba",
            "allow": {"postgres": {"labels": {"*": ["*"]}, "db_users": self.db_users, "db_names": self.db_names}},
            "options": self.role_options,
        }))?;
        let alice = cluster.user_with("alice", &["dba"], &[])?;
        Ok(Database {
            alice,
            agent,
            servers,
            cluster,
            lab,
        })
    }

    fn server_of(&self, lab: &std::sync::Arc<Lab>, certs: &Path, name: &str) -> Result<Postgres> {
        let method = match self.login {
            Login::Certificate => "cert",
            Login::Scram => "scram-sha-256",
            Login::Md5 => "md5",
            Login::Cleartext => "password",
            Login::Trust => "trust",
        };
        let encryption = match self.login {
            Login::Md5 => "md5",
            _ => "scram-sha-256",
        };
        let mut settings = self.settings.clone();
        settings.push(format!("password_encryption = '{encryption}'"));
        let mut hba = vec![format!("hostssl all all 127.0.0.1/32 {method}")];
        hba.extend(self.hba.iter().cloned());
        let spec = PostgresSpec {
            name: name.into(),
            tls: Some(PostgresTls::signed(certs)),
            hba,
            settings,
        };
        let server = Postgres::start(lab, &spec)?;
        server.sql(
            "postgres",
            &format!("create user app password '{PASSWORD}'"),
        )?;
        server.sql("postgres", "create user other")?;
        server.sql("postgres", "create database orders owner app")?;
        Ok(server)
    }
}

fn resource(name: &str, address: &str, auth: &str) -> String {
    format!(
        "[[services.db.resources]]\nname = \"{name}\"\naddress = \"{address}\"\nlabels = {{ env = \"test\" }}\n\
         direct = true\ntls = {{ mode = \"verify-full\" }}\n{auth}\n"
    )
}

impl Database {
    /// With a certificate for each connection, or a password; see [`DatabaseSpec`] for more.
    pub fn start(login: Login) -> Result<Database> {
        DatabaseSpec::new(login).start()
    }

    /// The first server.
    pub fn server(&self) -> &Postgres {
        &self.servers[0]
    }

    /// A port of this computer that leads to a resource.
    pub fn helper(&self, resource: &str) -> Result<Helper> {
        let port = free_port()?;
        let log = self.lab.join(&format!("helper-{port}"));
        let process = self
            .alice
            .postern()?
            .args(["proxy", &format!("{resource}.postgres"), "--port"])
            .arg(port.to_string())
            .background_to(std::fs::File::create(&log)?)?;
        wait::holds("postern proxy to listen", wait::LONG, || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        })?;
        Ok(Helper { port, process, log })
    }

    /// What `postern db env` says: clients that take these variables need no helper.
    pub fn env(&self, resource: &str) -> Result<Vec<(String, String)>> {
        let postern = self.alice.postern()?;
        let out = postern.args(["--json", "db", "env", resource]).ok()?;
        let env: serde_json::Map<String, Value> = serde_json::from_str(&out)?;
        let text = |v: &Value| v.as_str().map(str::to_owned);
        env.iter()
            .map(|(k, v)| Ok((k.clone(), text(v).with_context(|| out.clone())?)))
            .collect()
    }

    /// A program where alice sits.
    pub fn run(&self, program: &str) -> Run {
        self.alice.place().run(&PathBuf::from(program))
    }

    /// `postern db connect` to the database `orders` of the first server, as this account.
    pub fn connect(&self, account: &str, sql: &str) -> Result<Run> {
        self.connect_to("orders", account, sql)
    }

    /// And of another resource.
    pub fn connect_to(&self, resource: &str, account: &str, sql: &str) -> Result<Run> {
        let run = self.alice.postern()?;
        let run = run.args(["db", "connect", resource, "--db-user", account]);
        Ok(run.args(["--db-name", "orders", "--", "-X", "-A", "-t", "-c", sql]))
    }

    /// psql without a helper, as `app` in `orders`; rows without decoration.
    pub fn direct(&self, resource: &str) -> Result<Run> {
        let env = self.env(resource)?;
        let run = env
            .iter()
            .fold(self.run("psql"), |run, (key, value)| run.env(key, value));
        Ok(run.args(["-X", "-A", "-t", "-U", "app", "-d", "orders"]))
    }

    /// What is on record as queries, oldest first.
    pub fn queries(&self) -> Result<Vec<String>> {
        let events = self.cluster.audit()?;
        let queries = events.iter().filter(|e| e["event"] == "db.session.query");
        Ok(queries
            .map(|e| e["sql"].as_str().unwrap_or_default().to_owned())
            .collect())
    }

    /// Sessions that the agent counts as open.
    pub fn sessions(&self) -> Result<f64> {
        self.agent.metric("postern_agent_sessions")
    }
}

impl Helper {
    /// What it has said so far, which is why sessions failed.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_else(|e| e.to_string())
    }

    /// psql, pgbench, `pg_dump` and others of libpq, as `app`.
    pub fn client(&self, db: &Database, program: &str) -> Run {
        let port = self.port.to_string();
        let run = db.run(program).env("PGCONNECT_TIMEOUT", "20");
        run.args(["-h", "127.0.0.1", "-p", &port, "-U", "app"])
    }

    /// psql in `orders`; rows without decoration.
    pub fn psql(&self, db: &Database) -> Run {
        let run = self.client(db, "psql");
        run.args(["-X", "-q", "-A", "-t", "-d", "orders"])
    }
}
