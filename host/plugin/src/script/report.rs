//! What happened while a script was played, for people and for machines.

use super::ScriptError;
use crate::plugin::Plugin;
use serde::Serialize;
use std::fmt;

/// Everything that was played, up to the failure where there was one.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub plugin: String,
    pub version: String,
    pub world: &'static str,
    pub sessions: Vec<Session>,
    /// How many expectations were met, or at last not.
    pub checked: usize,
    /// Why it ended early.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<ScriptError>,
}

/// One session.
#[derive(Debug, Clone, Serialize)]
pub struct Session {
    pub name: String,
    pub events: Vec<Event>,
    /// All bytes that went to the upstream, as a script writes them.
    pub to_upstream: String,
    /// All bytes that went to the client.
    pub to_client: String,
}

/// One event of the script, and what came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    pub event: String,
    pub calls: Vec<Call>,
    /// What the host did without the plugin.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// One call into the plugin, and its answer.
#[derive(Debug, Clone, Serialize)]
pub struct Call {
    pub call: String,
    pub steps: Vec<String>,
}

impl Report {
    pub(super) fn new(plugin: &Plugin) -> Self {
        let d = plugin.description();
        Report {
            plugin: plugin.name().into(),
            version: d.version.clone(),
            world: d.world.as_str(),
            sessions: vec![],
            checked: 0,
            failure: None,
        }
    }
}

impl Session {
    pub(super) fn new(name: &str) -> Self {
        Session {
            name: name.into(),
            events: vec![],
            to_upstream: String::new(),
            to_client: String::new(),
        }
    }
}

impl Event {
    pub(super) fn new(shown: &str) -> Self {
        Event {
            event: shown.into(),
            calls: vec![],
            notes: vec![],
        }
    }

    pub(super) fn called(&mut self, call: impl Into<String>, steps: Vec<String>) {
        self.calls.push(Call {
            call: call.into(),
            steps,
        });
    }

    pub(super) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// The steps of all calls.
    pub(super) fn steps(&self) -> Vec<String> {
        self.calls.iter().flat_map(|c| c.steps.clone()).collect()
    }
}

/// The transcript; the failure is not part of it.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for session in &self.sessions {
            writeln!(f, "session {:?}", session.name)?;
            for event in &session.events {
                writeln!(f, "  {}", event.event)?;
                for call in &event.calls {
                    // One call needs no heading: the event says it.
                    if event.calls.len() > 1 {
                        writeln!(f, "    {}", call.call)?;
                    }
                    for step in &call.steps {
                        writeln!(f, "      {step}")?;
                    }
                    if call.steps.is_empty() {
                        writeln!(f, "      nothing")?;
                    }
                }
                for note in &event.notes {
                    writeln!(f, "      ({note})")?;
                }
            }
            for (who, what) in [
                ("the upstream got", &session.to_upstream),
                ("the client got", &session.to_client),
            ] {
                if what.len() > 2 {
                    writeln!(f, "  {who} {what}")?;
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
