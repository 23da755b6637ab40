//! `posternd dev`: a whole cluster on loopback for trying things out, with one agent that
//! serves this machine by SSH and a user who is logged in.
//!
//! Nothing is short-cut: the agent joins with a token, the user enrols with the link that
//! `postern users create` prints, and logs in with the `postern` beside this program.

use crate::args::DevArgs;
use crate::daemon::{Daemon, Listeners};
use crate::{diag, log, start};
use anyhow::{Context, ensure};
use postern_api::v1::{self, admin_service_client::AdminServiceClient};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::signal::unix::{SignalKind, signal};
use tonic::transport::Channel;

const CLUSTER: &str = "dev";
const USER: &str = "dev";

pub fn run(args: &DevArgs) -> anyhow::Result<()> {
    let (dir, _throw_away) = match &args.dir {
        Some(dir) => {
            std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
            (dir.canonicalize()?, None)
        }
        None => {
            let temp = tempfile::Builder::new().prefix("postern-dev-").tempdir()?;
            (temp.path().to_path_buf(), Some(temp))
        }
    };
    log::init(&postern_config::Log {
        level: "warn".into(),
        ..Default::default()
    })?;
    start::runtime()?.block_on(serve(&dir))
}

async fn serve(dir: &Path) -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let login = login_name()?;
    let path = write_config(dir)?;
    let config = postern_config::load(&path)?;
    let mut daemon = Daemon::start(
        &config,
        &path,
        None,
        Listeners::default(),
        diag::install_metrics()?,
    )
    .await?;
    tokio::select! {
        said = introduce(dir, &config, &daemon, &login) => said?,
        _ = term.recv() => return Ok(()),
        _ = int.recv() => return Ok(()),
    }
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        died = daemon.died() => return Err(died),
    }
    daemon.drain(Duration::from_secs(2)).await;
    Ok(())
}

fn login_name() -> anyhow::Result<String> {
    let uid = nix::unistd::getuid();
    let user = nix::unistd::User::from_uid(uid)?;
    Ok(user.with_context(|| format!("uid {uid} has no name"))?.name)
}

fn write_config(dir: &Path) -> anyhow::Result<PathBuf> {
    // The port must be known before anything listens: it stands in links and profiles.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let path = dir.join("postern.toml");
    let data = dir.join("data");
    let text = format!(
        r#"version = 1
cluster = "{CLUSTER}"
data_dir = {data:?}

[auth]
listen = "127.0.0.1:0"

[proxy]
listen = "127.0.0.1:{port}"
public_addr = "127.0.0.1:{port}"

[agent]
join_params = {{ method = "token", token_file = {token:?} }}

[services.ssh]
plugin = "ssh"
# This throw-away agent runs as you, and so do its sessions.
ssh = {{ allow_same_user = true }}

[[services.ssh.resources]]
name = "here"
labels = {{ env = "dev" }}
"#,
        token = dir.join("token"),
    );
    std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    Ok(path)
}

async fn introduce(
    dir: &Path,
    config: &postern_config::Config,
    daemon: &Daemon,
    login: &str,
) -> anyhow::Result<()> {
    let mut admin = AdminServiceClient::new(postern_api::connect_unix(
        &config.data_dir.join("admin.sock"),
    ));
    join_agent(dir, &mut admin).await?;
    let home = dir.join("user");
    let link = create_user(&mut admin, login).await?;
    log_in(&home, &link).await?;
    until_ready(daemon).await?;
    let (d, h) = (dir.display(), home.display());
    let data = config.data_dir.display();
    println!(
        "A cluster runs on {addr}; its files are in {d}.
You are logged in as {USER}. In another terminal:

  export POSTERN_HOME={h} POSTERN_DATA_DIR={data}
  postern ls
  postern ssh {login}@here
  postern config > {d}/ssh_config; ssh -F {d}/ssh_config {login}@here.ssh.{CLUSTER}
  postern audit --follow
  posternd status -c {d}/postern.toml

Ctrl-C ends it.",
        addr = daemon
            .proxy()
            .map(|p| p.local_addr().to_string())
            .unwrap_or_default(),
    );
    Ok(())
}

async fn join_agent(dir: &Path, admin: &mut AdminServiceClient<Channel>) -> anyhow::Result<()> {
    let token = admin
        .create_token(v1::CreateTokenRequest {
            // What can be tried by editing the configuration.
            kinds: vec!["ssh".into(), "tcp".into(), "postgres".into()],
            ttl_seconds: 300,
            uses: 1,
            ..Default::default()
        })
        .await
        .map_err(told)?
        .into_inner()
        .token;
    // The agent has been waiting for this file.
    postern_identity::store::write_secret(&dir.join("token"), token.as_bytes())?;
    Ok(())
}

async fn create_user(
    admin: &mut AdminServiceClient<Channel>,
    login: &str,
) -> anyhow::Result<String> {
    let logins = v1::StringList {
        values: vec![login.to_owned()],
    };
    let mut request = v1::CreateUserRequest {
        name: USER.into(),
        roles: vec!["access".into()],
        traits: BTreeMap::from([("logins".to_owned(), logins)]),
        reset: false,
        ttl_seconds: 300,
    };
    let created = match admin.create_user(request.clone()).await {
        // A directory that was kept has the user already.
        Err(s) if s.code() == tonic::Code::AlreadyExists => {
            request.reset = true;
            admin.create_user(request).await
        }
        other => other,
    };
    Ok(created.map_err(told)?.into_inner().link)
}

fn told(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!(postern_api::status::describe(&status))
}

/// By the command that people use, with a password nobody needs to know.
async fn log_in(home: &Path, link: &str) -> anyhow::Result<()> {
    let postern = std::env::current_exe()?.with_file_name("postern");
    let mut child = tokio::process::Command::new(&postern)
        .args(["login", "--password-stdin", link])
        .env("POSTERN_HOME", home)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot run {}", postern.display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        let password = uuid::Uuid::new_v4().to_string();
        stdin.write_all(password.as_bytes()).await?;
        stdin.write_all(b"\n").await?;
    }
    let status = child.wait().await?;
    ensure!(status.success(), "postern login failed ({status})");
    Ok(())
}

async fn until_ready(daemon: &Daemon) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !daemon.status().ready {
        ensure!(
            tokio::time::Instant::now() < deadline,
            "the agent is not ready: {}",
            daemon.status().not_ready.join("; ")
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
