//! A cluster in a test: its CAs, a logged-in profile, and a proxy that speaks the helper path and
//! plays the agents behind it.

use postern_identity::{
    Ca, CaKind, ServiceKeys, TlsIdentity, TrustBundle, UserIdentity, Validity, store, tls,
};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

pub struct Cluster {
    pub dir: tempfile::TempDir,
    pub address: SocketAddr,
    agents: Arc<Agents>,
    // Ends with the test.
    _proxy: JoinSet<()>,
}

/// What plays the agents: certificates for their ends.
pub struct Agents {
    host: Ca,
    user: Ca,
    trust: TrustBundle,
    /// Where sshd's files are.
    sshd: PathBuf,
}

fn validity() -> Validity {
    Validity::for_ttl(Duration::from_secs(600))
}

pub fn me() -> String {
    nix::unistd::User::from_uid(nix::unistd::getuid())
        .unwrap()
        .unwrap()
        .name
}

impl Cluster {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (host, user) = (
            Ca::generate(CaKind::Host, "demo").unwrap(),
            Ca::generate(CaKind::User, "demo").unwrap(),
        );
        let trust = TrustBundle {
            cluster: "demo".into(),
            cas: vec![host.public(), user.public()],
        };
        let agents = Arc::new(Agents {
            host,
            user,
            trust,
            sshd: dir.path().join("sshd"),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut proxy = JoinSet::new();
        proxy.spawn(accept(listener, agents.clone()));
        let cluster = Cluster {
            dir,
            address,
            agents,
            _proxy: proxy,
        };
        let keys = ServiceKeys::generate();
        cluster.log_in(&cluster.home(), &keys, &cluster.agents.user, 3600);
        cluster
    }

    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// Writes a profile as `postern login` does; `ca` signs the certificates.
    pub fn log_in(&self, home: &Path, keys: &ServiceKeys, ca: &Ca, valid_for: i64) {
        let (agents, login) = (&self.agents, me());
        let alice = UserIdentity {
            name: "alice".into(),
            roles: vec!["access".into()],
            traits: Default::default(),
        };
        let tls_cert = ca.sign_tls_user(&keys.spki(), &alice, validity()).unwrap();
        let ssh_cert = ca
            .sign_ssh_user(
                &keys.ssh_public(),
                &alice,
                std::slice::from_ref(&login),
                validity(),
            )
            .unwrap();
        let host_key = agents.host.public().ssh.unwrap();
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs() as i64;
        store::private_dir(home).unwrap();
        let write = |name: &str, text: &str| {
            store::write_secret(&home.join(name), text.as_bytes()).unwrap()
        };
        write("tls.key", &keys.x509_key_pem);
        write("tls.crt", &tls::cert_pem(&tls_cert));
        write("id_ed25519", &keys.ssh_key);
        write("id_ed25519-cert.pub", &format!("{}\n", ssh_cert.trim_end()));
        write(
            "known_hosts",
            &format!("@cert-authority *.ssh.demo {}\n", host_key.trim_end()),
        );
        store::write_json(&home.join("trust.json"), &agents.trust).unwrap();
        let profile = serde_json::json!({
            "cluster": "demo", "proxy": self.address.to_string(), "user": "alice", "ca_pins": [agents.host.public().pin()],
            "not_after": now + valid_for, "roles": ["access"], "logins": [login],
        });
        store::write_json(&home.join("profile.json"), &profile).unwrap();
    }

    /// A second user CA, which the cluster does not know.
    pub fn foreign_ca() -> Ca {
        Ca::generate(CaKind::User, "demo").unwrap()
    }

    /// Prepares the real sshd as the agent of web-1 (with a certificate) and bare-1 (without).
    /// `None`, said on standard error, where there is none to run.
    pub fn sshd(&self) -> Option<()> {
        if !Path::new("/usr/sbin/sshd").exists() {
            eprintln!("skipped: no OpenSSH server here (Debian: apt install openssh-server)");
            return None;
        }
        // sshd refuses to start without it.
        let _ = std::fs::create_dir_all("/run/sshd");
        let dir = &self.agents.sshd;
        store::private_dir(dir).unwrap();
        let keys = ServiceKeys::generate();
        let cert = self
            .agents
            .host
            .sign_ssh_host(&keys.ssh_public(), &["web-1.ssh.demo".into()], validity())
            .unwrap();
        store::write_secret(&dir.join("key"), keys.ssh_key.as_bytes()).unwrap();
        store::write_secret(&dir.join("key-cert.pub"), cert.as_bytes()).unwrap();
        store::write_secret(
            &dir.join("user_ca"),
            self.agents.user.public().ssh.unwrap().as_bytes(),
        )
        .unwrap();
        let common = format!(
            "HostKey {0}/key\nTrustedUserCAKeys {0}/user_ca\nAuthorizedKeysFile none\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n",
            dir.display()
        );
        std::fs::write(
            dir.join("web-1"),
            format!("{common}HostCertificate {}/key-cert.pub\n", dir.display()),
        )
        .unwrap();
        std::fs::write(dir.join("bare-1"), common).unwrap();
        Some(())
    }
}

async fn accept(listener: TcpListener, agents: Arc<Agents>) {
    let mut sessions = JoinSet::new();
    let identity = agents.server("proxy.demo");
    let config = tls::server(
        &identity,
        tls::ClientAuth::Required(&agents.trust, &[CaKind::User]),
        &[b"postern-session"],
    )
    .unwrap();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let (acceptor, agents) = (TlsAcceptor::from(config.clone()), agents.clone());
        sessions.spawn(async move {
            if let Err(e) = agents.session(acceptor, tcp).await {
                eprintln!("proxy: {e}");
            }
        });
    }
}

impl Agents {
    fn server(&self, name: &str) -> TlsIdentity {
        let keys = ServiceKeys::generate();
        let leaf = self
            .host
            .sign_tls_server(&keys.spki(), &[name.to_owned()], validity())
            .unwrap();
        TlsIdentity::new(&leaf, None, keys.x509_key_pem.clone())
    }

    async fn session(&self, acceptor: TlsAcceptor, tcp: TcpStream) -> std::io::Result<()> {
        tcp.set_nodelay(true)?;
        let mut client = acceptor.accept(tcp).await?;
        let length = client.read_u32().await? as usize;
        assert!(length <= 4096);
        let mut body = vec![0; length];
        client.read_exact(&mut body).await?;
        let asked: serde_json::Value = serde_json::from_slice(&body)?;
        let (kind, name) = (
            asked["kind"].as_str().unwrap(),
            asked["name"].as_str().unwrap(),
        );
        let answer = match name {
            "mute" => return Ok(()),
            "nobody" => {
                r#"{"ok":false,"code":"no-agent","message":"no agent serves nobody.ssh.demo now; try again in a minute"}"#
            }
            _ => r#"{"ok":true}"#,
        };
        client.write_u32(answer.len() as u32).await?;
        client.write_all(answer.as_bytes()).await?;
        client.flush().await?;
        match (kind, name) {
            (_, "nobody") => Ok(()),
            ("ssh", "echo") => echo(client).await,
            ("ssh", config) => sshd(client, &self.sshd.join(config)).await,
            (kind, name) => {
                let identity = self.server(&if name == "impostor" {
                    format!("other.{kind}.demo")
                } else {
                    format!("{name}.{kind}.demo")
                });
                let config = tls::server(
                    &identity,
                    tls::ClientAuth::Required(&self.trust, &[CaKind::User]),
                    &[],
                )
                .unwrap();
                let mut inner = TlsAcceptor::from(config).accept(client).await?;
                if name == "cut" {
                    inner.write_all(b"half of it").await?;
                    inner.flush().await?;
                } else {
                    echo(&mut inner).await?;
                }
                // Unread bytes would make the kernel reset the connection. "cut" ends without a goodbye.
                let (mut outer, _) = inner.into_inner();
                tokio::io::copy(&mut outer, &mut tokio::io::sink())
                    .await
                    .map(|_| ())
            }
        }
    }
}

/// Sends back what comes, and the end once it has come.
async fn echo(io: impl AsyncRead + AsyncWrite) -> std::io::Result<()> {
    let (mut read, mut write) = tokio::io::split(io);
    tokio::io::copy(&mut read, &mut write).await?;
    write.shutdown().await
}

async fn sshd(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    config: &Path,
) -> std::io::Result<()> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let theirs = std::os::fd::OwnedFd::from(theirs);
    let mut child = tokio::process::Command::new("/usr/sbin/sshd")
        .args(["-i", "-e", "-f"])
        .arg(config)
        .stdin(theirs.try_clone()?)
        .stdout(theirs)
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut ours = tokio::net::UnixStream::from_std(ours)?;
    let _ = tokio::io::copy_bidirectional(&mut client, &mut ours).await;
    let _ = client.shutdown().await;
    child.wait().await.map(|_| ())
}
