//! What is shown, and that differences add up.

use super::*;
use crate::{Proxy, parse};
use proptest::prelude::*;
use std::path::Path;

fn config(text: &str) -> Config {
    let text = format!("version = 1\ncluster = \"demo\"\n{text}");
    parse(&text, Path::new("/etc/postern/postern.toml")).unwrap()
}

fn shown(old: &Config, new: &Config) -> Vec<String> {
    diff(old, new).iter().map(Change::to_string).collect()
}

#[test]
fn as_a_person_reads_it() {
    let old = config(
        r#"
        [agent]
        proxy = "p:443"
        [services.old]
        plugin = "tcp"
        [services.off]
        plugin = "tcp"
        [services.ssh]
        plugin = "ssh"
        [[services.ssh.resources]]
        name = "web-1"
        [[services.ssh.resources]]
        name = "web-2"
    "#,
    );
    let new = config(
        r#"
        [agent]
        proxy = "q:443"
        ca_pin = []
        lock_mode = "strict"
        [log]
        level = "debug"
        [diag]
        listen = "127.0.0.1:1"
        [services.databases]
        plugin = "tcp"
        [services.off]
        enabled = false
        plugin = "tcp"
        [services.ssh]
        plugin = "ssh"
        settings = { a = 1 }
        [[services.ssh.resources]]
        name = "web-2"
        [[services.ssh.resources]]
        name = "web-1"
        labels = { env = "prod" }
    "#,
    );
    assert_eq!(
        shown(&old, &new),
        [
            "! diag: listen (needs a restart)",
            "~ log",
            "~ agent: proxy, lock_mode",
            "+ service databases",
            "- service off (disabled)",
            "- service old",
            "~ service ssh: settings, labels",
        ]
    );
    assert_eq!(
        shown(&new, &old)[3..],
        [
            "- service databases",
            "+ service off",
            "+ service old",
            "~ service ssh: settings, labels"
        ]
    );
}

#[test]
fn sections_need_a_restart() {
    let agent = config("[agent]\nproxy = \"p:443\"\n");
    let mut other = agent.clone();
    other.proxy = Some(Proxy {
        listen: "0.0.0.0:443".into(),
        public_addr: "p:443".into(),
        auth_server: None,
        tls: None,
        join_params: None,
        ca_pin: vec![],
    });
    other.data_dir = "/elsewhere".into();
    assert_eq!(
        shown(&agent, &other),
        ["! data_dir (needs a restart)", "! proxy (needs a restart)"]
    );
    let mut moved = other.clone();
    moved.proxy.as_mut().unwrap().listen = "0.0.0.0:444".into();
    assert_eq!(shown(&other, &moved), ["! proxy: listen (needs a restart)"]);
}

fn any_service() -> impl Strategy<Value = Service> {
    let resource = ("[ab]", prop::option::of("[xy]"), any::<Option<bool>>()).prop_map(
        |(name, env, direct)| Resource {
            name,
            labels: env.into_iter().map(|env| ("env".to_owned(), env)).collect(),
            direct,
            ..Resource::default()
        },
    );
    let resources = prop::collection::vec(resource, 0..3).prop_map(|mut all| {
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all.dedup_by(|a, b| a.name == b.name);
        all
    });
    (any::<bool>(), "ssh|tcp", resources, 1u32..3, any::<bool>()).prop_map(
        |(enabled, plugin, resources, memory_mb, probed)| Service {
            enabled,
            plugin,
            resources,
            health_check: crate::HealthCheck {
                enabled: probed,
                ..Default::default()
            },
            limits: crate::Limits {
                memory_mb,
                ..Default::default()
            },
            ..Service::default()
        },
    )
}

fn any_config() -> impl Strategy<Value = Config> {
    (
        prop::collection::btree_map("[a-d]", any_service(), 0..4),
        0u32..2,
        "info|debug",
    )
        .prop_map(|(services, warm, level)| {
            let mut config = config("[agent]\nproxy = \"p:443\"\n");
            config.services = services;
            config.log.level = level;
            config.agent.as_mut().unwrap().warm_connections = warm;
            config
        })
}

fn without_disabled(config: &Config) -> Config {
    let mut config = config.clone();
    config.services.retain(|_, service| service.enabled);
    config
}

proptest! {
    #[test]
    fn nothing_changed_exactly_where_nothing_differs(a in any_config(), b in any_config()) {
        prop_assert!(diff(&a, &a).is_empty());
        prop_assert_eq!(diff(&a, &b).is_empty(), without_disabled(&a) == without_disabled(&b));
    }

    #[test]
    fn the_way_back_is_the_mirror(a in any_config(), b in any_config()) {
        let mirrored: Vec<String> = diff(&b, &a).iter().map(|change| match change {
            Change::ServiceAdded { name } => format!("- service {name}"),
            Change::ServiceRemoved { name, .. } => format!("+ service {name}"),
            other => other.to_string(),
        }).collect();
        let there: Vec<String> = shown(&a, &b).into_iter().map(|text| text.replace(" (disabled)", "")).collect();
        prop_assert_eq!(there, mirrored);
    }

    #[test]
    fn carrying_out_the_changes_leads_to_the_new_one(a in any_config(), b in any_config()) {
        let mut running = without_disabled(&a);
        for change in diff(&a, &b) {
            match change {
                Change::ServiceAdded { name } | Change::ServiceChanged { name, .. } => {
                    running.services.insert(name.clone(), b.services[&name].clone());
                }
                Change::ServiceRemoved { name, .. } => {
                    prop_assert!(running.services.remove(&name).is_some());
                }
                Change::AgentChanged { .. } => running.agent = b.agent.clone(),
                Change::LogChanged => running.log = b.log.clone(),
                Change::NeedsRestart { .. } => prop_assert!(false),
            }
        }
        prop_assert_eq!(running, without_disabled(&b));
    }
}
