//! What the agent hands in and gets back.

use postern_identity::UserIdentity;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use zeroize::Zeroizing;

/// The key and certificate that the service shows to users, OpenSSH text forms.
#[derive(Clone)]
pub struct HostIdentity {
    /// OpenSSH private key (PEM).
    pub ssh_key: Zeroizing<String>,
    /// One-line OpenSSH host certificate for that key.
    pub ssh_host_cert: String,
}

/// How sessions run. One per service configuration; sessions keep the one they began with.
#[derive(Debug, Clone)]
pub struct SshdOptions {
    /// Names of environment variables that clients may set; `*` and `?` match as in a shell.
    pub accept_env: Vec<String>,
    /// The system's sftp-server.
    pub sftp_server: PathBuf,
    /// Whether a login with the agent's own uid is served. It can read the agent's keys: for development only.
    pub allow_same_user: bool,
    /// Whether `-L` may be used at all (roles and the plugin narrow it further).
    pub port_forwarding: bool,
    /// posternd's own listening sockets: forwarding never reaches them. An unspecified address (`0.0.0.0`, `[::]`) stands for
    /// every address of this host.
    pub denied_dials: Vec<SocketAddr>,
    /// The program that becomes the session child; started with the single argument `session-child`.
    pub session_child: PathBuf,
    /// Files whose existence stops logins other than root's; their text is shown. As pam_nologin has it.
    pub nologin: Vec<PathBuf>,
    /// After so long without a byte from the client it is asked whether it is there …
    pub keepalive: Duration,
    /// … and after so many unanswered questions in a row the connection ends.
    pub keepalive_max: usize,
}

impl Default for SshdOptions {
    fn default() -> Self {
        let sftp = [
            "/usr/lib/openssh/sftp-server",
            "/usr/libexec/openssh/sftp-server",
            "/usr/lib/ssh/sftp-server",
        ];
        SshdOptions {
            accept_env: vec!["LANG".into(), "LC_*".into()],
            sftp_server: sftp
                .iter()
                .map(PathBuf::from)
                .find(|p| p.exists())
                .unwrap_or_else(|| PathBuf::from(sftp[0])),
            allow_same_user: false,
            port_forwarding: true,
            denied_dials: Vec::new(),
            session_child: PathBuf::from("/proc/self/exe"),
            nologin: vec!["/run/nologin".into(), "/etc/nologin".into()],
            keepalive: Duration::from_secs(60),
            keepalive_max: 4,
        }
    }
}

/// Which session this is; goes to the plugin and into every audit event.
#[derive(Debug, Clone, Default)]
pub struct SessionContext {
    pub cluster: String,
    /// The resource's name.
    pub resource: String,
    /// The resource's labels, for the plugin.
    pub labels: Vec<(String, String)>,
    /// The client's `ip:port`, as the proxy saw it.
    pub source: String,
    pub host_id: String,
    pub session_id: String,
}

/// A user whom the gate let in.
#[derive(Debug, Clone)]
pub struct Admitted {
    pub user: UserIdentity,
    /// The Unix login that the session runs as.
    pub login: String,
    /// Whether the user's roles allow port forwarding here.
    pub may_forward: bool,
    /// The role that allowed it, for the audit log.
    pub role: String,
}

/// What the agent decides for sshd. Called on the connection's task: must not block.
pub trait Gate: Send + Sync + 'static {
    /// May the holder of this certificate (possession, the certificate's own signature and expiry are proven; nothing else is) log in
    /// as `login`? Checks CA, type, principals, critical options, locks, roles and labels, and audits a refusal itself.
    fn authenticate(&self, cert: &ssh_key::Certificate, login: &str) -> Result<Admitted, String>;

    /// Whether one of the cluster's user CAs signed this certificate. Its holder is told why the login is refused (as the reason
    /// of the disconnect, which OpenSSH prints); strangers only that it is.
    fn explains_to(&self, _cert: &ssh_key::Certificate) -> bool {
        false
    }
}

/// How a connection went.
#[derive(Debug, Clone, Default)]
pub struct SessionSummary {
    /// `None`: nobody got in.
    pub user: Option<String>,
    pub login: Option<String>,
    /// Payload bytes from the client (standard input, forwarded data).
    pub bytes_in: u64,
    /// Payload bytes to the client.
    pub bytes_out: u64,
    pub duration: Duration,
    /// What every shell, command or subsystem ended with: `0`, `1`, `SIGKILL`, in the order they ended. At most the first 64.
    pub exits: Vec<String>,
    /// Why the connection ended: `client left`, `timeout`, …
    pub reason: String,
}

/// Why no session could be served.
#[derive(Debug, thiserror::Error)]
pub enum SshdError {
    #[error(
        "the service's SSH host key cannot be read: {0}; it is made anew when the service joins again"
    )]
    HostKey(String),
    #[error("the service's SSH host certificate cannot be read: {0}")]
    HostCert(String),
    #[error("SSH connection from {source_addr}: {why}")]
    Connection { source_addr: String, why: String },
}
