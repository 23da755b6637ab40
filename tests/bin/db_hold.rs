//! Opens many connections to a database and holds them, in one process: a thousand `psql` would be another measurement.
//!
//! `db_hold HOME RESOURCE ACCOUNT DATABASE COUNT` takes the profile of a logged-in user (POSTERN_HOME) and connects without a
//! helper (`direct = true`). When all are open it says `held`; a line on stdin later it asks one query on each, one after
//! another, and prints `{"opened":…,"failed":…,"p50_ms":…,"p99_ms":…,"max_ms":…}`. It ends with its stdin.

use anyhow::{Context, Result, bail};
use postern_identity::{CaKind, TrustBundle, tls};
use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Connections that are being opened at a time.
const AT_ONCE: usize = 16;

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [home, resource, account, database, count] = args.as_slice() else {
        bail!("db_hold HOME RESOURCE ACCOUNT DATABASE COUNT")
    };
    let (config, tls) = read(Path::new(home), resource, account, database)?;
    let held = open(config, tls, count.parse()?).await?;
    println!("held");
    let mut lines = std::io::stdin().lock().lines();
    if lines.next().is_none() {
        return Ok(());
    }
    let (mut times, mut why) = (Vec::new(), None);
    for client in &held {
        let began = Instant::now();
        let asked = tokio::time::timeout(Duration::from_secs(30), client.simple_query("select 1"));
        match asked.await {
            Ok(Ok(_)) => times.push(began.elapsed().as_secs_f64() * 1000.0),
            other => drop(why.get_or_insert(format!("{other:?}"))),
        }
    }
    times.sort_by(f64::total_cmp);
    let at = |q: f64| {
        let i = (times.len() as f64 * q) as usize;
        times.get(i.min(times.len().saturating_sub(1))).copied()
    };
    println!(
        "{}",
        serde_json::json!({
            "opened": held.len(), "failed": held.len() - times.len(), "first_failure": why,
            "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0),
        })
    );
    lines.next();
    Ok(())
}

async fn open(config: Config, tls: MakeRustlsConnect, count: usize) -> Result<Vec<Client>> {
    let (config, room) = (Arc::new(config), Arc::new(Semaphore::new(AT_ONCE)));
    let opening: Vec<_> = (0..count)
        .map(|_| {
            let (config, tls, room) = (config.clone(), tls.clone(), room.clone());
            tokio::spawn(async move {
                let _one = room.acquire().await?;
                let (client, connection) = config.connect(tls).await?;
                tokio::spawn(connection);
                anyhow::Ok(client)
            })
        })
        .collect();
    let mut held = Vec::with_capacity(count);
    for task in opening {
        held.push(task.await??);
    }
    Ok(held)
}

fn read(
    home: &Path,
    resource: &str,
    account: &str,
    database: &str,
) -> Result<(Config, MakeRustlsConnect)> {
    let read = |name: &str| {
        let path = home.join(name);
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    let profile: serde_json::Value = serde_json::from_str(&read("profile.json")?)?;
    let trust: TrustBundle = serde_json::from_str(&read("trust.json")?)?;
    let id = tls::TlsIdentity {
        chain_pem: read("tls.crt")?,
        key_pem: read("tls.key")?.into(),
    };
    let client = tls::client(&trust, CaKind::Host, Some(&id), &[])?;
    let proxy: std::net::SocketAddr = profile["proxy"].as_str().context("proxy")?.parse()?;
    let cluster = profile["cluster"].as_str().context("cluster")?;
    let mut config = Config::new();
    config
        .host(format!("{resource}.postgres.{cluster}"))
        .hostaddr(proxy.ip())
        .port(proxy.port())
        .user(account)
        .dbname(database)
        .ssl_mode(SslMode::Require)
        .connect_timeout(Duration::from_secs(30));
    Ok((config, MakeRustlsConnect::new(Arc::unwrap_or_clone(client))))
}
