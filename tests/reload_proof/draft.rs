//! A configuration as the proof edits it: a value, of which the file is a rendering.

use std::collections::BTreeMap;
use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// `key = value` before the first section.
    pub top: BTreeMap<String, String>,
    pub level: String,
    /// Of the log.
    pub format: String,
    /// `key = value` in `[agent]`.
    pub agent: BTreeMap<String, String>,
    pub services: BTreeMap<String, Service>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub enabled: bool,
    pub plugin: String,
    /// Further `key = value`.
    pub lines: BTreeMap<String, String>,
    pub resources: BTreeMap<String, Resource>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    pub port: Option<u16>,
    /// The label `env`.
    pub env: String,
}

impl Service {
    /// An SSH service with one server.
    pub fn ssh(resource: &str, lines: &[(&str, &str)]) -> Service {
        Service::new("ssh", lines).with(resource, None)
    }

    /// A service without resources.
    pub fn new(plugin: &str, lines: &[(&str, &str)]) -> Service {
        Service {
            enabled: true,
            plugin: plugin.into(),
            lines: pairs(lines),
            resources: BTreeMap::new(),
        }
    }

    pub fn with(mut self, resource: &str, port: Option<u16>) -> Service {
        let env = "test".to_owned();
        self.resources
            .insert(resource.into(), Resource { port, env });
        self
    }
}

pub fn pairs(lines: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(k, v): &(&str, &str)| (k.to_string(), v.to_string());
    lines.iter().map(owned).collect()
}

impl fmt::Display for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        lines(f, &self.top)?;
        writeln!(f, "[log]\nlevel = {:?}", self.level)?;
        writeln!(f, "format = {:?}\n[agent]", self.format)?;
        lines(f, &self.agent)?;
        for (name, service) in &self.services {
            writeln!(f, "[services.{name}]\nplugin = {:?}", service.plugin)?;
            if !service.enabled {
                writeln!(f, "enabled = false")?;
            }
            lines(f, &service.lines)?;
            for (resource, r) in &service.resources {
                writeln!(f, "[[services.{name}.resources]]\nname = {resource:?}")?;
                writeln!(f, "labels = {{ env = {:?} }}", r.env)?;
                if let Some(port) = r.port {
                    writeln!(f, "address = \"127.0.0.1:{port}\"")?;
                }
            }
        }
        Ok(())
    }
}

fn lines(f: &mut fmt::Formatter<'_>, lines: &BTreeMap<String, String>) -> fmt::Result {
    lines.iter().try_for_each(|(k, v)| writeln!(f, "{k} = {v}"))
}
