//! A server on a loopback port, in the test's own process, and the system's OpenSSH clients against it.
#![allow(dead_code)]

use nix::fcntl::{Flock, FlockArg};
use postern_audit::{Emitter, Event};
use postern_identity::{Ca, CaKind, ServiceKeys, UserIdentity, Validity, verify_user_cert};
use postern_plugin::{SshEvent, SshSessionInfo, Verdict};
use postern_sshd::{
    Admitted, Gate, Guard, GuardError, GuardSource, HostIdentity, SessionContext, SessionSummary,
    SshdOptions,
};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub const CLUSTER: &str = "demo";

/// The login that sessions of tests run as; made once, kept.
pub const LOGIN: &str = "postern-test";

/// Allows everything but commands that contain "forbidden", and terminals called "nope".
#[derive(Clone, Copy)]
pub struct Rules;
impl Guard for Rules {
    async fn decide(&mut self, _channel: u32, event: SshEvent) -> Result<Verdict, GuardError> {
        Ok(match event {
            SshEvent::Exec { command } if command.contains("forbidden") => {
                Verdict::Deny("this command is not for you".into())
            }
            SshEvent::Exec { command } if command == "crash-the-plugin" => {
                return Err(failure("plugin \"ssh\" 0.1.0: trapped (unreachable)"));
            }
            SshEvent::Env { name, .. } if name == "LC_IGNORED" => Verdict::Ignore,
            SshEvent::Forward { port: 9, .. } => Verdict::Deny("no discarding".into()),
            _ => Verdict::Allow,
        })
    }
}
impl GuardSource for Rules {
    type Guard = Rules;
    async fn open(&self, session: &SshSessionInfo) -> Result<Rules, GuardError> {
        match session.user.as_str() {
            "mallory" => Err(failure("mallory may not")),
            _ => Ok(Rules),
        }
    }
}

fn failure(message: &str) -> GuardError {
    GuardError {
        message: message.into(),
        plugin: Some("ssh".into()),
        trap: Some("unreachable"),
    }
}

struct TestGate {
    cas: Vec<ssh_key::PublicKey>,
    may_forward: bool,
}
impl Gate for TestGate {
    fn authenticate(&self, cert: &ssh_key::Certificate, login: &str) -> Result<Admitted, String> {
        let user = verify_user_cert(cert, &self.cas, Some(login), None, SystemTime::now())
            .map_err(|e| e.to_string())?;
        Ok(Admitted {
            user,
            login: login.to_owned(),
            may_forward: self.may_forward,
            role: "access".into(),
        })
    }

    fn explains_to(&self, cert: &ssh_key::Certificate) -> bool {
        self.cas
            .iter()
            .any(|ca| ca.key_data() == cert.signature_key())
    }
}

pub struct Lab {
    pub dir: tempfile::TempDir,
    pub port: u16,
    pub user_ca: Ca,
    pub host_ca: Ca,
    pub events: mpsc::Receiver<Event>,
    pub summaries: mpsc::Receiver<Result<SessionSummary, String>>,
    pub drain: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.server.abort();
    }
}

pub fn session_child() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let target = exe.parent().unwrap().parent().unwrap();
    target.join("examples/session-child")
}

/// Root may become the test login; others serve themselves.
pub fn login() -> String {
    static ONCE: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    ONCE.get_or_init(|| {
        if !nix::unistd::geteuid().is_root() {
            let me = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap();
            return me.unwrap().name;
        }
        let lock = std::fs::File::create("/tmp/postern-test-user.lock").unwrap();
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
        if nix::unistd::User::from_name(LOGIN).unwrap().is_none() {
            let made = Command::new("useradd")
                .args(["-m", "-s", "/bin/bash", "-G", "games", LOGIN])
                .status();
            assert!(made.unwrap().success(), "useradd");
        }
        LOGIN.to_owned()
    })
    .clone()
}

impl Lab {
    pub async fn new() -> Lab {
        Lab::with(|_| {}).await
    }

    pub async fn with(adjust: impl FnOnce(&mut SshdOptions)) -> Lab {
        Lab::guarded(Rules, true, adjust).await
    }

    pub async fn guarded<G: GuardSource + Clone>(
        guard: G,
        may_forward: bool,
        adjust: impl FnOnce(&mut SshdOptions),
    ) -> Lab {
        let (user_ca, host_ca) = (ca(CaKind::User), ca(CaKind::Host));
        let keys = ServiceKeys::generate();
        let names = ["web-1.ssh.demo".to_owned()];
        let cert = host_ca
            .sign_ssh_host(&keys.ssh_public(), &names, hour())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut opts = SshdOptions {
            session_child: session_child(),
            allow_same_user: !nix::unistd::geteuid().is_root(),
            denied_dials: vec![listener.local_addr().unwrap()],
            accept_env: vec!["LANG".into(), "LC_*".into()],
            ..Default::default()
        };
        adjust(&mut opts);
        let (opts, ca_key) = (Arc::new(opts), user_ca.public().ssh.unwrap());
        let gate: Arc<dyn Gate> = Arc::new(TestGate {
            cas: vec![ssh_key::PublicKey::from_openssh(&ca_key).unwrap()],
            may_forward,
        });
        let (emitter, events) = Emitter::memory(4096);
        let (ended, summaries) = mpsc::channel(1024);
        let drain = CancellationToken::new();
        let server = tokio::spawn({
            let drain = drain.clone();
            let host = HostIdentity {
                ssh_key: keys.ssh_key.clone(),
                ssh_host_cert: cert,
            };
            async move {
                let mut sessions = tokio::task::JoinSet::new();
                let mut n = 0;
                while let Ok((stream, from)) = listener.accept().await {
                    stream.set_nodelay(true).unwrap();
                    n += 1;
                    let ctx = SessionContext {
                        cluster: CLUSTER.into(),
                        resource: "web-1".into(),
                        source: from.to_string(),
                        host_id: "0123".into(),
                        session_id: format!("session-{n}"),
                        ..Default::default()
                    };
                    let serving = postern_sshd::serve(
                        stream,
                        host.clone(),
                        opts.clone(),
                        gate.clone(),
                        guard.clone(),
                        emitter.clone(),
                        ctx,
                        drain.clone(),
                    );
                    let ended = ended.clone();
                    sessions.spawn(async move {
                        let summary = serving.await.map_err(|e| e.to_string());
                        let _ = ended.try_send(summary);
                    });
                }
            }
        });
        let lab = Lab {
            dir: tempfile::tempdir().unwrap(),
            port,
            user_ca,
            host_ca,
            events,
            summaries,
            drain,
            server,
        };
        let known = format!(
            "@cert-authority *.ssh.demo {}\n",
            lab.host_ca.public().ssh.unwrap()
        );
        std::fs::write(lab.path("known_hosts"), known).unwrap();
        let login = login();
        lab.certify(
            "id",
            &lab.user_ca,
            "alice",
            &[&login, "root", "nobody"],
            hour(),
        );
        lab
    }

    /// Drops all connections.
    pub fn stop(&self) {
        self.server.abort();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a key pair and a certificate called `name`.
    pub fn certify(&self, name: &str, ca: &Ca, user: &str, logins: &[&str], v: Validity) {
        let keys = ServiceKeys::generate();
        let user = UserIdentity {
            name: user.into(),
            roles: vec!["access".into()],
            traits: Default::default(),
        };
        let logins: Vec<String> = logins.iter().map(|l| (*l).to_owned()).collect();
        let cert = ca
            .sign_ssh_user(&keys.ssh_public(), &user, &logins, v)
            .unwrap();
        self.write_key(name, &keys, &cert);
    }

    pub fn write_key(&self, name: &str, keys: &ServiceKeys, cert: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.path(name);
        std::fs::write(&path, keys.ssh_key.as_bytes()).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(self.path(&format!("{name}-cert.pub")), format!("{cert}\n")).unwrap();
        std::fs::write(self.path(&format!("{name}.pub")), keys.ssh_public()).unwrap();
    }

    /// Options that ssh, scp and sftp share, for the identity `id`.
    pub fn options(&self, id: &str) -> Vec<String> {
        let known = self.path("known_hosts");
        let mut options = vec!["-F".to_owned(), "none".to_owned()];
        for option in [
            format!("UserKnownHostsFile={}", known.display()),
            "GlobalKnownHostsFile=/dev/null".into(),
            "StrictHostKeyChecking=yes".into(),
            "HostKeyAlias=web-1.ssh.demo".into(),
            format!("IdentityFile={}", self.path(id).display()),
            format!("CertificateFile={}-cert.pub", self.path(id).display()),
            "IdentitiesOnly=yes".into(),
            "BatchMode=yes".into(),
            format!("Port={}", self.port),
        ] {
            options.push("-o".into());
            options.push(option);
        }
        options
    }

    pub fn program(&self, program: &str) -> Command {
        let mut c = Command::new(program);
        c.args(self.options("id")).stdin(Stdio::null());
        c.env_remove("SSH_AUTH_SOCK").env("LC_ALL", "C");
        c
    }

    /// `ssh` to the test login; add a command.
    pub fn ssh(&self) -> Command {
        self.ssh_as(&login())
    }

    pub fn ssh_as(&self, login: &str) -> Command {
        let mut c = self.program("ssh");
        c.arg(format!("{login}@127.0.0.1"));
        c
    }

    /// With another identity.
    pub fn ssh_id(&self, id: &str, login: &str) -> Command {
        let mut c = Command::new("ssh");
        c.args(self.options(id)).stdin(Stdio::null());
        c.arg(format!("{login}@127.0.0.1"));
        c
    }

    /// Runs a command through ssh; its standard output, which must come with exit status 0.
    pub async fn sh(&self, command: &str) -> String {
        let mut ssh = self.ssh();
        ssh.arg(command);
        let out = run(ssh).await;
        assert!(out.status.success(), "{command}: {}", text(&out));
        String::from_utf8(out.stdout).unwrap()
    }

    pub fn scp(&self, extra: &[&str], from: &str, to: &str) -> Command {
        let mut c = self.program("scp");
        c.args(extra).args([from, to]);
        c
    }

    /// `login@127.0.0.1:path`
    pub fn remote(&self, path: &str) -> String {
        format!("{}@127.0.0.1:{path}", login())
    }

    /// A russh client, for what OpenSSH's does not do.
    pub async fn client(&self) -> russh::client::Handle<Trusting> {
        let key = russh::keys::load_secret_key(self.path("id"), None).unwrap();
        let cert = russh::keys::load_openssh_certificate(self.path("id-cert.pub")).unwrap();
        let config = Arc::new(russh::client::Config::default());
        let mut client = russh::client::connect(config, ("127.0.0.1", self.port), Trusting)
            .await
            .unwrap();
        let auth = client
            .authenticate_openssh_cert(login(), Arc::new(key), cert)
            .await
            .unwrap();
        assert!(auth.success());
        client
    }

    /// The next event of this name; others are dropped.
    pub async fn event(&mut self, name: &str) -> Event {
        let next = async {
            loop {
                let event = self.events.recv().await.expect("the trail ended");
                if event.event == name {
                    return event;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), next)
            .await
            .unwrap_or_else(|_| panic!("no event {name}"))
    }

    pub async fn summary(&mut self) -> Result<SessionSummary, String> {
        tokio::time::timeout(Duration::from_secs(10), self.summaries.recv())
            .await
            .expect("the session did not end")
            .unwrap()
    }
}

pub fn ca(kind: CaKind) -> Ca {
    Ca::generate(kind, CLUSTER).unwrap()
}

pub fn hour() -> Validity {
    Validity::for_ttl(Duration::from_secs(3600))
}

pub fn text(out: &Output) -> String {
    format!(
        "{}\n--- stdout\n{}\n--- stderr\n{}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    )
}

pub fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// Runs to the end, off the runtime's threads, at most a minute.
pub async fn run(command: Command) -> Output {
    feed(command, Vec::new()).await
}

/// The same with standard input.
pub async fn feed(mut command: Command, input: Vec<u8>) -> Output {
    let shown = format!("{command:?}");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    let mut child = tokio::process::Command::from(command)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let stdin = child.stdin.take();
    let writing = tokio::spawn(async move {
        if let Some(mut stdin) = stdin {
            use tokio::io::AsyncWriteExt;
            let _ = stdin.write_all(&input).await;
        }
    });
    let out = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output())
        .await
        .unwrap_or_else(|_| panic!("still running after a minute: {shown}"))
        .unwrap();
    writing.abort();
    out
}

/// Waits until it holds; polls every 20 ms for at most 10 s.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A file of `mb` MB that does not compress, readable by all.
pub fn big_file(dir: &Path, mb: usize) -> PathBuf {
    let path = dir.join("big");
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = Vec::with_capacity(mb << 20);
    while bytes.len() < mb << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    path
}

pub fn sha256(path: &Path) -> String {
    let out = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(out.stdout).unwrap()[..64].to_owned()
}

/// Process ids of all processes whose command line contains `needle`.
pub fn processes(needle: &str) -> Vec<u32> {
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != std::process::id())
        .filter(|pid: &u32| {
            std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| {
                String::from_utf8_lossy(&c)
                    .replace('\0', " ")
                    .contains(needle)
            })
        })
        .collect()
}

pub fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Takes any host key.
pub struct Trusting;
impl russh::client::Handler for Trusting {
    type Error = russh::Error;
    async fn check_server_key(
        &mut self,
        _: &russh::keys::PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        Ok(true)
    }
}
