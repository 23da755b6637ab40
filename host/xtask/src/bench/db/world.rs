//! What is measured: one PostgreSQL server with TLS and an account with a password (SCRAM), and every way to it.

use crate::bench::rows::Report;
use crate::bench::ssh::world::{CIPHER, children_cpu};
use anyhow::{Context, Result, ensure};
use nix::unistd::Uid;
use postern_tests::run::Background;
use postern_tests::{
    Agent, Cluster, Lab, Place, Postgres, PostgresSpec, PostgresTls, Run, Sshd, User, free_port,
    procfs, wait,
};
use serde_json::{Map, Value, json};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

pub const ACCOUNT: &str = "app";
/// Logs in with a certificate.
const BY_CERTIFICATE: &str = "bycert";
pub const DATABASE: &str = "bench";
const PASSWORD: &str = "benchmark";
/// pgbench's; a million rows.
const SCALE: &str = "10";

/// How one gets to the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Without a helper; the agent logs in with the password.
    Postern,
    /// The same, with a certificate for each connection, which is the default.
    PosternCertificate,
    Direct,
    /// Through OpenSSH: a jump host, and a port forwarded behind it.
    Ssh,
    Bouncer,
    Stunnel,
}

pub struct World {
    pub agent: Agent,
    pub user: User,
    cluster: Cluster,
    pub server: Postgres,
    sshd: Sshd,
    forward: Forwarder,
    bouncer: Forwarder,
    stunnel: Forwarder,
    /// What `postern db env` says, for each of the two resources.
    env: [Map<String, Value>; 2],
    pub lab: Arc<Lab>,
}

/// A program that listens on a port and passes on to the server.
struct Forwarder {
    program: Background,
    port: u16,
}

impl World {
    pub fn start(report: &Report) -> Result<World> {
        let lab = Lab::quiet()?;
        let cluster = Cluster::start(&lab)?;
        let certs = cluster.db_certs()?;
        let server = server(&lab, &certs)?;
        let password = lab.file("app.password", PASSWORD)?;
        let resource = |name: &str, auth: &str| {
            let address = server.address();
            format!(
                "[[services.db.resources]]\nname = \"{name}\"\naddress = \"{address}\"\ndirect = true\n{auth}"
            )
        };
        let by_password = format!(
            "auth = {{ method = \"password\", passwords = {{ {ACCOUNT} = {{ file = {:?} }} }} }}\n",
            password.display().to_string()
        );
        let service = "[services.db]\nplugin = \"postgres\"\n".to_owned()
            + &resource("by-password", &by_password)
            + &resource("by-certificate", "");
        let agent = cluster.agent("db-1").no_ssh();
        let agent = agent.service("postgres", &service).start()?;
        cluster.role(&json!({
            "name": "bench",
            "allow": {"postgres": {"labels": {"*": ["*"]}, "db_users": [ACCOUNT, BY_CERTIFICATE], "db_names": [DATABASE]}},
        }))?;
        let user = cluster.user_with("alice", &["bench"], &[])?;
        let env = |name: &str| -> Result<Map<String, Value>> {
            let said = user.postern()?.args(["--json", "db", "env", name]).ok()?;
            Ok(serde_json::from_str(&said)?)
        };
        let login = lab.login()?;
        let sshd = Sshd::start(&lab, &login, &Place::here().with_logins(&lab))?;
        let world = World {
            env: [env("by-password")?, env("by-certificate")?],
            forward: ssh_forward(&sshd, server.port())?,
            bouncer: bouncer(&lab, &server, &certs)?,
            stunnel: stunnel(&lab, &server, &certs)?,
            agent,
            user,
            cluster,
            server,
            sshd,
            lab,
        };
        for way in [
            Way::Postern,
            Way::PosternCertificate,
            Way::Direct,
            Way::Ssh,
            Way::Bouncer,
            Way::Stunnel,
        ] {
            let sql = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
            let ssl = world.client(way, "psql").args(["-XAtc", sql]).ok();
            let ssl = ssl.with_context(|| format!("{way:?} does not work"))?;
            // stunnel is the TLS before a server that has none.
            ensure!(
                (ssl == "t") != (way == Way::Stunnel),
                "{way:?}: ssl is {ssl:?} at the server"
            );
        }
        if super::queries::wanted(report) {
            world
                .client(Way::Direct, "pgbench")
                .args(["-i", "-q", "-s", SCALE])
                .timeout(std::time::Duration::from_secs(300))
                .ok()?;
        }
        Ok(world)
    }

    /// A client of libpq, told where the server is by its environment.
    pub fn client(&self, way: Way, program: &str) -> Run {
        let account = match way {
            Way::PosternCertificate => BY_CERTIFICATE,
            _ => ACCOUNT,
        };
        let run = Run::new(Command::new(program))
            .env("PGDATABASE", DATABASE)
            .env("PGUSER", account)
            .env("PGCONNECT_TIMEOUT", "30");
        let env = match way {
            Way::Postern => &self.env[0],
            Way::PosternCertificate => &self.env[1],
            Way::Direct => return here(run, self.server.port()),
            Way::Ssh => return here(run, self.forward.port),
            Way::Bouncer => return here(run, self.bouncer.port),
            Way::Stunnel => return here(run, self.stunnel.port),
        };
        env.iter().fold(run, |run, (key, value)| {
            run.env(key, value.as_str().unwrap_or_default())
        })
    }

    /// CPU seconds so far of what is between client and server, and of clients that have ended. The server's are the same for all.
    pub fn cpu(&self, way: Way) -> Result<f64> {
        let between = match way {
            Way::Postern | Way::PosternCertificate => {
                vec![self.cluster.auth.pid()?, self.agent.pid()?]
            }
            Way::Direct => vec![],
            Way::Ssh => vec![self.sshd.pid(), self.forward.program.pid()],
            Way::Bouncer => vec![self.bouncer.program.pid()],
            Way::Stunnel => vec![self.stunnel.program.pid()],
        };
        let between: f64 = between.into_iter().map(procfs::cpu_tree).sum();
        Ok(between + children_cpu())
    }
}

fn here(run: Run, port: u16) -> Run {
    run.env("PGHOST", "127.0.0.1")
        .env("PGPORT", port.to_string())
        .env("PGPASSWORD", PASSWORD)
        .env("PGSSLMODE", "require")
}

fn server(lab: &Arc<Lab>, certs: &Path) -> Result<Postgres> {
    let server = Postgres::start(
        lab,
        &PostgresSpec {
            tls: Some(PostgresTls::signed(certs)),
            hba: vec![
                format!("hostssl all {BY_CERTIFICATE} 127.0.0.1/32 cert"),
                "host all all 127.0.0.1/32 scram-sha-256".into(),
            ],
            settings: vec![
                "shared_buffers = '512MB'".into(),
                "max_wal_size = '4GB'".into(),
            ],
            ..PostgresSpec::default()
        },
    )?;
    let account = format!("create user {ACCOUNT} password '{PASSWORD}'");
    server.sql("postgres", &account)?;
    server.sql("postgres", &format!("create user {BY_CERTIFICATE}"))?;
    let database = format!("create database {DATABASE} owner {ACCOUNT}");
    server.sql("postgres", &database)?;
    Ok(server)
}

fn started(program: Command, port: u16) -> Result<Forwarder> {
    let program = Run::new(program).background(Stdio::null())?;
    wait::holds("a program to listen", wait::LONG, || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    })?;
    Ok(Forwarder { program, port })
}

fn ssh_forward(sshd: &Sshd, to: u16) -> Result<Forwarder> {
    let port = free_port()?;
    let mut ssh = Command::new("ssh");
    ssh.arg("-F").arg(sshd.write_ssh_config(CIPHER)?);
    ssh.args(["-N", "-L", &format!("127.0.0.1:{port}:127.0.0.1:{to}")]);
    ssh.arg("jump");
    started(ssh, port)
}

/// In session mode, which is what Postern does too.
fn bouncer(lab: &Lab, server: &Postgres, certs: &Path) -> Result<Forwarder> {
    let port = free_port()?;
    let dir = lab.join("pgbouncer");
    std::fs::create_dir_all(&dir)?;
    for file in ["server.key", "server.crt"] {
        std::fs::copy(certs.join(file), dir.join(file))?;
    }
    let d = dir.display();
    std::fs::write(
        dir.join("users.txt"),
        format!("\"{ACCOUNT}\" \"{PASSWORD}\"\n"),
    )?;
    std::fs::write(
        dir.join("pgbouncer.ini"),
        format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             pool_mode = session\nmax_client_conn = 200\ndefault_pool_size = 100\nauth_type = scram-sha-256\nauth_file = {d}/users.txt\n\
             client_tls_sslmode = require\nclient_tls_key_file = {d}/server.key\nclient_tls_cert_file = {d}/server.crt\n\
             server_tls_sslmode = require\nlogfile = {d}/log\npidfile =\n",
            server.port()
        ),
    )?;
    let mut program = Command::new("/usr/sbin/pgbouncer");
    program.arg("-q");
    // It runs as no root.
    if Uid::effective().is_root() {
        let user = nix::unistd::User::from_name("postgres")?.context("no user postgres")?;
        let own = |p: &Path| nix::unistd::chown(p, Some(user.uid), Some(user.gid));
        own(&dir)?;
        for file in std::fs::read_dir(&dir)?.flatten() {
            own(&file.path())?;
        }
        program.args(["-u", "postgres"]);
    }
    program.arg(dir.join("pgbouncer.ini"));
    started(program, port)
}

fn stunnel(lab: &Lab, server: &Postgres, certs: &Path) -> Result<Forwarder> {
    let port = free_port()?;
    let (key, cert) = (certs.join("server.key"), certs.join("server.crt"));
    let file = lab.file(
        "stunnel.conf",
        format!(
            "foreground = yes\npid =\nsyslog = no\ndebug = err\n[pg]\nprotocol = pgsql\naccept = 127.0.0.1:{port}\n\
             connect = 127.0.0.1:{}\nkey = {}\ncert = {}\n",
            server.port(),
            key.display(),
            cert.display()
        ),
    )?;
    let mut program = Command::new("stunnel");
    program.arg(file);
    started(program, port)
}
