//! Defaults, paths, and several files. What errors say is in `tests/fixtures`.

use super::*;
use crate::{LockMode, LogFormat, Transport};
use std::{fs, time::Duration};

fn ok(text: &str) -> Config {
    parse(text, Path::new("/etc/postern/postern.toml")).unwrap()
}

fn err(text: &str) -> String {
    parse(text, Path::new("/etc/postern/postern.toml"))
        .unwrap_err()
        .to_string()
}

#[test]
fn defaults() {
    let config = ok(
        "version = 1\ncluster = \"demo\"\n[auth]\n[agent]\nproxy = \"p:443\"\n[services.ssh]\nplugin = \"ssh\"",
    );
    assert_eq!(config.data_dir, Path::new("/var/lib/postern"));
    assert_eq!(config.diag.listen, "unix:/var/lib/postern/posternd.sock");
    assert_eq!(
        (config.log.level.as_str(), config.log.format),
        ("info", LogFormat::Text)
    );
    assert_eq!(config.shutdown_timeout, Duration::from_secs(30));
    let auth = config.auth.unwrap();
    assert_eq!(auth.listen, "127.0.0.1:3025");
    assert_eq!(auth.cert_ttl, Duration::from_secs(86400));
    assert_eq!(auth.rejoin_window, Duration::from_secs(7 * 86400));
    let agent = config.agent.unwrap();
    assert_eq!(
        (agent.transport, agent.lock_mode),
        (Transport::Auto, LockMode::BestEffort)
    );
    assert_eq!(
        (agent.warm_connections, agent.drain_timeout),
        (1, Duration::from_secs(3600))
    );
    let service = &config.services["ssh"];
    assert!(service.enabled && service.ssh.port_forwarding && !service.ssh.allow_same_user);
    assert_eq!(
        (service.limits.memory_mb, service.limits.max_sessions),
        (32, 4096)
    );
}

#[test]
fn every_key_is_read() {
    let config = ok(r#"
        version = 1
        cluster = "demo.example"
        data_dir = "/srv/postern"
        shutdown_timeout = "5s"
        [log]
        level = "debug"
        format = "json"
        [diag]
        listen = "127.0.0.1:9100"
        [proxy]
        listen = "[::]:3080"
        public_addr = "proxy.example.com:443"
        auth_server = "auth.example.com:3025"
        tls = { cert_file = "/c.pem", key_file = "k.pem" }
        join_params = { method = "token", token = "pt_1_x" }
        ca_pin = ["sha256:0123456789abcdef0123456789abcdef0123456789ABCDEF0123456789abcdef"]
        [agent]
        transport = "tls"
        lock_mode = "strict"
        warm_connections = 3
        drain_timeout = "1h 30m"
        plugin_dir = "plugins"
        [services.orders]
        enabled = false
        plugin = "./tcp.wasm"
        kind = "postgres"
        sha256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
        settings = { n = 1, x = 0.5, when = 2026-11-23, nested = { list = ["a", true] } }
        limits = { memory_mb = 64, cpu_ms_per_call = 50, max_sessions = 10 }
        join_params = { method = "token", token_file = "token" }
        [services.orders.ssh]
        allow_same_user = true
        accept_env = ["X_*"]
        sftp_server = "/bin/sftp"
        port_forwarding = false
        [[services.orders.resources]]
        name = "orders"
        labels = { env = "prod" }
        direct = true
        address = "unix:/run/db.sock"
    "#);
    let proxy = config.proxy.as_ref().unwrap();
    let tls = proxy.tls.as_ref().unwrap();
    assert_eq!(tls.cert_file, Path::new("/c.pem"));
    assert_eq!(tls.key_file, Path::new("/etc/postern/k.pem"));
    assert_eq!(config.diag.listen, "127.0.0.1:9100");
    let agent = config.agent.as_ref().unwrap();
    assert_eq!(agent.proxy, "[::1]:3080", "the proxy of the same file");
    assert_eq!(
        agent.plugin_dir.as_deref(),
        Some(Path::new("/etc/postern/plugins"))
    );
    assert_eq!(agent.drain_timeout, Duration::from_secs(5400));
    let service = &config.services["orders"];
    assert_eq!(service.plugin, "/etc/postern/./tcp.wasm");
    assert_eq!(
        service.settings_json(),
        r#"{"n":1,"nested":{"list":["a",true]},"when":"2026-11-23","x":0.5}"#
    );
    let Some(JoinParams::Token { token, token_file }) = &service.join_params else {
        panic!()
    };
    assert_eq!(
        (token, token_file.as_deref()),
        (&None, Some(Path::new("/etc/postern/token")))
    );
    assert_eq!(
        service.resources[0].address.as_deref(),
        Some("unix:/run/db.sock")
    );
    assert_eq!(service.resources[0].direct, Some(true));
    assert!(!format!("{config:?}").contains("pt_1_x"));
}

#[test]
fn an_agent_beside_its_proxy_needs_no_section() {
    let text = "version = 1\ncluster = \"demo\"\n[auth]\n[proxy]\nlisten = \"0.0.0.0:3080\"\npublic_addr = \"p.example:443\"\n";
    assert_eq!(ok(text).agent, None, "there is nothing for it to do");
    let config = ok(&format!("{text}[services.ssh]\nplugin = \"ssh\"\n"));
    assert_eq!(config.agent.unwrap().proxy, "127.0.0.1:3080");
}

#[test]
fn a_misspelt_key_is_not_missed_as_well() {
    let message = err(
        "version = 1\ncluster = \"demo\"\n[agent]\nprxy = \"p:443\"\n[services.ssh]\nplugin = \"ssh\"\n",
    );
    assert_eq!(message.lines().count(), 1, "{message}");
    let message = err("version = 1\nclustr = \"demo\"\n[agent]\nproxy = \"p:443\"\n");
    assert_eq!(message.lines().count(), 1, "{message}");
}

#[test]
fn places_are_of_characters() {
    let message =
        err("version = 1\ncluster = \"demo\"\nlog = { level = \"ä\", formt = \"text\" }\n[auth]");
    assert!(
        message.contains("postern.toml:3:22: unknown key \"formt\""),
        "{message}"
    );
}

#[test]
fn several_files() {
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("postern.toml");
    fs::write(&main, "version = 1\ncluster = \"demo\"\n[agent]\nproxy = \"p:443\"\n[services.a]\nplugin = \"ssh\"\n").unwrap();
    assert_eq!(sources(&main).unwrap(), std::slice::from_ref(&main));
    let conf_d = dir.path().join("conf.d");
    fs::create_dir(&conf_d).unwrap();
    fs::write(conf_d.join("b.toml"), "version = 1\n[services.b]\nplugin = \"./b.wasm\"\njoin_params = { method = \"token\", token_file = \"../token\" }\n").unwrap();
    fs::write(
        conf_d.join("c.toml"),
        "[services.c]\nplugin = \"tcp\"\n[log]\nlevel = \"debug\"\n",
    )
    .unwrap();
    fs::write(conf_d.join(".d.toml"), "nonsense").unwrap();
    fs::write(conf_d.join("e.toml.bak"), "nonsense").unwrap();
    let config = load(&main).unwrap();
    assert_eq!(config.services.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(config.log.level, "debug");
    let b = &config.services["b"];
    assert_eq!(b.plugin, conf_d.join("./b.wasm").to_str().unwrap());
    let Some(JoinParams::Token {
        token_file: Some(file),
        ..
    }) = &b.join_params
    else {
        panic!()
    };
    assert_eq!(*file, conf_d.join("../token"));
}

#[test]
fn files_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("postern.toml");
    assert!(
        load(&main)
            .unwrap_err()
            .to_string()
            .contains("postern.toml: cannot be read: No such file")
    );
    fs::write(&main, b"cluster = \"\xff\"").unwrap();
    assert!(
        load(&main)
            .unwrap_err()
            .to_string()
            .contains("is not UTF-8 text (byte 11)")
    );
    fs::write(&main, vec![b'#'; (MAX_FILE + 1) as usize]).unwrap();
    assert!(
        load(&main)
            .unwrap_err()
            .to_string()
            .contains("larger than 4 MiB")
    );
    fs::write(&main, "").unwrap();
    let message = load(&main).unwrap_err().to_string();
    assert!(
        message.contains("missing key \"cluster\"") && message.contains("missing key \"version\"")
    );
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_text_panics(text in "(\\PC|\n|=|\\[|\\]|\"){0,200}") {
            let _ = parse(&text, Path::new("x.toml"));
        }

        /// Random damage to a good file: an error with a place, or another good configuration.
        #[test]
        fn damage_is_located(at in 0usize..400, len in 0usize..20, with in "[a-z0-9=\"\\[\\]{}\n.]{0,8}") {
            let good = "version = 1\ncluster = \"demo\"\n[log]\nlevel = \"info\"\n[agent]\nproxy = \"p:443\"\nca_pin = []\njoin_params = { method = \"token\", token_file = \"t\" }\n[services.ssh]\nplugin = \"ssh\"\nlimits = { memory_mb = 3 }\n[[services.ssh.resources]]\nname = \"web-1\"\nlabels = { env = \"prod\" }\n";
            let start = at.min(good.len());
            let end = (start + len).min(good.len());
            let text = format!("{}{with}{}", &good[..start], &good[end..]);
            if let Err(error) = parse(&text, Path::new("x.toml")) {
                prop_assert!(!error.diagnostics.is_empty());
                let lines = text.lines().count().max(1) + 1;
                for diagnostic in error.diagnostics {
                    prop_assert!(diagnostic.place.is_some_and(|(line, _)| line <= lines));
                }
            }
        }
    }
}

#[test]
fn how_a_server_is_met_is_read_compared_and_warned_of() {
    let with = |keys: &str| {
        let text = format!(
            "version = 1\ncluster = \"demo\"\n[agent]\nproxy = \"p:443\"\nca_pin = [\"sha256:{}\"]\n[services.db]\nplugin = \"postgres\"\n\
             [[services.db.resources]]\nname = \"orders\"\naddress = \"db:5432\"\n{keys}\n",
            "0".repeat(64)
        );
        crate::parse(&text, Path::new("/etc/postern/postern.toml")).unwrap()
    };
    let full = with(
        "tls = { ca_file = \"ca.crt\", server_name = \"db.internal\" }\n\
         auth = { method = \"password\", passwords = { app = { file = \"app.password\" }, \"*\" = { env = \"PW\" } } }",
    );
    // Its accounts have no password: the agent logs in by certificate.
    let made = with("admin = { user = \"root\", password = { file = \"/run/root.password\" } }");
    let resource = &full.services["db"].resources[0];
    let tls = resource.tls.as_ref().unwrap();
    assert_eq!(tls.mode, crate::TlsMode::VerifyFull);
    assert_eq!(
        tls.ca_file.as_deref(),
        Some(Path::new("/etc/postern/ca.crt"))
    );
    let app = resource.auth.as_ref().unwrap().password_of("app").unwrap();
    assert_eq!(
        app.file.as_deref(),
        Some(Path::new("/etc/postern/app.password"))
    );
    let admin = made.services["db"].resources[0].admin.as_ref().unwrap();
    assert_eq!(
        admin.password.file.as_deref(),
        Some(Path::new("/run/root.password"))
    );
    let changes = |to| {
        let changes = crate::diff(&with(""), to);
        changes.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(changes(&full), ["~ service db: tls, auth"]);
    assert_eq!(changes(&made), ["~ service db: admin"]);
    assert_eq!(crate::warnings(&full), Vec::<String>::new());
    let warned = crate::warnings(&with("tls = { mode = \"insecure\" }"));
    assert!(
        warned[0].contains("\"orders\"") && warned[0].contains("can pose as it"),
        "{warned:?}"
    );
}
