//! Audit events of a session: `session.settings`, `session.query`, `session.error`, `session.end`.

use crate::redact::{redact, setting};
use crate::wire;
use postern_sdk::AuditEvent;
use postern_sdk::event::{Cut, Event, PARAMETERS, beginning, json};
use std::cell::Cell;
use std::rc::Rc;

/// Bytes of SQL in an event; what is longer is cut, and its length stands beside it as `sql_bytes`.
pub const MOST_SQL: usize = 16 << 10;
/// Bytes of parameters in an event.
pub const MOST_PARAMETERS: usize = 16 << 10;

/// SQL as events carry it.
#[derive(Debug)]
pub struct Sql {
    pub cut: Cut,
    /// An event has carried it.
    recorded: Cell<bool>,
}

impl Sql {
    fn put(&self, event: Event) -> Event {
        self.recorded.set(true);
        event.cut("sql", &self.cut)
    }
}

/// Reads SQL. `seen` is what there is of it so far, `len` how long it is together with the zero byte that ends it.
pub fn sql(seen: &[u8], len: usize) -> Rc<Sql> {
    let end = seen.iter().position(|b| *b == 0);
    let (text, len) = match end {
        Some(end) => (&seen[..end], end),
        None if seen.len() < len => (seen, len - 1),
        None => (seen, len),
    };
    let shown = beginning(text, MOST_SQL);
    Rc::new(Sql {
        cut: Cut::new(&redact(shown), (shown.len() < len).then_some(len)),
        recorded: Cell::new(false),
    })
}

/// What the startup message sets, which may be what `SET` and `SET ROLE` do. It can't be longer than SQL in an event, since the
/// startup message is not.
pub fn settings(all: &[(Vec<u8>, Vec<u8>)]) -> AuditEvent {
    let shown: Vec<String> = all
        .iter()
        .map(|(name, value)| match name.as_slice() {
            b"options" => json(&format!("options={}", options(value))),
            name => json(&setting(name, value)),
        })
        .collect();
    Event::new("session.settings")
        .json("settings", format!("[{}]", shown.join(",")))
        .end()
}

/// Command line options, each on its own: a password in one hides none of the others.
fn options(value: &[u8]) -> String {
    let (mut words, mut escaped) = (vec![vec![]], false);
    for b in value {
        match b {
            b if b.is_ascii_whitespace() && !escaped => words.push(vec![]),
            b => words.last_mut().into_iter().for_each(|w| w.push(*b)),
        }
        escaped = *b == b'\\' && !escaped;
    }
    let shown = words
        .iter()
        .map(|word| match word.iter().position(|b| *b == b'=') {
            Some(at) => setting(&word[..at], &word[at + 1..]),
            None => redact(word).into_owned(),
        });
    shown.collect::<Vec<_>>().join(" ")
}

/// A simple query.
pub fn query(sql: &Sql) -> AuditEvent {
    sql.put(Event::new("session.query")).end()
}

/// What a Bind runs.
#[derive(Default)]
pub struct Bound<'a> {
    pub statement: &'a [u8],
    pub portal: &'a [u8],
    pub sql: Option<Rc<Sql>>,
    /// The name may stand for something else.
    pub doubt: bool,
    /// What else it may stand for.
    pub others: Vec<Rc<Sql>>,
    pub parameters: Option<Parameters>,
}

impl Bound<'_> {
    /// `short`: without SQL that is on record already.
    pub fn event(self, short: bool) -> AuditEvent {
        let left_out = |sql: &Sql| short && sql.recorded.get();
        let mut event = Event::new("session.query");
        event = match &self.sql {
            Some(sql) if left_out(sql) => event.mark("sql_left_out", true),
            Some(sql) => sql.put(event),
            None => event.mark("sql_unknown", true),
        };
        event = event.mark("sql_may_differ", self.doubt);
        let others: Vec<&Rc<Sql>> = self.others.iter().filter(|s| !left_out(s)).collect();
        if !others.is_empty() {
            others.iter().for_each(|s| s.recorded.set(true));
            let all: Vec<&str> = others.iter().map(|s| s.cut.json.as_str()).collect();
            event = event.json("sql_or", format!("[{}]", all.join(",")));
        }
        event = named(event, "statement", self.statement);
        event = named(event, "portal", self.portal);
        if let Some(parameters) = self.parameters {
            event = event.json(PARAMETERS, parameters.json);
            event = event.mark("parameters_cut", parameters.cut);
        }
        event.end()
    }
}

fn named(event: Event, field: &str, name: &[u8]) -> Event {
    match name {
        b"" => event,
        name => event.text(field, &String::from_utf8_lossy(name)),
    }
}

/// An Execute of a portal that was executed before, or that no Bind has made (a cursor of SQL).
pub fn again(portal: &[u8]) -> AuditEvent {
    let event = Event::new("session.query").mark("again", true);
    named(event, "portal", portal).end()
}

/// A function called by its number.
pub fn call(oid: u32) -> AuditEvent {
    Event::new("session.query")
        .number("function_oid", oid.into())
        .end()
}

/// An ErrorResponse, of which `body` is the beginning. Its message is left out: it may quote what was typed. `sql`: of a
/// statement that was not prepared because of it.
pub fn error(body: &[u8], sql: Option<&Sql>) -> AuditEvent {
    let mut event = Event::new("session.error");
    let severity = wire::error_field(body, b'V').or_else(|| wire::error_field(body, b'S'));
    for (name, value) in [
        ("sqlstate", wire::error_field(body, b'C')),
        ("severity", severity),
    ] {
        if let Some(value) = value.filter(|v| v.len() <= 32) {
            event = event.text(name, value);
        }
    }
    match sql {
        Some(sql) => sql.put(event).end(),
        None => event.end(),
    }
}

/// Totals of a session.
#[derive(Debug, Default)]
pub struct Totals {
    pub queries: u64,
    /// As the server counts them at the end of each command.
    pub rows: u64,
    pub errors: u64,
}

impl Totals {
    /// The end of a command: `SELECT 5`, `INSERT 0 1`, `BEGIN`.
    pub fn add_rows(&mut self, tag: &[u8]) {
        let number = tag.rsplit(|b| *b == b' ').next().unwrap_or_default();
        let number = std::str::from_utf8(number)
            .ok()
            .and_then(|n| n.parse().ok());
        self.rows = self.rows.saturating_add(number.unwrap_or(0));
    }

    pub fn event(&self) -> AuditEvent {
        Event::new("session.end")
            .number("queries", self.queries)
            .number("rows", self.rows)
            .number("errors", self.errors)
            .end()
    }
}

/// Values of `$1`, `$2`, … as a JSON list.
#[derive(Debug, PartialEq, Eq)]
pub struct Parameters {
    pub json: String,
    pub cut: bool,
}

/// Reads what follows the names in a Bind; `seen` may be its beginning. Values in text stand as they are, others as `\x` and
/// hexadecimal digits.
pub fn parameters(seen: &[u8]) -> Parameters {
    let (mut values, mut room) = (Vec::new(), MOST_PARAMETERS);
    let whole = read_parameters(seen, &mut values, &mut room).is_some();
    Parameters {
        json: format!("[{}]", values.join(",")),
        cut: !whole,
    }
}

fn read_parameters(seen: &[u8], values: &mut Vec<String>, room: &mut usize) -> Option<()> {
    let (formats, rest) = wire::u16_of(seen)?;
    let (codes, rest) = rest.split_at_checked(2 * usize::from(formats))?;
    let (count, mut rest) = wire::u16_of(rest)?;
    for i in 0..usize::from(count) {
        // One code is for all.
        let code = if formats == 1 { 0 } else { i };
        let is_text = codes.get(2 * code + 1).is_none_or(|c| *c == 0);
        let (len, after) = wire::u32_of(rest)?;
        if len == u32::MAX {
            values.push("null".into());
            rest = after;
            continue;
        }
        let there = &after[..after.len().min(len as usize)];
        let shown = beginning(there, *room);
        *room -= shown.len();
        values.push(match is_text {
            true => json(&String::from_utf8_lossy(shown)),
            false => json(&hex(shown)),
        });
        if shown.len() < len as usize {
            return None;
        }
        rest = &after[len as usize..];
    }
    Some(())
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |n: u8| char::from(DIGITS[usize::from(n & 15)]);
    let digits = bytes.iter().flat_map(|b| [digit(b >> 4), digit(*b)]);
    "\\x".chars().chain(digits).collect()
}

#[cfg(test)]
mod tests;
