//! The configuration as types. Doc comments here are what an operator reads in
//! `docs/configuration.md`; defaults stand in the `Default` implementations alone.

use crate::{Secret, UpstreamAdmin, UpstreamAuth, UpstreamTls};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// The whole file. Everything but `version` and `cluster` may be left out; a process runs
/// what has a section: `[auth]`, `[proxy]`, and the agent's `[services]`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Version of this file format: 1.
    pub version: u32,
    /// The cluster's name: DNS labels joined by dots, at most 200 bytes. Names of resources end with it
    /// (`web-1.ssh.<cluster>`), so it can't be changed later.
    pub cluster: String,
    /// Where keys, certificates, the audit spool and Auth's database are kept. Made with mode 0700;
    /// refused when others can enter it.
    #[serde(default = "default_data_dir")]
    #[schemars(extend("format" = "path"))]
    pub data_dir: PathBuf,
    /// How long SIGTERM waits for live sessions to end before it cuts them off.
    #[serde(default = "default_shutdown_timeout", with = "humantime_serde")]
    #[schemars(with = "String", extend("format" = "duration"))]
    pub shutdown_timeout: Duration,
    /// What the process says about its work.
    #[serde(default)]
    pub log: Log,
    /// Health, metrics and `posternd status`.
    #[serde(default)]
    pub diag: Diag,
    /// Runs the Auth Service in this process.
    pub auth: Option<Auth>,
    /// Runs the Proxy Service in this process.
    pub proxy: Option<Proxy>,
    /// What all services of this host have in common. Needed where there are services, unless `[proxy]`
    /// is in the same file: then the agent dials that proxy's `listen` address.
    pub agent: Option<Agent>,
    /// The services of this agent, by name (a DNS label).
    #[serde(default)]
    #[schemars(extend("x-name" = "name"))]
    pub services: BTreeMap<String, Service>,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`, or directives such as `info,postern_tunnel=debug`.
    pub level: String,
    /// `text` for people, `json` for machines.
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// `[diag]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Diag {
    /// Where `/healthz`, `/readyz` and `/metrics` are served: `unix:/path` or `host:port`. Nobody has to log in
    /// there: keep a TCP address on loopback. Default: `unix:<data_dir>/posternd.sock`.
    #[schemars(extend("format" = "address", "x-default" = "unix:<data_dir>/posternd.sock"))]
    pub listen: String,
}

/// `[auth]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// Where the Auth Service listens for proxies (`host:port`). Agents and users reach it through the proxy.
    #[schemars(extend("format" = "host:port"))]
    pub listen: String,
    /// How long certificates of agents and proxies live. They are renewed at half of it.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("format" = "duration"))]
    pub cert_ttl: Duration,
    /// How long after its expiry a certificate may still be renewed with the host key, for hosts that slept.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("format" = "duration"))]
    pub rejoin_window: Duration,
}

/// `[proxy]`
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Proxy {
    /// The one public port (`host:port`), for agents, users and browsers alike.
    #[serde(default = "default_proxy_listen")]
    #[schemars(extend("format" = "host:port"))]
    pub listen: String,
    /// What users and agents dial (`host:port`); it appears in links and profiles.
    #[schemars(extend("format" = "host:port"))]
    pub public_addr: String,
    /// The Auth Service's address (`host:port`). Needed where `[auth]` is in another process.
    #[schemars(extend("format" = "host:port"))]
    pub auth_server: Option<String>,
    /// The publicly valid web certificate. Without it the cluster issues one, which only those who
    /// know `ca_pin` can check.
    pub tls: Option<CertFiles>,
    /// How the proxy joins an Auth Service in another process (a token of kind `proxy`).
    pub join_params: Option<JoinParams>,
    /// SHA-256 of the host CA's public key, `sha256:<64 hex digits>`; several while it rotates.
    #[serde(default)]
    pub ca_pin: Vec<String>,
}

/// A certificate with its key, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertFiles {
    /// The certificate, followed by its intermediates.
    #[schemars(extend("format" = "path"))]
    pub cert_file: PathBuf,
    /// Its private key.
    #[schemars(extend("format" = "path"))]
    pub key_file: PathBuf,
}

/// `[agent]`
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Agent {
    /// The Proxy Service's public address (`host:port`). Default: the `[proxy]` of the same file.
    #[schemars(extend("format" = "host:port", "x-default" = "the `[proxy]` of this file"))]
    pub proxy: String,
    /// SHA-256 of the host CA's public key, `sha256:<64 hex digits>`; several while it rotates. Without
    /// a pin the CA is fetched once over the proxy's HTTPS and kept, which trusts the proxy that once.
    pub ca_pin: Vec<String>,
    /// How this host's services join. Only needed for kinds and names that the host was not granted before.
    pub join_params: Option<JoinParams>,
    /// How the tunnel is dialled: `ssh` straight to the proxy's port, `tls` for SSH inside TLS where only TLS
    /// gets out, `auto` for the first that works.
    pub transport: Transport,
    /// When Auth is away: `best-effort` serves from the cached roles and locks, `strict` refuses sessions once
    /// they are older than 5 minutes.
    pub lock_mode: LockMode,
    /// Idle data connections kept ready per service, so that a session opens without a handshake.
    #[schemars(range(min = 0, max = 64))]
    pub warm_connections: u32,
    /// How long the sessions of a removed or changed service may go on.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("format" = "duration"))]
    pub drain_timeout: Duration,
    /// How long the keys of a removed service are kept after its last session: put back in that time, it is as it was.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("format" = "duration"))]
    pub forget_after: Duration,
    /// Where built-in plugins are looked for first. Otherwise: `plugins` beside the program, then
    /// `/usr/lib/postern/plugins`.
    #[schemars(extend("format" = "path"))]
    pub plugin_dir: Option<PathBuf>,
}

/// How the agent's tunnels reach the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum Transport {
    #[default]
    Auto,
    Ssh,
    Tls,
}

/// What an agent does while Auth is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum LockMode {
    #[default]
    BestEffort,
    Strict,
}

/// How a host proves that it may join.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(tag = "method", rename_all = "kebab-case", deny_unknown_fields)]
pub enum JoinParams {
    /// A join token made by `postern tokens create`.
    Token {
        /// The token itself. Prefer `token_file`: configuration files get copied around.
        token: Option<Secret>,
        /// A file that holds the token alone; read at each attempt, watched for changes.
        #[schemars(extend("format" = "path"))]
        token_file: Option<PathBuf>,
    },
    /// An ID token (a signed JWT) of any OpenID Connect issuer, from a file or the environment; for a token made by
    /// `postern tokens create --method oidc`.
    Oidc {
        /// The name of the join token at the cluster.
        token_name: String,
        /// A file that holds the ID token alone; read at each attempt, watched for changes.
        #[schemars(extend("format" = "path"))]
        id_token_file: Option<PathBuf>,
        /// The environment variable of `posternd` that holds the ID token.
        id_token_env: Option<String>,
    },
    /// A GitHub Actions job, which asks GitHub for an ID token at each attempt; it needs the permission
    /// `id-token: write`. For a token made by `postern tokens create --method github`.
    Github {
        /// The name of the join token at the cluster.
        token_name: String,
        /// The audience that the ID token is asked for. Default: the cluster's name, as on the other side.
        #[schemars(extend("x-default" = "the cluster's name"))]
        audience: Option<String>,
    },
    /// A GitLab CI job with an `id_tokens` entry; for a token made by `postern tokens create --method gitlab`.
    Gitlab {
        /// The name of the join token at the cluster.
        token_name: String,
        /// The variable that `id_tokens` names. Default: `POSTERN_ID_TOKEN`.
        #[serde(default = "default_gitlab_env")]
        id_token_env: String,
    },
    /// A pod with a projected service account token; for a token made by `postern tokens create --method kubernetes`.
    Kubernetes {
        /// The name of the join token at the cluster.
        token_name: String,
        /// Where the volume is mounted. Default: `/var/run/secrets/tokens/postern`.
        #[serde(default = "default_kubernetes_file")]
        #[schemars(extend("format" = "path"))]
        id_token_file: PathBuf,
    },
    /// A key pair in a place that outlives the data directory, bound to this host; for a token made by
    /// `postern tokens create --method bound_keypair`.
    #[serde(rename = "bound_keypair")]
    BoundKeypair {
        /// The name of the join token at the cluster.
        token_name: String,
        /// The private key (Ed25519, PKCS#8 PEM, mode 0600). Made at the first start where there is none;
        /// `posternd join-key FILE` makes one and shows its public key.
        #[schemars(extend("format" = "path"))]
        key_file: PathBuf,
        /// A file with the secret by which the first join registers the key; not needed where the public key was
        /// given to `postern tokens create`.
        #[schemars(extend("format" = "path"))]
        registration_secret_file: Option<PathBuf>,
    },
}

/// `[services.<name>]`
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// `false` drains the service as if it were removed, but keeps its settings here.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// The name of a built-in plugin (`ssh`, `tcp`), or the path of a WebAssembly component.
    pub plugin: String,
    /// The kind that the resources get: a DNS label; `auth`, `proxy` and `web` are reserved.
    /// Default: what the plugin says.
    #[schemars(extend("x-default" = "what the plugin says"))]
    pub kind: Option<String>,
    /// The SHA-256 that the plugin file must have, in hex. Without it any file at that path is loaded.
    pub sha256: Option<String>,
    /// Settings of the plugin, checked by the plugin.
    #[serde(default)]
    #[schemars(with = "serde_json::Map<String, serde_json::Value>")]
    pub settings: toml::Table,
    /// What the plugin may use.
    #[serde(default)]
    pub limits: Limits,
    /// When a new version of the plugin is taken back.
    #[serde(default)]
    pub rollback: Rollback,
    /// Whether the servers behind the resources are there.
    #[serde(default)]
    pub health_check: HealthCheck,
    /// How this service joins, where it differs from `[agent]`.
    pub join_params: Option<JoinParams>,
    /// What users reach through this service.
    #[serde(default)]
    pub resources: Vec<Resource>,
    /// For plugins that serve SSH.
    #[serde(default)]
    pub ssh: SshOptions,
}

/// `[services.<name>.limits]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Memory of one plugin instance (one connection), in MiB.
    #[schemars(range(min = 1, max = 4096))]
    pub memory_mb: u32,
    /// CPU time of one call into the plugin, in milliseconds.
    #[schemars(range(min = 1, max = 60_000))]
    pub cpu_ms_per_call: u32,
    /// Sessions of this service at the same time; more are refused.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_sessions: u32,
}

/// `[services.<name>.rollback]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Rollback {
    /// Of the first `of` connections of a new plugin version, so many may trap; with one more the old version is back.
    #[schemars(range(min = 0, max = 1000))]
    pub traps: u32,
    /// How many of its first connections are watched; 0 watches none.
    #[schemars(range(min = 0, max = 1000))]
    pub of: u32,
}

/// `[services.<name>.health_check]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HealthCheck {
    /// `false`: nobody but users makes the agent dial the resources' addresses, and it is not known whether they answer.
    pub enabled: bool,
    /// From one probe of an address to the next, give or take a fifth; after one that failed it is 5 s at most.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("format" = "duration"))]
    pub interval: Duration,
    /// In this time the address has to accept a connection.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("format" = "duration"))]
    pub timeout: Duration,
}

/// `[[services.<name>.resources]]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Resource {
    /// A DNS label, unique per kind in the cluster.
    pub name: String,
    /// What roles select by, e.g. `{ env = "prod" }`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether the proxy passes clients on that have not authenticated with it first (they still have to with
    /// the agent). Default: `true` for kind `kubernetes`, else `false`.
    #[schemars(extend("x-default" = "by kind"))]
    pub direct: Option<bool>,
    /// What the agent dials: `host:port` or `unix:/path`. Not for SSH, which this host serves itself.
    #[schemars(extend("format" = "address"))]
    pub address: Option<String>,
    /// How the agent verifies the server at `address`, where the plugin speaks TLS with it (`postgres`).
    pub tls: Option<UpstreamTls>,
    /// How the agent logs in at the server, where the plugin leaves that to it (`postgres`). Default: with a
    /// certificate.
    pub auth: Option<UpstreamAuth>,
    /// The account that makes accounts for users who have none, where the plugin does that.
    pub admin: Option<UpstreamAdmin>,
}

/// `[services.<name>.ssh]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SshOptions {
    /// Allows sessions as the user that the agent itself runs as, who can read the agent's keys.
    pub allow_same_user: bool,
    /// Names (with `*` and `?`) of environment variables that a client may set.
    pub accept_env: Vec<String>,
    /// The program behind `sftp` and `scp`.
    #[schemars(extend("format" = "path"))]
    pub sftp_server: PathBuf,
    /// Allows forwarding at all; the roles decide further.
    pub port_forwarding: bool,
}

impl Default for Log {
    fn default() -> Self {
        Log {
            level: "info".into(),
            format: LogFormat::Text,
        }
    }
}

impl Default for Auth {
    fn default() -> Self {
        Auth {
            listen: "127.0.0.1:3025".into(),
            cert_ttl: Duration::from_secs(24 * 3600),
            rejoin_window: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

impl Default for Agent {
    fn default() -> Self {
        Agent {
            proxy: String::new(),
            ca_pin: Vec::new(),
            join_params: None,
            transport: Transport::Auto,
            lock_mode: LockMode::BestEffort,
            warm_connections: 1,
            drain_timeout: Duration::from_secs(3600),
            forget_after: Duration::from_secs(600),
            plugin_dir: None,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            memory_mb: 32,
            cpu_ms_per_call: 200,
            max_sessions: 4096,
        }
    }
}

impl Default for Rollback {
    fn default() -> Self {
        Rollback { traps: 3, of: 10 }
    }
}

impl Default for HealthCheck {
    fn default() -> Self {
        HealthCheck {
            enabled: true,
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(5),
        }
    }
}

impl Default for SshOptions {
    fn default() -> Self {
        SshOptions {
            allow_same_user: false,
            accept_env: ["LANG", "LC_*", "TERM", "COLORTERM"]
                .map(String::from)
                .to_vec(),
            sftp_server: "/usr/lib/openssh/sftp-server".into(),
            port_forwarding: true,
        }
    }
}

impl Default for Service {
    fn default() -> Self {
        Service {
            enabled: true,
            plugin: String::new(),
            kind: None,
            sha256: None,
            settings: toml::Table::new(),
            limits: Limits::default(),
            rollback: Rollback::default(),
            health_check: HealthCheck::default(),
            join_params: None,
            resources: Vec::new(),
            ssh: SshOptions::default(),
        }
    }
}

impl Service {
    /// Whether `plugin` is a file of the operator's rather than a built-in name.
    pub fn plugin_is_path(&self) -> bool {
        self.plugin.contains('/') || self.plugin.ends_with(".wasm")
    }

    /// The plugin's settings as JSON, which is what plugins read. TOML's dates become strings.
    pub fn settings_json(&self) -> String {
        json_of(&toml::Value::Table(self.settings.clone())).to_string()
    }

    /// This service's own way to join, else the agent's.
    pub fn join_params<'a>(&'a self, agent: &'a Agent) -> Option<&'a JoinParams> {
        self.join_params.as_ref().or(agent.join_params.as_ref())
    }
}

impl JoinParams {
    /// Files that are read at each attempt, with their keys.
    pub(crate) fn files_mut(&mut self) -> Vec<(&'static str, &mut PathBuf)> {
        match self {
            JoinParams::Token { token_file, .. } => {
                token_file.iter_mut().map(|f| ("token_file", f)).collect()
            }
            JoinParams::Oidc { id_token_file, .. } => id_token_file
                .iter_mut()
                .map(|f| ("id_token_file", f))
                .collect(),
            JoinParams::Kubernetes { id_token_file, .. } => vec![("id_token_file", id_token_file)],
            JoinParams::BoundKeypair {
                key_file,
                registration_secret_file,
                ..
            } => registration_secret_file
                .iter_mut()
                .map(|f| ("registration_secret_file", f))
                .chain([("key_file", key_file)])
                .collect(),
            JoinParams::Github { .. } | JoinParams::Gitlab { .. } => Vec::new(),
        }
    }

    /// The join token's name at the cluster, where it has one.
    pub fn token_name(&self) -> Option<&str> {
        match self {
            JoinParams::Token { .. } => None,
            JoinParams::Oidc { token_name, .. }
            | JoinParams::Github { token_name, .. }
            | JoinParams::Gitlab { token_name, .. }
            | JoinParams::Kubernetes { token_name, .. }
            | JoinParams::BoundKeypair { token_name, .. } => Some(token_name),
        }
    }
}

fn json_of(value: &toml::Value) -> serde_json::Value {
    use serde_json::Value as Json;
    match value {
        toml::Value::String(s) => Json::from(s.as_str()),
        toml::Value::Integer(n) => Json::from(*n),
        // NaN and infinity have no JSON; validation refuses them before this.
        toml::Value::Float(x) => Json::from(*x),
        toml::Value::Boolean(b) => Json::from(*b),
        toml::Value::Datetime(t) => Json::from(t.to_string()),
        toml::Value::Array(items) => items.iter().map(json_of).collect(),
        toml::Value::Table(table) => Json::Object(
            table
                .iter()
                .map(|(key, value)| (key.clone(), json_of(value)))
                .collect(),
        ),
    }
}

fn default_data_dir() -> PathBuf {
    "/var/lib/postern".into()
}

fn default_shutdown_timeout() -> Duration {
    Duration::from_secs(30)
}

fn default_gitlab_env() -> String {
    "POSTERN_ID_TOKEN".into()
}

fn default_kubernetes_file() -> PathBuf {
    "/var/run/secrets/tokens/postern".into()
}

fn default_proxy_listen() -> String {
    "0.0.0.0:443".into()
}

fn yes() -> bool {
    true
}
