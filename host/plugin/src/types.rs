//! The plain data that crosses between host crates and plugins. Mirrors `wit/`, where every item is explained
//! for plugin authors; here is what the host needs to know besides.

use std::path::PathBuf;
use std::sync::Arc;

/// How the runtime is set up. One per process.
#[derive(Debug, Clone)]
pub struct RuntimeOptions {
    /// Directory of compiled components (`.cwasm`), made 0700 where it does not exist. It must belong to this process's user.
    pub cache_dir: PathBuf,
    /// Connections that may have a live plugin instance at once. Lowered at start if `vm.max_map_count` allows fewer.
    pub max_instances: u32,
    /// Bytes of memory an instance may use where [`Limits::memory`] says nothing; also the size of a pool slot.
    pub default_memory: usize,
}

impl RuntimeOptions {
    /// Defaults: 4096 instances, 32 MiB each at most.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        RuntimeOptions {
            cache_dir: cache_dir.into(),
            max_instances: 4096,
            default_memory: 32 << 20,
        }
    }
}

/// What one instance of a plugin may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of linear memory; `None`: [`RuntimeOptions::default_memory`].
    pub memory: Option<usize>,
    /// CPU milliseconds of one call (one chunk of input, one decision); instantiation counts as a call.
    pub cpu_ms_per_call: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            memory: None,
            cpu_ms_per_call: 200,
        }
    }
}

/// Where a plugin comes from.
#[derive(Debug, Clone)]
pub struct PluginSource {
    /// Name for messages and metrics, e.g. `ssh`.
    pub name: String,
    pub origin: Origin,
    /// Expected sha256 of the component, hex, with or without `sha256:` before it.
    pub sha256: Option<String>,
    /// An older version serves until this one is ready, so nobody waits for it.
    pub replaces: bool,
}

/// See [`PluginSource`].
#[derive(Debug, Clone)]
pub enum Origin {
    /// A `.wasm` file; neither it nor a directory above it may be writable by others.
    File(PathBuf),
    Bytes(Arc<[u8]>),
}

impl PluginSource {
    pub fn file(name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        PluginSource {
            name: name.into(),
            origin: Origin::File(path.into()),
            sha256: None,
            replaces: false,
        }
    }

    pub fn bytes(name: impl Into<String>, bytes: impl Into<Arc<[u8]>>) -> Self {
        PluginSource {
            name: name.into(),
            origin: Origin::Bytes(bytes.into()),
            sha256: None,
            replaces: false,
        }
    }

    #[must_use]
    pub fn pinned(mut self, sha256: Option<String>) -> Self {
        self.sha256 = sha256;
        self
    }

    /// Whether an older version serves until this one is ready: then it is compiled with what CPU time sessions leave.
    #[must_use]
    pub fn replacing(mut self, replaces: bool) -> Self {
        self.replaces = replaces;
        self
    }
}

/// The world a component was built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum World {
    Codec,
    Ssh,
}

impl World {
    pub fn as_str(self) -> &'static str {
        match self {
            World::Codec => "codec",
            World::Ssh => "ssh",
        }
    }
}

/// What a plugin says of itself (`manifest.describe`), checked by the host at load.
#[derive(Debug, Clone)]
pub struct Description {
    pub world: World,
    /// Kind of resource it serves, a DNS label, e.g. `ssh`.
    pub kind: String,
    /// Wire protocol, e.g. `postgresql 3.x`; for people.
    pub protocol: String,
    /// The plugin's own version.
    pub version: String,
    /// One line for people.
    pub summary: String,
    /// Principal types that its questions use, e.g. `db_users`.
    pub principals: Vec<Principal>,
    /// JSON Schema of its settings.
    pub settings_schema: String,
    pub wants: Wants,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    pub name: String,
    pub help: String,
}

/// What a plugin may ask of the host; it gets nothing it did not name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wants {
    pub endpoints: Vec<Endpoint>,
    pub start_tls: bool,
    pub challenges: Vec<String>,
    pub send_secret: bool,
    pub body_filters: bool,
}

/// The administrator of a server, for a [`Task`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Administrator {
    pub user: String,
    pub database: String,
}

/// Work on the accounts of a server; see `wit/accounts.wit`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    Admit(Account),
    Dismiss {
        account: String,
        /// The upstream's key of the session that has ended, if it came so far.
        key: Option<Vec<u8>>,
    },
    Sweep,
}

/// An account as a session needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub roles: Vec<String>,
    pub afterwards: Afterwards,
}

/// What becomes of an account that nobody uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Afterwards {
    Keep,
    Drop,
}

/// One end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    Client,
    Upstream,
}

impl Side {
    #[must_use]
    pub fn other(self) -> Side {
        match self {
            Side::Client => Side::Upstream,
            Side::Upstream => Side::Client,
        }
    }
}

/// What a plugin can ask to be connected to; addresses are the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Endpoint {
    Main,
    Cancel,
    Admin,
}

/// One thing that a codec asks the host to do; see `wit/codec.wit` for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    NeedMore,
    Pass(u32),
    Skip(u32),
    ToUpstream(Vec<u8>),
    ToClient(Vec<u8>),
    Authorize(Vec<(String, String)>),
    Connect(Endpoint),
    StartTls(Side),
    Answer(Challenge),
    SendSecret(SecretMessage),
    /// The upstream's key, and the bytes that the client's may have.
    OfferCancel(Vec<u8>, u32),
    /// A key that a client has shown.
    FindCancel(Vec<u8>),
    Event(PluginEvent),
    Splice(Side),
    Close(Option<String>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    pub method: String,
    /// Whose secret answers it, as the upstream calls it.
    pub account: String,
    pub data: Vec<u8>,
}

/// A message with a secret in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretMessage {
    pub account: String,
    pub parts: Vec<TemplatePart>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplatePart {
    Bytes(Vec<u8>),
    Secret,
    /// Length of the secret plus this number, as 32 bits big-endian.
    LengthU32Be(u32),
}

/// What the host answers to a step that asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepResult {
    Authorized,
    Denied(String),
    Connected,
    ConnectFailed(String),
    TlsStarted,
    TlsFailed(String),
    Answered(Vec<u8>),
    AnswerFailed(String),
    SecretSent,
    SecretFailed(String),
    CancelKey(Vec<u8>),
    CancelFound(Vec<u8>),
    CancelUnknown,
}

/// An audit event as a plugin words it; the host adds who, where and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginEvent {
    /// Stable name under the plugin's kind, e.g. `query`.
    pub name: String,
    /// Fields in the plugin's order; values are JSON documents.
    pub fields: Vec<(String, String)>,
}

/// Who and what an SSH session is; the host has verified all of it.
#[derive(Debug, Clone, Default)]
pub struct SshSessionInfo {
    /// Session id as in the audit log.
    pub session: String,
    pub user: String,
    pub roles: Vec<String>,
    /// Unix login asked for.
    pub login: String,
    pub resource: String,
    pub labels: Vec<(String, String)>,
    /// Client address `ip:port`.
    pub source: String,
}

/// What an SSH client asks for on a channel. Forwards that belong to no session channel use channel 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SshEvent {
    Shell,
    Exec {
        command: String,
    },
    Pty {
        term: String,
        cols: u32,
        rows: u32,
    },
    Env {
        name: String,
        value: String,
    },
    Subsystem {
        name: String,
    },
    /// `-L`/`-D`/`-W`: dial this target.
    Forward {
        host: String,
        port: u16,
    },
}

/// A plugin's answer: it narrows what RBAC allows, never widens it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Allow,
    /// Refused; the reason is for the user and the audit log.
    Deny(String),
    /// Passed over without failing the session: the variable is not set, the PTY not given. What the host does with
    /// events where that makes no sense (shell, exec, subsystem, forward): refuse.
    Ignore,
}
