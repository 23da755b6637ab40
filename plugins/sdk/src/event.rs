//! Audit events with typed fields, and texts of any length cut to a stated size.

use crate::AuditEvent;

/// Name of the field with the values of a query's parameters: the host keeps it where the user's roles say so.
pub const PARAMETERS: &str = "parameters";

/// An audit event that is being written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event(AuditEvent);

impl Event {
    /// `name`: stable, below the plugin's kind, e.g. `session.query`.
    pub fn new(name: &str) -> Self {
        Event(AuditEvent {
            name: name.into(),
            fields: Vec::new(),
        })
    }

    pub fn text(self, name: &str, value: &str) -> Self {
        self.json(name, json(value))
    }

    pub fn number(self, name: &str, value: u64) -> Self {
        self.json(name, value.to_string())
    }

    /// A field that is there and true, or not there.
    pub fn mark(self, name: &str, is: bool) -> Self {
        if is {
            self.json(name, "true".into())
        } else {
            self
        }
    }

    /// The text, and where it was cut its whole length as `<name>_bytes`.
    pub fn cut(self, name: &str, text: &Cut) -> Self {
        let event = self.json(name, text.json.clone());
        match text.whole {
            Some(bytes) => event.number(&format!("{name}_bytes"), bytes),
            None => event,
        }
    }

    /// `value` is one JSON document.
    pub fn json(mut self, name: &str, value: String) -> Self {
        self.0.fields.push((name.into(), value));
        self
    }

    pub fn end(self) -> AuditEvent {
        self.0
    }
}

/// A text as it is put into events: a JSON document, made once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    pub json: String,
    /// The length of all of it in bytes, if this is only its beginning.
    pub whole: Option<u64>,
}

impl Cut {
    /// `of`: the length of the text of which this is the beginning.
    pub fn new(text: &str, of: Option<usize>) -> Self {
        Cut {
            json: json(text),
            whole: of.map(|bytes| bytes as u64),
        }
    }
}

/// The first `max` bytes of a text in UTF-8, less if they would end within a character. Bytes that are no UTF-8 count as characters.
pub fn beginning(text: &[u8], max: usize) -> &[u8] {
    if text.len() <= max {
        return text;
    }
    let is_inside = |at: usize| text[at] & 0xc0 == 0x80;
    let back = (0..4.min(max)).find(|back| !is_inside(max - back));
    &text[..max - back.unwrap_or(0)]
}

/// A string as a JSON document.
pub fn json(text: &str) -> String {
    // Writing a string can't fail; there is no error to tell of.
    serde_json::to_string(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_json_documents() {
        let event = Event::new("session.query")
            .cut("sql", &Cut::new("select \"a\"", None))
            .cut("comment", &Cut::new("ab", Some(7)))
            .number("rows", 3)
            .mark("cut", true)
            .mark("lost", false)
            .end();
        let fields: Vec<String> = event
            .fields
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        assert_eq!(
            fields,
            [
                r#"sql="select \"a\"""#,
                r#"comment="ab""#,
                "comment_bytes=7",
                "rows=3",
                "cut=true"
            ]
        );
    }

    #[test]
    fn nothing_ends_within_a_character() {
        assert_eq!(beginning("aäb".as_bytes(), 2), b"a");
        assert_eq!(beginning("aäb".as_bytes(), 3), "aä".as_bytes());
        assert_eq!(beginning("a😀".as_bytes(), 4), b"a");
        assert_eq!(beginning(&[0x80; 9], 5), [0x80; 5]);
        assert_eq!(beginning(b"ab", 0), b"");
        assert_eq!(beginning(b"ab", 5), b"ab");
    }
}
