//! Connects to `tcp` resources as `postern proxy` does, without a process for each: for `cargo xtask bench reload`.
//!
//! `reload_probe HOME until NAME…` prints `ready`, waits for a line, and then tries each name until its server has said
//! something: `{"at":…}`, when the last one had. `reload_probe HOME steady NAME SECONDS` opens a connection every 5 ms:
//! `{"times":[[due, ms],…],"failed":[[due, why],…]}`. Times are seconds since 1970.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{Context, Result, bail, ensure};
use postern_identity::{CaKind, TrustBundle, tls};
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Between two connections.
const PACE: Duration = Duration::from_millis(5);
/// One that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(10);

struct World {
    proxy: String,
    cluster: String,
    outer: TlsConnector,
    inner: TlsConnector,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let told = match words.as_slice() {
        [home, "until", names @ ..] => {
            let world = World::read(Path::new(home))?;
            println!("ready");
            std::io::stdin().read_line(&mut String::new())?;
            world.until(names).await?
        }
        [home, "steady", name, seconds] => {
            let world = Arc::new(World::read(Path::new(home))?);
            steady(world, name, seconds.parse()?).await?
        }
        _ => bail!("reload_probe HOME until NAME… | HOME steady NAME SECONDS"),
    };
    println!("{told}");
    Ok(())
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

async fn steady(world: Arc<World>, name: &str, seconds: f64) -> Result<Value> {
    // Not counted: what is made at the first connection only.
    world.open(name).await.context("the first connection")?;
    let began = Instant::now();
    let mut opening = Vec::new();
    for i in 0..(seconds / PACE.as_secs_f64()) as u32 {
        let due = began + PACE * i;
        tokio::time::sleep_until(due.into()).await;
        let (world, name) = (world.clone(), name.to_owned());
        opening.push(tokio::spawn(async move {
            let opened = tokio::time::timeout(LIMIT, world.open(&name)).await;
            // From when it was due: a generator that falls behind must not flatter the figures.
            let took = due.elapsed().as_secs_f64();
            (now() - took, took * 1e3, opened)
        }));
    }
    let (mut times, mut failed) = (Vec::new(), Vec::new());
    for task in opening {
        match task.await? {
            (due, took, Ok(Ok(()))) => times.push(json!([due, took])),
            (due, _, Ok(Err(e))) => failed.push(json!([due, format!("{e:#}")])),
            (due, _, Err(_)) => failed.push(json!([due, format!("nothing within {LIMIT:?}")])),
        }
    }
    Ok(json!({"times": times, "failed": failed}))
}

impl World {
    fn read(home: &Path) -> Result<World> {
        let read = |name: &str| {
            std::fs::read_to_string(home.join(name))
                .with_context(|| home.join(name).display().to_string())
        };
        let profile: Value = serde_json::from_str(&read("profile.json")?)?;
        let trust: TrustBundle = serde_json::from_str(&read("trust.json")?)?;
        let id = tls::TlsIdentity {
            chain_pem: read("tls.crt")?,
            key_pem: read("tls.key")?.into(),
        };
        Ok(World {
            proxy: profile["proxy"].as_str().context("proxy")?.into(),
            cluster: profile["cluster"].as_str().context("cluster")?.into(),
            outer: tls::client(&trust, CaKind::Host, Some(&id), &[b"postern-session"])?.into(),
            inner: tls::client(&trust, CaKind::Host, Some(&id), &[])?.into(),
        })
    }

    async fn until(&self, names: &[&str]) -> Result<Value> {
        for name in names {
            let due = Instant::now() + Duration::from_secs(60);
            while let Err(e) = self.open(name).await {
                ensure!(Instant::now() < due, "{name}: {e:#}");
                tokio::time::sleep(PACE).await;
            }
        }
        Ok(json!({"at": now()}))
    }

    /// TCP, TLS with the proxy, the tunnel's stream, TLS with the agent, the plugin, the server's first word.
    async fn open(&self, name: &str) -> Result<()> {
        let tcp = TcpStream::connect(&self.proxy).await?;
        tcp.set_nodelay(true)?;
        let proxy = ServerName::try_from(format!("proxy.{}", self.cluster))?;
        let mut io = self.outer.connect(proxy, tcp).await?;
        let frame = json!({"kind": "tcp", "name": name}).to_string();
        io.write_u32(u32::try_from(frame.len())?).await?;
        io.write_all(frame.as_bytes()).await?;
        io.flush().await?;
        let mut answer = vec![0; io.read_u32().await? as usize];
        io.read_exact(&mut answer).await?;
        let answer: Value = serde_json::from_slice(&answer)?;
        ensure!(answer["ok"] == true, "{answer}");
        let agent = ServerName::try_from(format!("{name}.tcp.{}", self.cluster))?;
        let mut io = self.inner.connect(agent, io).await?;
        io.read_u8().await?;
        let _ = io.shutdown().await;
        Ok(())
    }
}
