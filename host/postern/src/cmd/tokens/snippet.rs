//! The configuration that uses a new token: complete where we know, with examples where we don't.

use postern_api::v1::ClusterInfoResponse;

/// The address that agents dial, or a placeholder where no proxy is known yet.
pub fn proxy(cluster: &ClusterInfoResponse) -> String {
    let known = Some(&cluster.public_addr).filter(|a| !a.is_empty());
    match known.or_else(|| cluster.proxies.first()) {
        // Proxies announce names only.
        Some(address) => crate::link::address(address).unwrap_or_else(|_| address.clone()),
        None => "proxy.example.com:443".to_owned(),
    }
}

/// TOML for `posternd`; `join_params` as a value of it.
pub fn config(
    cluster: &ClusterInfoResponse,
    join_params: &str,
    kinds: &[String],
    names: &[String],
) -> String {
    let pins: Vec<String> = cluster.ca_pins.iter().map(|p| quote(p)).collect();
    let join = format!("join_params = {join_params}\n");
    let mut text = format!("version = 1\ncluster = {}\n", quote(&cluster.cluster));
    if kinds.iter().any(|k| k == "proxy") {
        text += &format!(
            "\n[proxy]\nlisten = \"0.0.0.0:443\"\npublic_addr = {}   # as others reach it\nauth_server = \"auth.example.com:3025\"   # where [auth] listens\nca_pin = [{}]\n{join}",
            quote(&proxy(cluster)),
            pins.join(", "),
        );
    }
    if kinds.iter().any(|k| k != "proxy") {
        text += &format!(
            "\n[agent]\nproxy = {}\nca_pin = [{}]\n{join}",
            quote(&proxy(cluster)),
            pins.join(", ")
        );
    }
    for kind in kinds.iter().filter(|k| *k != "proxy") {
        let service = if kind == "*" { "ssh" } else { kind.as_str() };
        text += &format!(
            "\n[services.{service}]\nplugin = {}\n[[services.{service}.resources]]\n",
            quote(service)
        );
        match names.iter().find(|n| !n.contains(['*', '?', '[', '{'])) {
            Some(name) => text += &format!("name = {}\n", quote(name)),
            None => {
                text += &format!(
                    "name = {}   # choose: what users type\n",
                    quote(example(service))
                )
            }
        }
        if service != "ssh" {
            text += "address = \"127.0.0.1:5432\"   # what is reached\n";
        }
        text += "labels = { env = \"test\" }\n";
    }
    text
}

fn example(service: &str) -> &str {
    if service == "ssh" { "web-1" } else { "orders" }
}

fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> ClusterInfoResponse {
        ClusterInfoResponse {
            cluster: "demo".into(),
            ca_pins: vec!["sha256:ab".into()],
            public_addr: "p.example.com:443".into(),
            ..Default::default()
        }
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn the_snippet() {
        assert_eq!(
            config(
                &cluster(),
                "{ method = \"token\", token = \"pt_3f9a_x\" }",
                &words(&["ssh", "tcp"]),
                &words(&["web-*", "orders"])
            ),
            r#"version = 1
cluster = "demo"

[agent]
proxy = "p.example.com:443"
ca_pin = ["sha256:ab"]
join_params = { method = "token", token = "pt_3f9a_x" }

[services.ssh]
plugin = "ssh"
[[services.ssh.resources]]
name = "orders"
labels = { env = "test" }

[services.tcp]
plugin = "tcp"
[[services.tcp.resources]]
name = "orders"
address = "127.0.0.1:5432"   # what is reached
labels = { env = "test" }
"#
        );
    }

    #[test]
    fn every_snippet_is_toml() {
        for kinds in [
            &["ssh"][..],
            &["proxy"],
            &["tcp", "proxy", "postgres"],
            &["*"],
        ] {
            let text = config(&cluster(), "{ method = \"x\" }", &words(kinds), &[]);
            assert!(text.parse::<toml::Table>().is_ok(), "{text}");
        }
    }
}
