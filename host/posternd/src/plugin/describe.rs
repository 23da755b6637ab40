//! What a plugin says of itself, for people and for machines.

use crate::args::PluginFile;
use anyhow::Context;
use postern_plugin::{Description, Endpoint, Plugin};
use serde_json::{Value, json};
use std::fmt::Write;

/// For people: who it is, what it asks, and the lines that serve it.
pub fn text(plugin: &Plugin, args: &PluginFile) -> anyhow::Result<String> {
    let d = plugin.description();
    let mut out = format!(
        "{}: a plugin of world {} that this posternd can run\n\n",
        plugin.file(),
        d.world.as_str()
    );
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(out, "  {name:<12}{value}");
    };
    row("kind", &d.kind);
    row("protocol", &d.protocol);
    row("version", &d.version);
    row("summary", &d.summary);
    row("sha256", plugin.digest());
    if d.principals.is_empty() {
        row("principals", "none: labels alone decide");
    }
    for (i, p) in d.principals.iter().enumerate() {
        let name = if i == 0 { "principals" } else { "" };
        row(name, &format!("{}: {}", p.name, p.help));
    }
    row("wants", &wants(d));
    let settings = settings(&schema(d)?);
    if settings.is_empty() {
        row("settings", "none");
    }
    for (i, line) in settings.iter().enumerate() {
        row(if i == 0 { "settings" } else { "" }, line);
    }
    out += &service_lines(plugin, args);
    Ok(out)
}

/// The lines of a configuration that serve it.
fn service_lines(plugin: &Plugin, args: &PluginFile) -> String {
    let kind = &plugin.description().kind;
    let path = args.file.canonicalize();
    let path = path.unwrap_or_else(|_| args.file.clone());
    let mut out = format!(
        "\nTo serve it, in an agent's configuration:\n\n  [services.{kind}]\n  plugin = {:?}\n  sha256 = \"{}\"\n",
        path.display().to_string(),
        plugin.digest()
    );
    let mut limits = Vec::new();
    if args.memory_mb != 32 {
        limits.push(format!("memory_mb = {}", args.memory_mb));
    }
    if args.cpu_ms_per_call != 200 {
        limits.push(format!("cpu_ms_per_call = {}", args.cpu_ms_per_call));
    }
    if !limits.is_empty() {
        let _ = writeln!(out, "  limits = {{ {} }}", limits.join(", "));
    }
    out
}

/// For machines.
pub fn json(plugin: &Plugin) -> anyhow::Result<Value> {
    let d = plugin.description();
    let principals: Vec<Value> = d
        .principals
        .iter()
        .map(|p| json!({"name": p.name, "help": p.help}))
        .collect();
    let endpoints: Vec<&str> = d.wants.endpoints.iter().map(endpoint).collect();
    Ok(json!({
        "file": plugin.file(),
        "sha256": plugin.digest(),
        "world": d.world.as_str(),
        "kind": d.kind,
        "protocol": d.protocol,
        "version": d.version,
        "summary": d.summary,
        "principals": principals,
        "wants": {
            "endpoints": endpoints,
            "start_tls": d.wants.start_tls,
            "challenges": d.wants.challenges,
            "send_secret": d.wants.send_secret,
            "body_filters": d.wants.body_filters,
        },
        "settings_schema": schema(d)?,
    }))
}

fn endpoint(e: &Endpoint) -> &'static str {
    match e {
        Endpoint::Main => "main",
        Endpoint::Cancel => "cancel",
        Endpoint::Admin => "admin",
    }
}

fn wants(d: &Description) -> String {
    let w = &d.wants;
    let mut all: Vec<String> = w
        .endpoints
        .iter()
        .map(|e| format!("endpoint {}", endpoint(e)))
        .collect();
    all.extend(w.challenges.iter().map(|c| format!("challenge {c}")));
    for (wanted, name) in [
        (w.start_tls, "start-tls"),
        (w.send_secret, "send-secret"),
        (w.body_filters, "body filters"),
    ] {
        if wanted {
            all.push(name.to_owned());
        }
    }
    match all.is_empty() {
        true => "nothing".to_owned(),
        false => all.join(", "),
    }
}

fn schema(d: &Description) -> anyhow::Result<Value> {
    serde_json::from_str(&d.settings_schema).context("the plugin's settings schema")
}

/// One line for each setting: `forward.allow (array): what for`.
fn settings(schema: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    collect(schema, schema, "", &mut lines, 0);
    lines
}

fn collect(root: &Value, schema: &Value, prefix: &str, lines: &mut Vec<String>, depth: usize) {
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    for (name, property) in properties {
        let path = format!("{prefix}{name}");
        let target = match property["$ref"].as_str().and_then(|r| r.strip_prefix('#')) {
            Some(pointer) => root.pointer(pointer).unwrap_or(property),
            None => property,
        };
        // Deep enough for any settings, and an end to a schema that refers to itself.
        if target["properties"].is_object() && depth < 8 {
            collect(root, target, &format!("{path}."), lines, depth + 1);
            continue;
        }
        let kind = target["type"].as_str().unwrap_or("any");
        let default = match &property["default"] {
            Value::Null => String::new(),
            value => format!(", default {value}"),
        };
        let about = property["description"]
            .as_str()
            .or_else(|| target["description"].as_str());
        // The first sentence; --json has the rest.
        let about = about.and_then(|a| a.split(". ").next());
        let about = about.map_or_else(String::new, |a| format!(": {}", a.trim_end_matches('.')));
        lines.push(format!("{path} ({kind}{default}){about}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_a_line_each_with_their_path() {
        let schema = json!({
            "properties": {
                "list": {"type": "boolean", "default": false, "description": "Whether. And more."},
                "exec": {"$ref": "#/$defs/rules", "default": {}},
                "any": {}
            },
            "$defs": {"rules": {"type": "object", "properties": {"allow": {"type": "array"}}}}
        });
        assert_eq!(
            settings(&schema),
            [
                "any (any)",
                "exec.allow (array)",
                "list (boolean, default false): Whether"
            ]
        );
        assert!(settings(&json!({"type": "object"})).is_empty());
    }
}
