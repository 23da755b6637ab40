//! What the types can't say: names, addresses, pins, and which settings need which others.

use crate::{
    Address, Config, JoinParams, Resource, SecretSource, Service, TlsMode, UpstreamAuth,
    keypath::{KeyPath, at, in_table, key},
};
use std::collections::{BTreeMap, btree_map::Entry};
use std::time::Duration;

/// Kinds that name parts of the cluster itself: `auth.<cluster>`, `proxy.<cluster>`, the web port.
pub const RESERVED_KINDS: [&str; 3] = ["auth", "proxy", "web"];

/// For a probe that waits longer than a session does for its server, what users can't reach would be healthy.
const LONGEST_PROBE: Duration = Duration::from_secs(10);

/// Something wrong with a value.
#[derive(Debug)]
pub(crate) struct Problem {
    /// The value, or for something missing the table that should have it.
    pub at: KeyPath,
    pub missing: bool,
    pub message: String,
}

/// Everything that is wrong.
pub(crate) fn validate(config: &Config) -> Vec<Problem> {
    let mut check = Check {
        problems: Vec::new(),
    };
    check.top(config);
    check.auth_and_proxy(config);
    check.agent(config);
    let mut taken = BTreeMap::new();
    for (name, service) in &config.services {
        check.service(config, name, service);
        check.resources(config, name, service, &mut taken);
    }
    check.problems
}

/// What is allowed but should be known: shown by `posternd check` and logged at the start.
pub fn warnings(config: &Config) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(agent) = &config.agent
        && agent.ca_pin.is_empty()
        && config.proxy.is_none()
    {
        out.push("[agent] has no ca_pin: the cluster's CA is fetched once over the proxy's HTTPS and kept, which trusts the proxy that once; `posternd status` on the Auth host shows the pin".into());
    }
    if let Some(proxy) = &config.proxy
        && config.auth.is_none()
        && proxy.ca_pin.is_empty()
    {
        out.push("[proxy] has no ca_pin: it trusts whatever answers at auth_server when it joins; `posternd status` on the Auth host shows the pin".into());
    }
    if config
        .diag
        .listen
        .parse::<Address>()
        .is_ok_and(|address| !address.is_local())
    {
        out.push(format!(
            "[diag] listens on {}, which other hosts may reach without logging in",
            config.diag.listen
        ));
    }
    let tokens = config
        .services
        .iter()
        .map(|(name, s)| (format!("[services.{name}]"), &s.join_params));
    let tokens = tokens
        .chain(
            config
                .agent
                .iter()
                .map(|a| ("[agent]".to_owned(), &a.join_params)),
        )
        .chain(
            config
                .proxy
                .iter()
                .map(|p| ("[proxy]".to_owned(), &p.join_params)),
        );
    for (section, join) in tokens {
        if let Some(JoinParams::Token { token: Some(_), .. }) = join {
            out.push(format!("{section} holds a join token itself; token_file keeps it out of copies of this file"));
        }
    }
    for (name, service) in &config.services {
        if service.plugin_is_path() && service.sha256.is_none() {
            out.push(format!(
                "[services.{name}] has no sha256: whatever is at {} is loaded",
                service.plugin
            ));
        }
        let insecure =
            |r: &&Resource| (r.tls.as_ref()).is_some_and(|tls| tls.mode == TlsMode::Insecure);
        for resource in service.resources.iter().filter(insecure) {
            out.push(format!(
                "resource {:?} of service {name:?} has tls.mode = \"insecure\": whoever is between this host and {} can pose as it, and read and change everything; use \"verify-full\" with ca_file",
                resource.name,
                resource.address.as_deref().unwrap_or("the server")
            ));
        }
        if service.enabled && service.resources.is_empty() {
            out.push(format!(
                "service {name:?} has no resources, so nobody can reach it"
            ));
        }
    }
    out
}

struct Check {
    problems: Vec<Problem>,
}

impl Check {
    fn wrong(&mut self, at: KeyPath, message: impl Into<String>) {
        self.problems.push(Problem {
            at,
            missing: false,
            message: message.into(),
        });
    }

    fn missing(&mut self, at: KeyPath, message: impl Into<String>) {
        self.problems.push(Problem {
            at,
            missing: true,
            message: message.into(),
        });
    }

    fn top(&mut self, config: &Config) {
        if config.version != 1 {
            self.wrong(
                at!["version"],
                format!("version {} is not understood; it must be 1", config.version),
            );
        }
        if let Err(why) = cluster_name(&config.cluster) {
            self.wrong(
                at!["cluster"],
                format!("cluster name {:?} {why}", config.cluster),
            );
        }
        if config.data_dir.as_os_str().is_empty() {
            self.wrong(at!["data_dir"], "key \"data_dir\" must not be empty");
        }
        self.address(&config.diag.listen, at!["diag", "listen"]);
        if config.auth.is_none()
            && config.proxy.is_none()
            && config.agent.is_none()
            && config.services.is_empty()
        {
            self.missing(
                at![],
                "nothing to run: there is neither [auth] nor [proxy] nor [agent] with [services]",
            );
        }
    }

    fn auth_and_proxy(&mut self, config: &Config) {
        if let Some(auth) = &config.auth {
            self.tcp(&auth.listen, at!["auth", "listen"], true);
            self.at_least(auth.cert_ttl, 60, at!["auth", "cert_ttl"]);
        }
        let Some(proxy) = &config.proxy else { return };
        self.tcp(&proxy.listen, at!["proxy", "listen"], true);
        self.tcp(&proxy.public_addr, at!["proxy", "public_addr"], false);
        if let Some(auth_server) = &proxy.auth_server {
            self.tcp(auth_server, at!["proxy", "auth_server"], false);
        }
        self.pins(&proxy.ca_pin, at!["proxy", "ca_pin"]);
        self.join_params(proxy.join_params.as_ref(), at!["proxy", "join_params"]);
        if config.auth.is_none() {
            if proxy.auth_server.is_none() {
                self.missing(at!["proxy"], "[proxy] needs auth_server, the Auth Service's host:port, because there is no [auth] in this file");
            }
            if proxy.join_params.is_none() {
                self.missing(at!["proxy"], "[proxy] needs join_params, because there is no [auth] in this file; make a token with: postern tokens create --kinds proxy");
            }
        } else if proxy.auth_server.is_some() {
            self.wrong(at!["proxy", "auth_server"], "key \"auth_server\" in [proxy] is for an Auth Service elsewhere, but this file has [auth]; remove one of them");
        }
    }

    fn agent(&mut self, config: &Config) {
        // Beside a proxy, both the section and its address may be left out.
        let beside = config.proxy.is_some();
        let Some(agent) = &config.agent else {
            if !config.services.is_empty() && !beside {
                self.missing(at!["services"], "[services] needs [agent] with the proxy's address, as in: [agent] proxy = \"proxy.example.com:443\"");
            }
            return;
        };
        if !agent.proxy.is_empty() {
            self.tcp(&agent.proxy, at!["agent", "proxy"], false);
        } else if !beside {
            self.missing(at!["agent"], "[agent] needs proxy, the Proxy Service's public host:port, because there is no [proxy] in this file");
        }
        self.pins(&agent.ca_pin, at!["agent", "ca_pin"]);
        self.join_params(agent.join_params.as_ref(), at!["agent", "join_params"]);
    }

    fn service(&mut self, config: &Config, name: &str, service: &Service) {
        if let Err(why) = label(name) {
            self.wrong(
                at!["services", name],
                format!("service name {name:?} {why}"),
            );
        }
        let path = |key: &str| at!["services", name, key];
        if service.plugin.is_empty() {
            self.wrong(
                path("plugin"),
                format!("{} must not be empty", key(&path("plugin"))),
            );
        } else if !service.plugin_is_path()
            && let Err(why) = label(&service.plugin)
        {
            let why = format!(
                "plugin {:?} {why}; a file is named by its path, as in \"./{}.wasm\"",
                service.plugin, service.plugin
            );
            self.wrong(path("plugin"), why);
        }
        if let Some(kind) = &service.kind {
            if let Err(why) = label(kind) {
                self.wrong(path("kind"), format!("kind {kind:?} {why}"));
            } else if RESERVED_KINDS.contains(&kind.as_str()) {
                self.wrong(
                    path("kind"),
                    format!("kind {kind:?} is reserved for the cluster itself; choose another"),
                );
            }
        }
        if let Some(digest) = &service.sha256
            && !is_sha256(digest)
        {
            self.wrong(
                path("sha256"),
                format!(
                    "{} must be 64 hex digits, as sha256sum prints them",
                    key(&path("sha256"))
                ),
            );
        }
        if has_nan(&toml::Value::Table(service.settings.clone())) {
            self.wrong(
                path("settings"),
                format!(
                    "{} holds nan or inf, which plugins can't read",
                    key(&path("settings"))
                ),
            );
        }
        for (n, pattern) in service.ssh.accept_env.iter().enumerate() {
            if let Err(e) = globset::Glob::new(pattern) {
                let at = at!["services", name, "ssh", "accept_env", n];
                self.wrong(
                    at.clone(),
                    format!("{}: {pattern:?} is no pattern: {}", key(&at), e.kind()),
                );
            }
        }
        let check = &service.health_check;
        for (key, value) in [("interval", check.interval), ("timeout", check.timeout)] {
            self.at_least(value, 1, at!["services", name, "health_check", key]);
        }
        if check.timeout > LONGEST_PROBE {
            let at = at!["services", name, "health_check", "timeout"];
            let most = humantime::format_duration(LONGEST_PROBE);
            self.wrong(
                at.clone(),
                format!(
                    "{} must be at most {most}: a session does not wait longer for its server either",
                    key(&at)
                ),
            );
        }
        self.join_params(service.join_params.as_ref(), path("join_params"));
        let longest = service
            .resources
            .iter()
            .map(|r| r.name.len())
            .max()
            .unwrap_or(0);
        // A DNS name has at most 253 bytes; the kind may come from the plugin, whose name stands in.
        if longest + kind_of(service).len().min(63) + config.cluster.len() + 2 > 253 {
            self.wrong(path("resources"), format!("the DNS names of the resources of service {name:?} (<resource>.<kind>.{}) would be longer than 253 bytes; use shorter names", config.cluster));
        }
    }

    fn resources<'c>(
        &mut self,
        _: &Config,
        service_name: &'c str,
        service: &'c Service,
        taken: &mut BTreeMap<(&'c str, &'c str), &'c str>,
    ) {
        for (n, resource) in service.resources.iter().enumerate() {
            let path = |key: &str| at!["services", service_name, "resources", n, key];
            let name = resource.name.as_str();
            if let Err(why) = label(name) {
                self.wrong(path("name"), format!("resource name {name:?} {why}"));
            } else if service.enabled {
                let kind = kind_of(service);
                match taken.entry((kind, name)) {
                    Entry::Vacant(free) => {
                        free.insert(service_name);
                    }
                    Entry::Occupied(first) => {
                        let whose = if *first.get() == service_name {
                            "this service".to_owned()
                        } else {
                            format!("service {:?}", first.get())
                        };
                        self.wrong(path("name"), format!("resource {name:?} of kind {kind:?} is already in {whose}; names are unique per kind"));
                    }
                }
            }
            for (label, value) in &resource.labels {
                if let Err(why) = label_pair(label, value) {
                    let at = at!["services", service_name, "resources", n, "labels", label];
                    self.wrong(at, format!("label {label:?} of resource {name:?} {why}"));
                }
            }
            if let Some(address) = &resource.address {
                self.address(address, path("address"));
                if address
                    .parse::<Address>()
                    .is_ok_and(|a| matches!(a, Address::Tcp { port: 0, .. }))
                {
                    self.wrong(
                        path("address"),
                        format!(
                            "{}: nothing can be dialled at port 0",
                            key(&path("address"))
                        ),
                    );
                }
            }
            self.upstream(resource, path);
        }
    }

    /// How the server behind a resource is met.
    fn upstream(&mut self, resource: &Resource, path: impl Fn(&str) -> KeyPath) {
        if let Some(tls) = &resource.tls {
            for (set, key) in [
                (tls.ca_file.is_some(), "ca_file"),
                (tls.server_name.is_some(), "server_name"),
            ] {
                let unused = match tls.mode {
                    TlsMode::Insecure => true,
                    TlsMode::VerifyCa => key == "server_name",
                    TlsMode::VerifyFull => false,
                };
                if set && unused {
                    let mut at = path("tls");
                    at.push(key.into());
                    let table = in_table(&path("tls"));
                    self.wrong(
                        at,
                        format!("key {key:?}{table} is not looked at with this mode; remove it, or set mode = \"verify-full\""),
                    );
                }
            }
        }
        if let Some(UpstreamAuth::Password { passwords }) = &resource.auth {
            if passwords.is_empty() {
                let message = format!(
                    "no passwords{}; write for example: passwords = {{ app = {{ file = \"app.password\" }} }}",
                    in_table(&path("auth"))
                );
                self.missing(path("auth"), message);
            }
            for (account, source) in passwords {
                let mut at = path("auth");
                at.extend(["passwords".into(), account.into()]);
                self.secret(source, at);
            }
        }
        if let Some(admin) = &resource.admin {
            let mut at = path("admin");
            if admin.user.is_empty() {
                at.push("user".into());
                self.wrong(at.clone(), format!("{} must not be empty", key(&at)));
                at.pop();
            }
            if admin.database.is_empty() {
                at.push("database".into());
                self.wrong(at.clone(), format!("{} must not be empty", key(&at)));
                at.pop();
            }
            if matches!(resource.auth, Some(UpstreamAuth::Password { .. })) {
                self.wrong(
                    at.clone(),
                    format!("{} makes accounts, which have no password; remove auth, so that the agent logs in by certificate, or remove admin", key(&at)),
                );
            }
            at.push("password".into());
            self.secret(&admin.password, at);
        }
    }

    fn secret(&mut self, source: &SecretSource, at: KeyPath) {
        let said = match (&source.file, &source.env) {
            (Some(_), Some(_)) => "both file and env",
            (None, None) => "neither file nor env",
            (Some(file), None) if file.as_os_str().is_empty() => "an empty file",
            (None, Some(env)) if env.is_empty() || env.contains(['=', '\0']) => {
                "an env that is no name"
            }
            _ => return,
        };
        let table = in_table(&at);
        self.wrong(
            at,
            format!("{said}{table}; write {{ file = \"/path\" }} or {{ env = \"NAME\" }}"),
        );
    }

    fn address(&mut self, value: &str, at: KeyPath) {
        if let Err(e) = value.parse::<Address>() {
            self.wrong(at.clone(), format!("{}: {e}", key(&at)));
        }
    }

    /// A `host:port`; what is to be dialled by others needs a real port and a real host.
    fn tcp(&mut self, value: &str, at: KeyPath, listen: bool) {
        let key = key(&at);
        match value.parse::<Address>() {
            Err(e) => self.wrong(at, format!("{key}: {e}")),
            Ok(Address::Unix(_)) => {
                self.wrong(at, format!("{key} must be host:port, not a Unix socket"))
            }
            Ok(Address::Tcp { port: 0, .. }) if !listen => {
                self.wrong(at, format!("{key}: nothing can be dialled at port 0"));
            }
            Ok(address) if !listen && address.is_unspecified() => {
                self.wrong(at, format!("{key}: {value:?} stands for all addresses of a host; name one that can be dialled"));
            }
            Ok(_) => {}
        }
    }

    fn at_least(&mut self, value: Duration, seconds: u64, at: KeyPath) {
        if value < Duration::from_secs(seconds) {
            let least = humantime::format_duration(Duration::from_secs(seconds));
            self.wrong(at.clone(), format!("{} must be at least {least}", key(&at)));
        }
    }

    fn pins(&mut self, pins: &[String], at: KeyPath) {
        for (n, pin) in pins.iter().enumerate() {
            if !pin.strip_prefix("sha256:").is_some_and(is_sha256) {
                let mut at = at.clone();
                at.push(n.into());
                let message = format!(
                    "{}: {pin:?} is no pin; it has the form sha256:<64 hex digits>",
                    key(&at)
                );
                self.wrong(at, message);
            }
        }
    }

    fn join_params(&mut self, join: Option<&JoinParams>, at: KeyPath) {
        let Some(join) = join else { return };
        let table = in_table(&at);
        if let Some(name) = join.token_name()
            && let Err(rule) = label(name)
        {
            let mut at = at.clone();
            at.push("token_name".into());
            self.wrong(at, format!("token_name {name:?}{table} {rule}"));
        }
        match join {
            JoinParams::Token { token, token_file } => match (token, token_file) {
                (Some(_), Some(_)) => {
                    let message = format!("both token and token_file{table}; keep token_file");
                    self.wrong(at, message);
                }
                (None, None) => {
                    let message = format!(
                        "neither token nor token_file{table}; make a token with: postern tokens create"
                    );
                    self.missing(at, message);
                }
                (Some(token), None) if token.expose().trim().is_empty() => {
                    self.wrong(at, format!("token{table} is empty"));
                }
                _ => {}
            },
            JoinParams::Oidc {
                id_token_file,
                id_token_env,
                ..
            } => match (id_token_file, id_token_env) {
                (Some(_), Some(_)) => {
                    let message =
                        format!("both id_token_file and id_token_env{table}; one of them is meant");
                    self.wrong(at, message);
                }
                (None, None) => {
                    let message = format!(
                        "neither id_token_file nor id_token_env{table}; say where the issuer's token is"
                    );
                    self.missing(at, message);
                }
                _ => {}
            },
            JoinParams::Github { .. }
            | JoinParams::Gitlab { .. }
            | JoinParams::Kubernetes { .. }
            | JoinParams::BoundKeypair { .. } => {}
        }
    }
}

/// The service's kind; where the plugin decides, its name stands for it, so that two services
/// of one plugin are compared.
fn kind_of(service: &Service) -> &str {
    service.kind.as_deref().unwrap_or(&service.plugin)
}

const LABEL_RULE: &str =
    "is no DNS label: 1 to 63 of a-z, 0-9 and -, neither starting nor ending with -";

fn label(value: &str) -> Result<(), &'static str> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let good = (1..=63).contains(&value.len())
        && value.bytes().all(allowed)
        && !value.starts_with('-')
        && !value.ends_with('-');
    if good { Ok(()) } else { Err(LABEL_RULE) }
}

fn cluster_name(value: &str) -> Result<(), &'static str> {
    if value.len() > 200 {
        return Err("is longer than 200 bytes");
    }
    if value.split('.').all(|part| label(part).is_ok()) {
        return Ok(());
    }
    Err("is not made of DNS labels (a-z, 0-9 and -) joined by dots")
}

/// Labels appear in certificates, tables and logs: short, visible, without surprises.
fn label_pair(key: &str, value: &str) -> Result<(), &'static str> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_-./".contains(&b);
    if !(1..=63).contains(&key.len()) || !key.bytes().all(allowed) {
        return Err("has a name that is not 1 to 63 of letters, digits and _-./");
    }
    if value.len() > 255 || value.chars().any(char::is_control) {
        return Err("has a value that is longer than 255 bytes or holds control characters");
    }
    Ok(())
}

fn is_sha256(hex: &str) -> bool {
    hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())
}

fn has_nan(value: &toml::Value) -> bool {
    match value {
        toml::Value::Float(x) => !x.is_finite(),
        toml::Value::Array(items) => items.iter().any(has_nan),
        toml::Value::Table(table) => table.values().any(has_nan),
        _ => false,
    }
}
