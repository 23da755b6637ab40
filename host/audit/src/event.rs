//! One audit event, and the names that events have.

use serde_json::Value;

/// Longest text in an event, in bytes of its JSON: a control character takes six there. Command lines can be
/// megabytes; what is beyond this is cut off and its length noted.
const MAX_TEXT: usize = 16 * 1024;
/// Longest event, in bytes of its JSON. Spool and Auth hold to the same, so that what an agent could write down
/// Auth can store.
pub const MAX_EVENT: usize = 64 * 1024;
/// What is left of a field that makes its event too long.
const STUMP: usize = 1024;
/// What tells of whom and where an event is: kept where nothing else can be.
const KEPT: [&str; 10] = [
    "cluster",
    "host_id",
    "service",
    "session_id",
    "kind",
    "resource",
    "user",
    "login",
    "source",
    "truncated",
];
/// Fields that every event has of itself.
const OWN: [&str; 4] = ["uid", "event", "version", "time"];

/// One audit event. JSON: `{"uid","event","version","time","cluster", …}`: the fields beside the others.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "serde_json::Map<String, Value>")]
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

    /// Sets a field (builder style). Null values are left out; long texts are cut. A field of the event's own is
    /// not replaced: what wants its name is called `_<name>`.
    pub fn with(self, key: &str, value: impl serde::Serialize) -> Self {
        match serde_json::to_value(value) {
            Ok(value) => return self.with_value(key, value),
            // An event with a hole is worth more than none.
            Err(e) => {
                tracing::error!(event = self.event, key, "audit field can't be written: {e}");
            }
        }
        self
    }

    /// [`Event::with`], of a value that is JSON already.
    pub fn with_value(mut self, key: &str, mut value: Value) -> Self {
        if value.is_null() {
            return self;
        }
        shorten(&mut value);
        let key = if OWN.contains(&key) {
            format!("_{key}")
        } else {
            key.to_owned()
        };
        self.fields.insert(key, value);
        self
    }

    /// Its JSON, of [`Event::fitted`].
    ///
    /// # Errors
    /// None in practice: there is nothing in an event that JSON has no words for.
    pub fn into_json(self) -> serde_json::Result<String> {
        let json = serde_json::to_string(&self)?;
        // Hardly ever, so that none is written twice to see how long it is.
        if json.len() > MAX_EVENT {
            return serde_json::to_string(&self.fitted());
        }
        Ok(json)
    }

    /// The event, cut where its JSON is longer than [`MAX_EVENT`]: the longest fields first, and where that is not
    /// enough all but those that tell of whom and where it is. `truncated` then says how long it was.
    pub fn fitted(mut self) -> Self {
        let whole = length(&self);
        if whole <= MAX_EVENT {
            return self;
        }
        self.fields.insert("truncated".into(), whole.into());
        for own in [&mut self.uid, &mut self.event, &mut self.time] {
            cut(own, STUMP);
        }
        let mut long: Vec<(usize, String)> = self
            .fields
            .iter()
            .map(|(key, value)| (length(value), key.clone()))
            .filter(|(length, _)| *length > STUMP)
            .collect();
        long.sort_unstable();
        while length(&self) > MAX_EVENT {
            let Some((_, key)) = long.pop() else {
                self.fields.retain(|key, _| KEPT.contains(&key.as_str()));
                break;
            };
            if let Some(value) = self.fields.get_mut(&key) {
                let mut text = match value.take() {
                    Value::String(text) => text,
                    other => other.to_string(),
                };
                cut(&mut text, STUMP);
                *value = Value::String(text);
            }
        }
        self
    }

    /// A field that is a text.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.fields.get(key)?.as_str()
    }
}

/// By hand: what serde makes of a struct with the fields beside others costs several times as much, and Auth reads every event.
impl TryFrom<serde_json::Map<String, Value>> for Event {
    type Error = String;

    fn try_from(mut fields: serde_json::Map<String, Value>) -> Result<Self, String> {
        let mut own = |key: &str| fields.remove(key).ok_or_else(|| format!("it has no {key}"));
        let (uid, event, version, time) =
            (own("uid")?, own("event")?, own("version")?, own("time")?);
        let text = |key: &str, value| match value {
            Value::String(text) => Ok(text),
            _ => Err(format!("its {key} is no text")),
        };
        let version = version.as_u64().and_then(|n| u32::try_from(n).ok());
        Ok(Event {
            uid: text("uid", uid)?,
            event: text("event", event)?,
            version: version.ok_or("its version is no number")?,
            time: text("time", time)?,
            fields,
        })
    }
}

fn shorten(value: &mut Value) {
    match value {
        Value::String(text) => cut(text, MAX_TEXT),
        Value::Array(items) => items.iter_mut().for_each(shorten),
        Value::Object(map) => map.values_mut().for_each(shorten),
        _ => {}
    }
}

/// Cuts a text whose JSON is longer than `max`, and says how long it was.
fn cut(text: &mut String, max: usize) {
    if text.len() <= max / 6 {
        return;
    }
    let mut encoded = 0;
    let end = text.char_indices().find_map(|(at, c)| {
        encoded += encoded_length(c);
        (encoded > max).then_some(at)
    });
    if let Some(end) = end {
        let whole = text.len();
        text.truncate(end);
        text.push_str(&format!("… ({whole} bytes)"));
    }
}

/// Bytes of a character in JSON, as serde_json writes it.
fn encoded_length(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\u{1f}' => 6,
        c => c.len_utf8(),
    }
}

/// Bytes of the JSON.
fn length(value: &impl serde::Serialize) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // What can't be written at all is an error where it is written.
    let _ = serde_json::to_writer(&mut count, value);
    count.0
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
    /// A service of an agent was added, changed or removed by an edit of its configuration (`change`).
    pub const AGENT_CONFIG: &str = "agent.config";
    /// A new plugin version trapped too often; the old one is back.
    pub const AGENT_PLUGIN_ROLLBACK: &str = "agent.plugin_rollback";
    /// A service was removed and has left the cluster; its names are free.
    pub const AGENT_LEAVE: &str = "agent.leave";
    /// A host joined with the key pair of another one, which is locked out.
    pub const AGENT_REPLACED: &str = "agent.replaced";
    /// A session began.
    pub const SESSION_START: &str = "session.start";
    /// A session ended.
    pub const SESSION_END: &str = "session.end";
    /// A session got to use more principals than it began with.
    pub const SESSION_PRINCIPALS: &str = "session.principals";
    /// What a session was doing was cancelled from another connection.
    pub const SESSION_CANCEL: &str = "session.cancel";
    /// A session was refused (`reason`).
    pub const SESSION_REJECTED: &str = "session.rejected";
    /// What an account was given that was made for a user could not be taken back (`account`, `reason`); it is tried again.
    pub const ACCOUNT_LEFT: &str = "account.left";
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
    /// Stands for an event that a service sent and that is not one it may send, or is none (`reason`).
    pub const EVENT_REFUSED: &str = "audit.refused";
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

    #[test]
    fn length_is_that_of_the_json() {
        // Sixteen thousand control characters are six times as long in JSON.
        for text in [
            "\u{1}",
            "\n",
            "\"",
            "\\",
            "\u{7f}",
            "ä",
            "😀",
            "a\u{8}\u{c}\u{0}",
        ] {
            let text = text.repeat(16_200);
            let event = Event::new(names::EXEC).with("command", &text);
            let json = serde_json::to_string(&event).unwrap();
            assert!(
                json.len() < MAX_TEXT + 300,
                "{}: {}",
                &text[..1],
                json.len()
            );
            let kept = event.text("command").unwrap();
            let all: usize = kept.chars().map(encoded_length).sum();
            assert_eq!(all + 2, serde_json::to_string(kept).unwrap().len());
            assert!(kept.starts_with(&text[..8]), "its beginning is kept");
        }
    }

    #[test]
    fn no_event_is_longer_than_what_is_stored() {
        let about = |event: Event| event.with("session_id", "s-1").with("user", "alice");
        let list = about(Event::new("exec")).with("list", vec!["\u{1}".repeat(9_000); 50]);
        let mut many = about(Event::new("exec"));
        for n in 0..10_000 {
            many = many.with(&format!("field-{n}"), n);
        }
        let mut odd = about(Event::new(&"n".repeat(300_000)));
        odd.uid = "\u{1}".repeat(300_000);
        odd = odd.with(&"k".repeat(300_000), 1);
        for event in [list, many, odd] {
            let whole = serde_json::to_string(&event).unwrap().len();
            let fitted = event.clone().fitted();
            let json = serde_json::to_string(&fitted).unwrap();
            assert!(
                whole > MAX_EVENT && json.len() <= MAX_EVENT,
                "{}",
                json.len()
            );
            assert_eq!(fitted.fields["truncated"], whole);
            assert_eq!(
                (fitted.text("session_id"), fitted.text("user")),
                (Some("s-1"), Some("alice"))
            );
            assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), fitted);
        }
        let small = about(Event::new("exec"));
        assert_eq!(small.clone().fitted(), small, "most are as they were");
    }

    #[test]
    fn the_fields_of_its_own_are_not_replaced() {
        let event = Event::new("plugin.x").with("uid", "forged").with("time", 1);
        let json = serde_json::to_string(&event).unwrap();
        let read: Event = serde_json::from_str(&json).unwrap();
        assert_eq!((&read, read.text("_uid")), (&event, Some("forged")));
    }
}
