//! Sessions from a file, played through a plugin: bytes in, steps out, no network and no cluster. For plugin authors.
//!
//! A [`Script`] (TOML) lists what happens to a connection (`client = "…"`, `authorize = "allow"`, …) or in an SSH session
//! (`exec = "…"`). [`Script::play`] does it to a fresh instance as the host would, by the same rules, and tells every step
//! that the plugin answered. Where the script says what it expects, the first difference ends it.

mod codec;
mod conn;
mod error;
mod file;
mod report;
mod show;
mod ssh;

pub use error::ScriptError;
pub use report::{Call, Event, Report, Session};

use crate::error::PluginError;
use crate::plugin::Plugin;
use crate::types::World;
use error::Trouble;
use file::What;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// A parsed script.
#[derive(Debug, Clone)]
pub struct Script {
    settings: Option<Map<String, Value>>,
    sessions: Vec<file::Session>,
}

impl Script {
    /// Reads TOML. Errors: no TOML, unknown keys, events that say nothing or two things at once; each with its place.
    pub fn parse(text: &str) -> Result<Script, ScriptError> {
        file::parse(text)
    }

    /// Plays every session, each on an instance of its own, up to the first failure. `settings` (a JSON object) stand in for
    /// the script's own, but not for those of a single session.
    pub async fn play(&self, plugin: &Plugin, settings: Option<&Map<String, Value>>) -> Report {
        let mut report = Report::new(plugin);
        let mut valid = BTreeSet::new();
        for (i, session) in self.sessions.iter().enumerate() {
            let told = session.name.clone();
            let name = told.unwrap_or_else(|| (i + 1).to_string());
            let settings = session.settings.as_ref().or(settings);
            let settings = settings.or(self.settings.as_ref());
            let settings =
                settings.map_or_else(|| "{}".to_owned(), |s| Value::Object(s.clone()).to_string());
            if !valid.contains(&settings) {
                if let Err(e) = plugin.validate(&settings).await {
                    report.failure = Some(ScriptError::plugin(&name, None, e));
                    return report;
                }
                valid.insert(settings.clone());
            }
            report.sessions.push(Session::new(&name));
            if let Err(e) = play_one(plugin, session, &name, &settings, &mut report).await {
                report.failure = Some(e);
                return report;
            }
        }
        report
    }
}

/// One session, from its opening to its last event.
async fn play_one(
    plugin: &Plugin,
    session: &file::Session,
    name: &str,
    settings: &str,
    report: &mut Report,
) -> Result<(), ScriptError> {
    let world = plugin.description().world;
    let mut player = match world {
        World::Codec if session.who.is_some() => {
            let why = "`who` is for plugins of world ssh: a codec is not told who the user is";
            return Err(ScriptError::at(name, None, why));
        }
        World::Codec => {
            let codec = plugin.codec(settings, name).await;
            let codec = codec.map_err(|e| ScriptError::plugin(name, None, e))?;
            Player::Codec(Box::new(codec::Player::new(codec)))
        }
        World::Ssh => Player::Ssh(ssh::Player::new(plugin, settings, session, name)),
    };
    if !matches!(session.events.first().map(|e| &e.what), Some(What::Open)) {
        // It is always the first thing that happens, so it need not be said.
        let mut event = Event::new("open");
        let done = player.event(&What::Open, &mut event).await;
        keep(report, event, player.totals());
        done.map_err(|t| t.at(name, Some(("open".to_owned(), 0))))?;
    }
    for (i, wanted) in session.events.iter().enumerate() {
        let shown = wanted.what.to_string();
        let place = (shown.clone(), i + 1);
        let mut event = Event::new(&shown);
        let done = match wanted.what.world() {
            Some(other) if other != world => Err(Trouble::Script(format!(
                "that happens in world {}, but the plugin is of world {}, where events are: {}",
                other.as_str(),
                world.as_str(),
                file::events_of(world)
            ))),
            _ => player.event(&wanted.what, &mut event).await,
        };
        let answered = event.steps();
        keep(report, event, player.totals());
        done.map_err(|t| t.at(name, Some(place.clone())))?;
        if let Some(expected) = &wanted.expect {
            report.checked += 1;
            show::compare(expected, &answered)
                .map_err(|diff| ScriptError::differs(name, place, diff))?;
        }
    }
    let (to_upstream, to_client) = player.totals();
    for (key, expected, got) in [
        ("upstream_gets", &session.upstream_gets, to_upstream),
        ("client_gets", &session.client_gets, to_client),
    ] {
        let Some(expected) = expected else { continue };
        report.checked += 1;
        if *expected != got {
            let (expected, got) = (show::bytes(expected), show::bytes(&got));
            let why = format!("{key}: other bytes than expected\n  - {expected}\n  + {got}");
            return Err(ScriptError::at(name, None, why));
        }
    }
    Ok(())
}

/// Puts what happened into the report, so that it is told even where it failed.
fn keep(report: &mut Report, event: Event, (to_upstream, to_client): (Vec<u8>, Vec<u8>)) {
    if let Some(session) = report.sessions.last_mut() {
        session.events.push(event);
        session.to_upstream = show::bytes(&to_upstream);
        session.to_client = show::bytes(&to_client);
    }
}

enum Player<'a> {
    Codec(Box<codec::Player>),
    Ssh(ssh::Player<'a>),
}

impl Player<'_> {
    async fn event(&mut self, what: &What, told: &mut Event) -> Result<(), Trouble> {
        match self {
            Player::Codec(p) => p.event(what, told).await,
            Player::Ssh(p) => p.event(what, told).await,
        }
    }

    /// All bytes that went (to the upstream, to the client) so far.
    fn totals(&self) -> (Vec<u8>, Vec<u8>) {
        match self {
            Player::Codec(p) => p.totals(),
            Player::Ssh(_) => Default::default(),
        }
    }
}

impl From<PluginError> for Trouble {
    fn from(e: PluginError) -> Self {
        Trouble::Plugin(e)
    }
}
