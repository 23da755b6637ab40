//! The configuration file: types, validation, and the difference of two versions (D4).
//! (modules: model.rs = these types, load.rs = parse + conf.d + spans, validate.rs, diff.rs, reference.rs = docs generated from the types)
use std::{collections::BTreeMap, path::{Path, PathBuf}, time::Duration};

/// `version = 1`
#[derive(Debug, Clone, PartialEq)]
pub struct Config { pub version: u32, /** the cluster's name */ pub cluster: String, /** default /var/lib/postern */ pub data_dir: PathBuf, pub log: Log, /** health, metrics, status socket */ pub diag: Diag, pub auth: Option<Auth>, pub proxy: Option<Proxy>, pub agent: Option<Agent>, /** `[services.<name>]` */ pub services: BTreeMap<String, Service> }
pub struct Log { pub level: String /* "info" */, pub format: LogFormat /* Text|Json */ }
/** default unix:<data_dir>/posternd.sock */
pub struct Diag { pub listen: String /* "unix:/path" or "127.0.0.1:port" */ }
/// `[auth]`
pub struct Auth { pub listen: String /* "127.0.0.1:3025" */, pub cert_ttl: Duration /* 24h */, pub rejoin_window: Duration /* 7d */ }
/// `[proxy]`
pub struct Proxy { pub listen: String /* "0.0.0.0:443" */, pub public_addr: String /* "host:port" */, pub auth_server: Option<String> /* needed where [auth] is elsewhere */, pub tls: Option<CertFiles> /* the public web certificate; else issued by the cluster */, pub join_params: Option<JoinParams>, pub ca_pin: Vec<String> }
pub struct CertFiles { pub cert_file: PathBuf, pub key_file: PathBuf }
/// `[agent]`: what the services of this host have in common.
pub struct Agent { pub proxy: String /* "host:port" */, pub ca_pin: Vec<String>, pub join_params: Option<JoinParams>, pub transport: Transport /* Auto|Ssh|Tls */, pub lock_mode: LockMode /* BestEffort|Strict */, pub warm_connections: u32 /* 1 */, pub drain_timeout: Duration /* 1h; for SIGTERM 30s default */, pub plugin_dir: Option<PathBuf> }
/// `{ method = "token", token = "…" | token_file = "…" }`
pub enum JoinParams { Token { token: Option<Secret>, token_file: Option<PathBuf> } }
/// `[services.<name>]`
pub struct Service { pub enabled: bool /* true */, /** built-in name ("ssh", "tcp") or a path to a .wasm */ pub plugin: String, pub kind: Option<String> /* default: the plugin's describe */, pub sha256: Option<String>, pub settings: toml::Table /* validated by the plugin; passed as JSON */, pub limits: Limits, pub join_params: Option<JoinParams> /* overrides [agent] */, pub resources: Vec<Resource> /* [[services.x.resources]] */, pub ssh: SshOptions /* [services.x.ssh], for plugins of world ssh */ }
pub struct Limits { pub memory_mb: u32 /* 32 */, pub cpu_ms_per_call: u32 /* 200 */ , pub max_sessions: u32 /* 4096 */ }
pub struct Resource { pub name: String, pub labels: BTreeMap<String, String>, pub direct: Option<bool>, /** "host:port" or "unix:/path": what the host dials for endpoint `main`; for codec and http plugins */ pub address: Option<String>, pub tls: Option<UpstreamTls> /* leave room, [C] */ }
pub struct SshOptions { pub allow_same_user: bool /* false */, pub accept_env: Vec<String> /* ["LANG","LC_*","TERM","COLORTERM"] globs */, pub sftp_server: PathBuf /* /usr/lib/openssh/sftp-server */, pub port_forwarding: bool /* true */ }
