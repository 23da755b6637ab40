//! `docs/configuration.md`, made from the types: their doc comments, defaults and ranges.
//! A test compares the file with this, so the manual can't drift from the code.

use crate::shape::{resolve, schema, type_of, words};
use serde_json::Value as Json;
use std::fmt::Write;

const HEAD: &str = "\
# Configuration

<!-- Made from the types in host/config by `UPDATE=1 cargo test -p postern-config --test reference`. -->

`posternd start -c /etc/postern/postern.toml` reads that file and every `conf.d/*.toml` beside it, in the order
of their names. All files together are one configuration: a service or section that stands in two of them is an
error, and only the first needs `version` and `cluster`. Relative paths are relative to the file they stand in.
Durations are written with their units (`30s`, `1h 30m`, `7days`), addresses as `host:port`, `[::1]:port` or
`unix:/path`.

Unknown keys are errors, with the nearest valid key:

    /etc/postern/postern.toml:12:1: unknown key \"resorces\" in [services.ssh]; did you mean \"resources\"?

`posternd check FILE` shows every error and warning without starting anything.

A server that serves SSH and one database:

```toml
version = 1
cluster = \"demo\"

[agent]
proxy = \"proxy.example.com:443\"
ca_pin = [\"sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"]
join_params = { method = \"token\", token_file = \"token\" }

[services.ssh]
plugin = \"ssh\"

[[services.ssh.resources]]
name = \"web-1\"
labels = { env = \"prod\" }

[services.orders]
plugin = \"tcp\"

[[services.orders.resources]]
name = \"orders\"
address = \"127.0.0.1:5432\"
labels = { env = \"prod\" }
```
";

/// The manual of all keys, in Markdown.
pub fn reference() -> String {
    let root = schema();
    let mut manual = Manual {
        root: &root,
        out: HEAD.to_owned(),
        join_params_done: false,
    };
    manual.section("Top of the file", &[], &root);
    manual.out
}

struct Manual<'s> {
    root: &'s Json,
    out: String,
    /// `join_params` is the same everywhere: one section for all.
    join_params_done: bool,
}

impl<'s> Manual<'s> {
    fn section(&mut self, title: &str, path: &[&str], schema: &'s Json) {
        let _ = writeln!(self.out, "\n## {title}\n");
        if let Some(text) = description(schema).filter(|text| !text.starts_with("`[")) {
            let _ = writeln!(self.out, "{text}\n");
        }
        let _ = writeln!(
            self.out,
            "| key | value | default | |\n| --- | --- | --- | --- |"
        );
        let required: Vec<&str> = schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Json::as_str)
            .collect();
        let mut tables = Vec::new();
        // What is required first, then by name; never in the order of the JSON library.
        let mut properties: Vec<_> = schema["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .collect();
        properties.sort_by_key(|(key, _)| (!required.contains(&key.as_str()), *key));
        for (key, property) in properties {
            let inner = resolve(self.root, property);
            let entry = Entry::of(self.root, key, property, inner);
            let default = match entry {
                _ if required.contains(&key.as_str()) => "(required)".to_owned(),
                Entry::Value => default(property),
                _ => String::new(),
            };
            let value = match entry {
                Entry::Value => value_type(property, inner),
                Entry::JoinParams => "[join parameters](#join-parameters)".to_owned(),
                Entry::Methods(_) => "[login at the server](#login-at-the-server)".to_owned(),
                Entry::Table(_) | Entry::Named(_) => "table".to_owned(),
                Entry::List(_) => "list of tables".to_owned(),
            };
            let text = description(property)
                .or_else(|| description(inner))
                .unwrap_or_default();
            let _ = writeln!(
                self.out,
                "| `{key}` | {value} | {default} | {} |",
                text.replace('|', "\\|")
            );
            tables.push((key.as_str(), entry));
        }
        for (key, entry) in tables {
            let mut path = path.to_vec();
            path.push(key);
            match entry {
                Entry::Value => {}
                Entry::Table(schema) => {
                    self.section(&format!("`[{}]`", path.join(".")), &path, schema)
                }
                Entry::List(schema) => {
                    self.section(&format!("`[[{}]]`", path.join(".")), &path, schema)
                }
                Entry::Named(schema) => {
                    path.push("<name>");
                    self.section(&format!("`[{}]`", path.join(".")), &path, schema);
                }
                Entry::JoinParams if self.join_params_done => {}
                Entry::JoinParams => {
                    self.join_params_done = true;
                    let schema = resolve(self.root, &schema["properties"][key]);
                    self.methods("Join parameters", key, schema);
                }
                Entry::Methods(schema) => self.methods("Login at the server", key, schema),
            }
        }
    }

    /// One of several methods, each with keys of its own.
    fn methods(&mut self, title: &str, key: &str, schema: &'s Json) {
        let text = description(schema).unwrap_or_default();
        let _ = writeln!(
            self.out,
            "\n## {title}\n\n{text} Used as `{key} = {{ method = \"…\", … }}`."
        );
        for variant in schema["oneOf"].as_array().into_iter().flatten() {
            let method = variant["properties"]["method"]["const"]
                .as_str()
                .unwrap_or_default();
            let text = description(variant).unwrap_or_default();
            let _ = writeln!(self.out, "\n`method = \"{method}\"`: {text}");
            let mut properties: Vec<_> = variant["properties"]
                .as_object()
                .into_iter()
                .flatten()
                .filter(|(key, _)| *key != "method")
                .collect();
            properties.sort_by_key(|(key, _)| *key);
            if !properties.is_empty() {
                let _ = writeln!(self.out, "\n| key | value | |\n| --- | --- | --- |");
            }
            for (key, property) in properties {
                let value = value_type(property, resolve(self.root, property));
                let text = description(property).unwrap_or_default();
                let _ = writeln!(self.out, "| `{key}` | {value} | {text} |");
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Entry<'s> {
    Value,
    Table(&'s Json),
    Named(&'s Json),
    List(&'s Json),
    JoinParams,
    Methods(&'s Json),
}

impl<'s> Entry<'s> {
    fn of(root: &'s Json, key: &str, property: &'s Json, inner: &'s Json) -> Self {
        if key == "join_params" {
            return Entry::JoinParams;
        }
        if inner["oneOf"][0]["properties"]["method"].is_object() {
            return Entry::Methods(inner);
        }
        if inner["properties"].is_object() {
            return Entry::Table(inner);
        }
        if property["x-name"].is_string() {
            return Entry::Named(resolve(root, &inner["additionalProperties"]));
        }
        let item = resolve(root, &inner["items"]);
        if item["properties"].is_object() {
            Entry::List(item)
        } else {
            Entry::Value
        }
    }
}

/// The doc comment as one line, without links that only rustdoc understands.
fn description(schema: &Json) -> Option<String> {
    let text = schema["description"].as_str()?;
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn value_type(property: &Json, inner: &Json) -> String {
    let words = words(inner);
    if !words.is_empty() {
        return words
            .iter()
            .map(|word| format!("`\"{word}\"`"))
            .collect::<Vec<_>>()
            .join(", ");
    }
    let format = [property, inner]
        .into_iter()
        .find_map(|s| s["format"].as_str());
    match (type_of(inner), format) {
        (Some("string"), Some("duration")) => "duration".into(),
        (Some("string"), Some("path")) => "path".into(),
        (Some("string"), Some("address")) => "address".into(),
        (Some("string"), Some("host:port")) => "`host:port`".into(),
        (Some("string"), _) => "string".into(),
        (Some("boolean"), _) => "`true`, `false`".into(),
        (Some("integer"), _) => {
            let bound = |key: &str| [property, inner].into_iter().find_map(|s| s[key].as_i64());
            match (bound("minimum"), bound("maximum")) {
                (Some(min), Some(max)) => format!("{min} to {max}"),
                _ => "number".into(),
            }
        }
        (Some("array"), _) => "list of strings".into(),
        _ => "table".into(),
    }
}

fn default(property: &Json) -> String {
    if let Some(text) = property["x-default"].as_str() {
        let plain = text.contains('`') || text.contains(' ');
        return if plain {
            text.to_owned()
        } else {
            format!("`{text}`")
        };
    }
    match &property["default"] {
        Json::Null => String::new(),
        Json::Array(items) if items.is_empty() => String::new(),
        Json::Object(map) if map.is_empty() => String::new(),
        value => format!("`{value}`"),
    }
}
