//! One audit event, and the names that events have.

use serde_json::Value;

/// Longest text in an event, in bytes. Command lines can be megabytes; what is beyond this is cut
/// off and its length noted.
const MAX_TEXT: usize = 16 * 1024;

/// One audit event. JSON: `{"uid","event","version","time","cluster", …}`: the fields beside the others.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Event {
    /// UUIDv7, the idempotency key.
    pub uid: String,
    /// Stable name, e.g. `session.start`: see [`names`].
    pub event: String,
    /// Schema version of this event name; raised when a field changes its meaning.
    pub version: u32,
    /// RFC 3339, UTC, milliseconds.
    pub time: String,
    /// Everything else, by event.
    #[serde(flatten)]
    pub fields: serde_json::Map<String, Value>,
}

impl Event {
    /// An event of now, without fields.
    pub fn new(name: &str) -> Self {
        Event {
            uid: uuid::Uuid::now_v7().to_string(),
            event: name.to_owned(),
            version: 1,
            time: format!("{:.3}", jiff::Timestamp::now()),
            fields: serde_json::Map::new(),
        }
    }

    /// Sets a field (builder style). Null values are left out; long texts are cut.
    pub fn with(mut self, key: &str, value: impl serde::Serialize) -> Self {
        debug_assert!(
            !["uid", "event", "version", "time"].contains(&key),
            "{key} is no field of the event's own"
        );
        match serde_json::to_value(value) {
            Ok(Value::Null) => {}
            Ok(mut value) => {
                shorten(&mut value);
                self.fields.insert(key.to_owned(), value);
            }
            // An event with a hole is worth more than none.
            Err(e) => {
                tracing::error!(event = self.event, key, "audit field can't be written: {e}");
            }
        }
        self
    }

    /// A field that is a text.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.fields.get(key)?.as_str()
    }
}

fn shorten(value: &mut Value) {
    match value {
        Value::String(text) if text.len() > MAX_TEXT => {
            let whole = text.len();
            text.truncate(text.floor_char_boundary(MAX_TEXT));
            text.push_str(&format!("… ({whole} bytes)"));
        }
        Value::Array(items) => items.iter_mut().for_each(shorten),
        Value::Object(map) => map.values_mut().for_each(shorten),
        _ => {}
    }
}

/// The names of events. They never change; a new meaning gets a new name.
pub mod names {
    /// A user logged in, or failed to (`success`).
    pub const USER_LOGIN: &str = "user.login";
    /// A service of a host joined the cluster.
    pub const AGENT_JOIN: &str = "agent.join";
    /// A join was refused (`reason`).
    pub const JOIN_REFUSED: &str = "agent.join.refused";
    /// A stale generation renewed: two hosts have the same keys.
    pub const AGENT_COPIED: &str = "agent.copied";
    /// A session began.
    pub const SESSION_START: &str = "session.start";
    /// A session ended.
    pub const SESSION_END: &str = "session.end";
    /// A session was refused (`reason`).
    pub const SESSION_REJECTED: &str = "session.rejected";
    /// A command was run in an SSH session.
    pub const EXEC: &str = "exec";
    /// A port was forwarded, or that was refused.
    pub const PORT_FORWARD: &str = "port.forward";
    /// A host announced a resource that belongs to another.
    pub const RESOURCE_CONFLICT: &str = "resource.conflict";
    /// A plugin trapped; its session ended.
    pub const PLUGIN_TRAP: &str = "plugin.trap";
    /// A caller of Auth was refused: wrong kind of certificate, locked, not allowed.
    pub const AUTH_REFUSED: &str = "auth.refused";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_is_flat_and_reads_back() {
        let event = Event::new(names::SESSION_START)
            .with("cluster", "demo")
            .with("user", "alice")
            .with("code", 3)
            .with("nothing", None::<String>);
        let json: Value = serde_json::to_value(&event).unwrap();
        let keys: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys.len(), 7, "{keys:?}");
        assert_eq!(json["event"], "session.start");
        assert_eq!(json["version"], 1);
        assert_eq!(json["code"], 3);
        assert_eq!(serde_json::from_value::<Event>(json).unwrap(), event);
        assert_eq!(event.text("user"), Some("alice"));
    }

    #[test]
    fn time_is_rfc3339_in_milliseconds_and_uids_are_in_order() {
        let (a, b) = (Event::new("x"), Event::new("x"));
        assert_eq!(a.time.len(), "2026-11-23T04:44:00.123Z".len());
        assert!(a.time.ends_with('Z') && a.time.parse::<jiff::Timestamp>().is_ok());
        assert!(a.uid < b.uid && a.time <= b.time);
    }

    #[test]
    fn long_texts_are_cut() {
        let event = Event::new(names::EXEC).with("command", ["ä".repeat(100_000)]);
        let text = event.fields["command"][0].as_str().unwrap();
        assert!(
            text.len() < MAX_TEXT + 40 && text.ends_with("… (200000 bytes)"),
            "{}",
            text.len()
        );
    }
}
