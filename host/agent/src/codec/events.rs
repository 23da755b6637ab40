//! A plugin's events on their way to the audit log: their names, and how far a session may be ahead of its record.

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use postern_access::Recorded;
use postern_audit::{Emitter, Event, Pending};
use postern_identity::check_label;
use postern_plugin::PluginEvent;
use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::OnceLock;
use tokio::sync::Mutex;

/// Kinds whose plugin events have names of the host's, where the plugin is built in: what a stranger's plugin says stays
/// under `plugin.`, so that it can't pass for this.
const HOST_NAMED: [(&str, &str); 1] = [("postgres", "db")];
/// Events that other plugins may word in a second.
const PLUGIN_EVENTS: NonZeroU32 = NonZeroU32::new(100).unwrap();
/// Events of one session that are not on disk yet; with one more it waits.
const AHEAD: usize = 512;
/// Fields of an event.
const MAX_FIELDS: usize = 64;
/// Auth takes no longer names.
const MAX_NAME: usize = 64;
/// The field that only some roles let be recorded.
const PARAMETERS: &str = "parameters";

/// The record of one session's plugin.
pub struct Recorder {
    audit: Emitter,
    prefix: String,
    host_named: bool,
    how: OnceLock<Recorded>,
    ahead: Mutex<VecDeque<Pending>>,
    limit: DefaultDirectRateLimiter,
}

impl Recorder {
    /// `built_in`: the plugin came with this program.
    pub fn new(audit: Emitter, kind: &str, built_in: bool) -> Self {
        let named = HOST_NAMED.iter().find(|(k, _)| built_in && *k == kind);
        Recorder {
            audit,
            prefix: match named {
                Some((_, prefix)) => (*prefix).to_owned(),
                None => format!("plugin.{kind}"),
            },
            host_named: named.is_some(),
            how: OnceLock::new(),
            ahead: Mutex::default(),
            limit: RateLimiter::direct(Quota::per_second(PLUGIN_EVENTS)),
        }
    }

    /// What the roles say, once they have allowed the session.
    pub fn allowed(&self, how: Recorded) {
        let _ = self.how.set(how);
    }

    /// Records an event; `about` adds what the host knows. Returns when the session may go on: with strict recording when it is
    /// on disk, else when not too many before it wait for that. The error is worded for the log.
    pub async fn record(
        &self,
        event: PluginEvent,
        about: impl FnOnce(Event) -> Event,
    ) -> Result<(), String> {
        if !self.host_named {
            self.record_strange(event, about);
            return Ok(());
        }
        let how = self.how.get().copied().unwrap_or_default();
        let event = about(self.host_words(event, how.parameters));
        let not_recorded = |e| format!("what it does can't be recorded: {e}");
        if how.strict {
            return self.audit.emit(event).await.map_err(not_recorded);
        }
        let mut ahead = self.ahead.lock().await;
        while let Some(first) = ahead.front_mut() {
            match first.poll() {
                Some(done) => {
                    ahead.pop_front();
                    done.map_err(not_recorded)?;
                }
                None if ahead.len() < AHEAD => break,
                None => {
                    if let Some(first) = ahead.pop_front() {
                        first.durable().await.map_err(not_recorded)?;
                    }
                }
            }
        }
        ahead.push_back(self.audit.queue(event).await.map_err(not_recorded)?);
        Ok(())
    }

    /// Waits until all of it is on disk.
    pub async fn flush(&self) -> Result<(), String> {
        let mut ahead = self.ahead.lock().await;
        while let Some(first) = ahead.pop_front() {
            first.durable().await.map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// The plugin's fields beside the host's, which win.
    fn host_words(&self, said: PluginEvent, parameters: bool) -> Event {
        let name = self.name(&said.name);
        let fields = said.fields.into_iter().take(MAX_FIELDS);
        let kept = fields.filter(|(key, _)| parameters || key != PARAMETERS);
        kept.fold(Event::new(&name), |event, (key, value)| {
            event.with_value(&key, json(value))
        })
    }

    /// Of a plugin that is not ours: its words stand apart, so that it can neither name an event of the host's nor replace a
    /// field. Beyond so many a second they are dropped: other sessions' events wait in the same queue.
    fn record_strange(&self, event: PluginEvent, about: impl FnOnce(Event) -> Event) {
        if self.limit.check().is_err() {
            metrics::counter!("postern_agent_plugin_events_dropped_total").increment(1);
            return;
        }
        let name = self.name(&event.name);
        let fields = event.fields.into_iter().take(MAX_FIELDS);
        let said: serde_json::Map<_, _> = fields.map(|(k, v)| (k, json(v))).collect();
        self.audit
            .emit_later(about(Event::new(&name)).with("plugin", said));
    }

    fn name(&self, said: &str) -> String {
        let name = format!("{}.{said}", self.prefix);
        let words = said.split('.').all(|w| check_label("event", w).is_ok());
        if words && name.len() <= MAX_NAME {
            name
        } else if self.host_named {
            format!("{}.unnamed", self.prefix)
        } else {
            self.prefix.clone()
        }
    }
}

/// Values are JSON documents; what is none is kept as text rather than lost.
fn json(value: String) -> serde_json::Value {
    serde_json::from_str(&value).unwrap_or(value.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    fn said(name: &str) -> PluginEvent {
        let field = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        PluginEvent {
            name: name.into(),
            fields: vec![
                field("query", r#""SELECT $1""#),
                field("parameters", r#"["secret"]"#),
                field("user", r#""mallory""#),
                field("rows", "no json"),
            ],
        }
    }

    async fn recorded(
        kind: &str,
        built_in: bool,
        how: Recorded,
        name: &str,
    ) -> (Event, mpsc::Receiver<Event>) {
        let (audit, mut events) = Emitter::memory(1000);
        let recorder = Recorder::new(audit, kind, built_in);
        recorder.allowed(how);
        let about = |e: Event| e.with("user", "alice");
        recorder.record(said(name), about).await.unwrap();
        recorder.flush().await.unwrap();
        (events.recv().await.unwrap(), events)
    }

    #[tokio::test]
    async fn a_built_in_plugin_speaks_under_the_hosts_name() {
        let how = Recorded::default();
        let (event, _) = recorded("postgres", true, how, "session.query").await;
        assert_eq!(event.event, "db.session.query");
        assert_eq!(event.text("query"), Some("SELECT $1"));
        assert_eq!(event.text("user"), Some("alice"), "the host's fields win");
        assert_eq!(event.text("rows"), Some("no json"));
        assert!(!event.fields.contains_key("parameters"));
        let how = Recorded {
            parameters: true,
            ..how
        };
        let (event, _) = recorded("postgres", true, how, "Not A Name").await;
        assert_eq!(event.event, "db.unnamed");
        assert_eq!(event.fields["parameters"][0], "secret");
    }

    #[tokio::test]
    async fn a_strangers_stays_apart() {
        for (kind, built_in) in [("postgres", false), ("tcp", true)] {
            let how = Recorded::default();
            let (event, _) = recorded(kind, built_in, how, "session.query").await;
            assert_eq!(event.event, format!("plugin.{kind}.session.query"));
            assert_eq!(event.text("user"), Some("alice"));
            assert_eq!(event.fields["plugin"]["user"], "mallory");
        }
    }

    #[tokio::test]
    async fn none_of_a_flood_of_queries_is_lost_and_they_wait_for_room() {
        let (audit, mut events) = Emitter::memory(4);
        let recorder = Recorder::new(audit, "postgres", true);
        let flood = async {
            for n in 0..1000 {
                let about = |e: Event| e.with("n", n);
                recorder.record(said("session.query"), about).await.unwrap();
            }
        };
        let read = async {
            for n in 0..1000 {
                assert_eq!(events.recv().await.unwrap().fields["n"], n);
            }
        };
        tokio::join!(flood, read);
    }

    #[tokio::test]
    async fn what_cannot_be_recorded_ends_the_session() {
        for strict in [true, false] {
            let (audit, events) = Emitter::memory(4);
            drop(events);
            let recorder = Recorder::new(audit, "postgres", true);
            recorder.allowed(Recorded {
                strict,
                parameters: false,
            });
            let why = recorder.record(said("session.query"), |e| e).await;
            assert!(why.unwrap_err().contains("can't be recorded"));
        }
    }
}
