//! A PostgreSQL server (Debian: `postgresql-15`) with a data directory of its own, on a free loopback port and a Unix socket.

use super::run::{self, Run};
use super::{Lab, free_port, is_root, wait};
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// How the server is set up.
#[derive(Debug, Clone, Default)]
pub struct PostgresSpec {
    /// Directory below the lab's, and what the logs call it.
    pub name: String,
    pub tls: Option<PostgresTls>,
    /// Lines of `pg_hba.conf` for whoever comes by TCP; without any, everybody is let in (`trust`). The socket is for
    /// [`Postgres::sql`] and lets everybody in.
    pub hba: Vec<String>,
    /// Lines of `postgresql.conf`, e.g. `log_statement = all`.
    pub settings: Vec<String>,
}

/// PEM files; copied, since the server insists on owning its key.
#[derive(Debug, Clone)]
pub struct PostgresTls {
    pub key: PathBuf,
    pub certificate: PathBuf,
    /// Whose client certificates it takes (`cert` in `hba`).
    pub client_ca: Option<PathBuf>,
}

impl PostgresTls {
    /// What `postern db certs sign` has written there, agents' certificates among what the server takes.
    pub fn signed(certs: &Path) -> Self {
        PostgresTls {
            key: certs.join("server.key"),
            certificate: certs.join("server.crt"),
            client_ca: Some(certs.join("ca.crt")),
        }
    }
}

/// A running server; stopped when dropped.
pub struct Postgres {
    dir: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Postgres {
    /// Where the server's libraries are.
    pub fn lib_dir() -> Result<PathBuf> {
        Ok(Self::bin_dir()?.with_file_name("lib"))
    }

    /// Where Debian keeps its programs.
    pub fn bin_dir() -> Result<PathBuf> {
        let postgres = Self::program("postgres")?;
        Ok(postgres.parent().context("no directory")?.to_owned())
    }

    fn program(name: &str) -> Result<PathBuf> {
        let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
            .map(|dir| dir.flatten().map(|e| e.path()).collect())
            .unwrap_or_default();
        versions.sort();
        let found = versions.iter().rev().map(|v| v.join("bin").join(name));
        found
            .into_iter()
            .find(|p| p.exists())
            .with_context(|| format!("no {name} (Debian: postgresql-15)"))
    }

    /// Whether a test can have one.
    pub fn is_there() -> bool {
        Self::program("postgres").is_ok()
    }

    /// A program of the server's package, as whoever may run it: the server runs as no root.
    fn command(name: &str) -> Result<Command> {
        let mut command = Command::new(Self::program(name)?);
        if let Some(user) = owner()? {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        Ok(command)
    }

    /// Makes a data directory, and starts. The superuser is `postgres`.
    pub fn start(lab: &Arc<Lab>, spec: &PostgresSpec) -> Result<Postgres> {
        let name = if spec.name.is_empty() {
            "postgres"
        } else {
            &spec.name
        };
        let dir = lab.join(name);
        std::fs::create_dir_all(&dir)?;
        own(&dir, 0o755)?;
        let data = dir.join("data");
        let initdb = Run::new(Self::command("initdb")?)
            .args([
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
                "-D",
            ])
            .arg(&data);
        initdb.dir(&dir).ok()?;
        let port = free_port()?;
        let mut conf = format!(
            "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nfsync = off\nmax_connections = 1100\n\
             superuser_reserved_connections = 20\nlog_line_prefix = '%m [%p] '\n",
            dir.display()
        );
        let mut hba = String::from("local all all trust\nlocal replication all trust\n");
        let host = if spec.tls.is_some() {
            "hostssl"
        } else {
            "host"
        };
        if spec.hba.is_empty() {
            hba += &format!(
                "{host} all all 127.0.0.1/32 trust\n{host} replication all 127.0.0.1/32 trust\n"
            );
        }
        for line in &spec.hba {
            hba += &format!("{line}\n");
        }
        if let Some(tls) = &spec.tls {
            conf += "ssl = on\nssl_key_file = 'server.key'\nssl_cert_file = 'server.crt'\n";
            put(&tls.key, &data.join("server.key"), 0o600)?;
            put(&tls.certificate, &data.join("server.crt"), 0o644)?;
            if let Some(ca) = &tls.client_ca {
                conf += "ssl_ca_file = 'clients.crt'\n";
                put(ca, &data.join("clients.crt"), 0o644)?;
            }
        }
        for line in &spec.settings {
            conf += &format!("{line}\n");
        }
        append(&data.join("postgresql.conf"), &conf)?;
        std::fs::write(data.join("pg_hba.conf"), hba)?;
        let mut server = Postgres {
            dir,
            port,
            child: None,
        };
        server.up()?;
        Ok(server)
    }

    /// Starts it where it is stopped.
    pub fn up(&mut self) -> Result<()> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_file())?;
        let mut command = Self::command("postgres")?;
        command
            .arg("-D")
            .arg(self.dir.join("data"))
            .current_dir(&self.dir);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.child = Some(command.spawn().context("postgres")?);
        wait::holds("PostgreSQL to answer", wait::LONG, || {
            self.sql("postgres", "select 1").is_ok()
        })
        .with_context(|| self.log())
    }

    /// Stops it. `Signal::SIGINT`: at once, sessions get an error; `SIGQUIT`: as if it had crashed.
    pub fn down(&mut self, how: Signal) -> Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        kill(Pid::from_raw(child.id() as i32), how)?;
        match run::wait(&mut child, Duration::from_secs(20))? {
            Some(_) => Ok(()),
            None => bail!("PostgreSQL did not stop within 20 s: {}", self.log()),
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:PORT`, for a resource's `address`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The directory of its Unix socket, as `psql -h` takes it.
    pub fn socket_dir(&self) -> &Path {
        &self.dir
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Runs SQL as the superuser, by the socket; gives rows without decoration, one a line, columns with `|` between.
    pub fn sql(&self, database: &str, sql: &str) -> Result<String> {
        self.psql(database).args(["-c", sql]).ok()
    }

    /// The server's own `psql` as the superuser, by the socket.
    pub fn psql(&self, database: &str) -> Run {
        let run = Run::new(Command::new("psql")).env("PGCONNECT_TIMEOUT", "5");
        run.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            "postgres",
            "-d",
            database,
        ])
        .arg("-h")
        .arg(&self.dir)
        .args(["-p", &self.port.to_string()])
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read(self.log_file()).map_or_else(
            |e| e.to_string(),
            |log| String::from_utf8_lossy(&log).into_owned(),
        )
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGQUIT);
            if !matches!(run::wait(&mut child, Duration::from_secs(10)), Ok(Some(_))) {
                eprintln!(
                    "PostgreSQL in {} did not stop, and was killed",
                    self.dir.display()
                );
            }
        }
    }
}

/// Whom the server runs as: without root whoever runs the test.
fn owner() -> Result<Option<User>> {
    if !is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Some(user) = User::from_name(name)? {
            return Ok(Some(user));
        }
    }
    bail!("PostgreSQL runs as no root, and there is neither a user postgres nor nobody")
}

fn own(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    if let Some(user) = owner()? {
        std::os::unix::fs::chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    }
    Ok(())
}

fn put(from: &Path, to: &Path, mode: u32) -> Result<()> {
    std::fs::copy(from, to).with_context(|| from.display().to_string())?;
    own(to, mode)
}

fn append(file: &Path, text: &str) -> Result<()> {
    let before = std::fs::read_to_string(file)?;
    std::fs::write(file, before + text)?;
    Ok(())
}
