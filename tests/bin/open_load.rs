//! Opens many SSH sessions at a steady rate and holds them all, in one process: `ssh` a thousand times would measure ssh.
//!
//! `open_load HOME RESOURCE LOGIN COUNT RATE` takes the profile of a logged-in user (POSTERN_HOME), and prints
//! `{"opened":…,"failed":…,"p50_ms":…,"p99_ms":…,"max_ms":…}`. A session is open when its command's first output is there:
//! TCP, TLS with the proxy, the tunnel's stream, SSH with certificates both ways, and the session's process.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{Context, Result, bail, ensure};
use postern_identity::{CaKind, TrustBundle, tls};
use russh::client::{self, Handler};
use russh::keys::PublicKeyOrCertificate;
use russh::keys::ssh_key::{Certificate, PrivateKey};
use russh::{ChannelMsg, cipher, kex};
use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

struct World {
    proxy: String,
    cluster: String,
    resource: String,
    login: String,
    tls: tokio_rustls::TlsConnector,
    ssh: Arc<client::Config>,
    key: Arc<PrivateKey>,
    certificate: Certificate,
}

/// The host certificate is checked by the tests with the real client; here only the load counts.
struct AnyHost;

impl Handler for AnyHost {
    type Error = russh::Error;
    async fn check_server_key(
        &mut self,
        key: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        Ok(key.certificate().is_some())
    }
}

/// Held until the end.
type Held = (client::Handle<AnyHost>, russh::Channel<client::Msg>);

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [home, resource, login, count, rate] = args.as_slice() else {
        bail!("open_load HOME RESOURCE LOGIN COUNT RATE")
    };
    let (count, rate): (u32, u32) = (count.parse()?, rate.parse()?);
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard)?;
    let world = Arc::new(World::read(Path::new(home), resource, login)?);

    // Not counted: what is made at the first session only.
    world.open().await.context("the first session")?;
    let began = Instant::now();
    let mut opening = Vec::new();
    for i in 0..count {
        let due = began + Duration::from_secs_f64(f64::from(i) / f64::from(rate));
        tokio::time::sleep_until(due.into()).await;
        let world = world.clone();
        opening.push(tokio::spawn(async move {
            // From when it was due: a generator that falls behind must not flatter the figures.
            let held = tokio::time::timeout(Duration::from_secs(30), world.open()).await;
            (due.elapsed(), held)
        }));
    }
    let (mut times, mut held, mut failed, mut why) = (Vec::new(), Vec::new(), 0u32, None);
    for task in opening {
        match task.await? {
            (took, Ok(Ok(session))) => {
                times.push(took.as_secs_f64() * 1000.0);
                held.push(session);
            }
            (_, Ok(Err(e))) => {
                failed += 1;
                why.get_or_insert(format!("{e:#}"));
            }
            (_, Err(_)) => {
                failed += 1;
                why.get_or_insert("no session within 30 s".to_string());
            }
        }
    }
    let alive = held
        .iter()
        .filter(|(handle, _)| !handle.is_closed())
        .count();
    times.sort_by(f64::total_cmp);
    let at = |q: f64| {
        times
            .get(((times.len() as f64 * q) as usize).min(times.len().saturating_sub(1)))
            .copied()
            .unwrap_or(f64::NAN)
    };
    println!(
        "{}",
        serde_json::json!({
            "opened": times.len(), "alive_at_the_end": alive, "failed": failed, "first_failure": why,
            "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0),
        })
    );
    // Ends all of them at once: the process's end closes every socket.
    std::process::exit(i32::from(failed > 0 || alive < times.len()));
}

impl World {
    fn read(home: &Path, resource: &str, login: &str) -> Result<World> {
        let read = |name: &str| {
            std::fs::read_to_string(home.join(name))
                .with_context(|| home.join(name).display().to_string())
        };
        let profile: serde_json::Value = serde_json::from_str(&read("profile.json")?)?;
        let trust: TrustBundle = serde_json::from_str(&read("trust.json")?)?;
        let id = tls::TlsIdentity {
            chain_pem: read("tls.crt")?,
            key_pem: read("tls.key")?.into(),
        };
        let ssh = client::Config {
            preferred: russh::Preferred {
                kex: Cow::Borrowed(&[kex::MLKEM768X25519_SHA256, kex::CURVE25519]),
                host_key_certificates: Cow::Borrowed(&[russh::keys::Algorithm::Ed25519]),
                cipher: Cow::Borrowed(&[cipher::AES_256_GCM]),
                ..Default::default()
            },
            inactivity_timeout: None,
            nodelay: true,
            ..Default::default()
        };
        Ok(World {
            proxy: profile["proxy"].as_str().context("proxy")?.into(),
            cluster: profile["cluster"].as_str().context("cluster")?.into(),
            resource: resource.into(),
            login: login.into(),
            tls: tls::client(&trust, CaKind::Host, Some(&id), &[b"postern-session"])?.into(),
            ssh: Arc::new(ssh),
            key: Arc::new(PrivateKey::from_openssh(read("id_ed25519")?)?),
            certificate: Certificate::from_openssh(&read("id_ed25519-cert.pub")?)?,
        })
    }

    async fn open(&self) -> Result<Held> {
        let tcp = TcpStream::connect(&self.proxy).await?;
        tcp.set_nodelay(true)?;
        let name = format!("proxy.{}", self.cluster);
        let mut io = self
            .tls
            .connect(rustls::pki_types::ServerName::try_from(name)?, tcp)
            .await?;
        let frame = serde_json::json!({"kind": "ssh", "name": self.resource}).to_string();
        io.write_u32(u32::try_from(frame.len())?).await?;
        io.write_all(frame.as_bytes()).await?;
        io.flush().await?;
        let mut answer = vec![0; io.read_u32().await? as usize];
        io.read_exact(&mut answer).await?;
        let answer: serde_json::Value = serde_json::from_slice(&answer)?;
        ensure!(answer["ok"] == true, "{answer}");
        let mut handle = client::connect_stream(self.ssh.clone(), io, AnyHost).await?;
        let in_ = handle
            .authenticate_openssh_cert(&self.login, self.key.clone(), self.certificate.clone())
            .await?;
        ensure!(in_.success(), "not admitted");
        let mut channel = handle.channel_open_session().await?;
        channel.exec(true, "echo open; exec cat").await?;
        loop {
            match channel.wait().await {
                Some(ChannelMsg::Data { data }) if data.starts_with(b"open") => {
                    return Ok((handle, channel));
                }
                Some(ChannelMsg::Close) | None => bail!("the session ended"),
                Some(_) => {}
            }
        }
    }
}
