//! Takes passwords out of SQL before it goes into the audit log. Where in doubt, more is taken out.
//!
//! - `PASSWORD '…'` of `CREATE/ALTER ROLE`, and any other name with `passw` in it before a text (`OPTIONS (password '…')`,
//!   `password = '…'`);
//! - all options but `user` of a user mapping, and the `CONNECTION '…'` of a subscription;
//! - texts that hold a password themselves (`dblink('… password=…')`, `EXECUTE 'ALTER ROLE … PASSWORD …'`);
//! - comments that speak of a password;
//! - within `$$…$$`, which may be a function's body, by the same rules.
//!
//! The text is read twice, as the server would with `standard_conforming_strings` on and off, and what either reading takes
//! out is out.

use crate::lexer::{Kind, Token, tokens};
use std::borrow::Cow;
use std::ops::Range;

/// What stands where a password stood.
const INSTEAD: &str = "'***'";
/// `$$` within `$$` that are looked into.
const DEPTH: usize = 8;

/// SQL without passwords. `sql` may be the beginning of a text. What is no UTF-8 can't be read with certainty: then nothing of a
/// text that may hold a password is left.
pub fn redact(sql: &[u8]) -> Cow<'_, str> {
    if !mentions(sql) {
        return String::from_utf8_lossy(sql);
    }
    let Ok(text) = std::str::from_utf8(sql) else {
        return "(left out: it may hold a password, and is not UTF-8)".into();
    };
    let mut found = Vec::new();
    for backslashes in [false, true] {
        secrets(sql, backslashes, 0, DEPTH, &mut found);
    }
    found.sort_by_key(|r: &Range<usize>| r.start);
    let (mut out, mut at) = (String::with_capacity(text.len()), 0);
    for secret in found {
        if secret.start >= at {
            // Both ends are ASCII or the end of a token: never within a character.
            out.push_str(text.get(at..secret.start).unwrap_or_default());
            out.push_str(INSTEAD);
        }
        at = at.max(secret.end);
    }
    out.push_str(text.get(at..).unwrap_or_default());
    out.into()
}

/// A setting of the startup message, without its value if that may hold a password.
pub fn setting(name: &[u8], value: &[u8]) -> String {
    // What SET does in SQL.
    let quoted = String::from_utf8_lossy(value).replace('\'', "''");
    let sql = [name, b"='", quoted.as_bytes(), b"'"].concat();
    let shown = match *redact(&sql) == *String::from_utf8_lossy(&sql) {
        true => String::from_utf8_lossy(value),
        false => INSTEAD.into(),
    };
    format!("{}={shown}", String::from_utf8_lossy(name))
}

/// A quick look, for the many texts that hold none.
fn mentions(sql: &[u8]) -> bool {
    let follows = |at: usize, word: &[u8]| {
        let there = sql.get(at..at + word.len());
        there.is_some_and(|there| there.eq_ignore_ascii_case(word))
    };
    sql.iter().enumerate().any(|(at, b)| match b {
        b'p' | b'P' => follows(at, b"passw"),
        b'c' | b'C' => follows(at, b"connection"),
        b'm' | b'M' => follows(at, b"mapping"),
        b':' => follows(at, b"://"),
        _ => false,
    })
}

/// What one statement is about, as far as it has been read.
#[derive(Default)]
struct Statement {
    /// The two last words.
    before: (Vec<u8>, Vec<u8>),
    /// `CREATE ROLE` or the like.
    role: bool,
    mapping: bool,
    /// A text is a password now.
    armed: Armed,
    /// So is every text from here on.
    all: bool,
}

#[derive(Default, Clone, Copy, PartialEq)]
enum Armed {
    #[default]
    No,
    /// A name that speaks of a password.
    Name,
    /// The keyword itself.
    Keyword,
}

/// Ranges to take out of `sql`, which stands at `offset` of the whole.
fn secrets(
    sql: &[u8],
    backslashes: bool,
    offset: usize,
    depth: usize,
    found: &mut Vec<Range<usize>>,
) {
    let mut s = Statement::default();
    for token in tokens(sql, backslashes) {
        if s.is_secret(&token, sql) {
            found.push(offset + token.at.start..offset + token.at.end);
        } else if token.kind == Kind::Dollar && mentions(&sql[token.body.clone()]) {
            match depth.checked_sub(1) {
                Some(depth) => {
                    let inner = &sql[token.body.clone()];
                    secrets(inner, backslashes, offset + token.body.start, depth, found);
                }
                None => found.push(offset + token.at.start..offset + token.at.end),
            }
        }
    }
}

impl Statement {
    /// Reads on by one token.
    fn is_secret(&mut self, token: &Token, sql: &[u8]) -> bool {
        let (bytes, body) = (&sql[token.at.clone()], &sql[token.body.clone()]);
        match token.kind {
            Kind::Space => false,
            Kind::Comment => has_password(bytes),
            Kind::Word => self.word(bytes),
            Kind::Quoted => {
                let secret = self.role && self.armed == Armed::Keyword;
                // With a backslash: it may be U&"passw\006frd".
                let named = has_password(body) || bytes[0] != b'"' && body.contains(&b'\\');
                self.armed = if named { Armed::Name } else { Armed::No };
                self.remember(body);
                secret
            }
            Kind::Text | Kind::Dollar => self.text(token.kind, body, token.at.end == sql.len()),
            Kind::Number | Kind::Parameter => {
                let secret = self.role && self.armed == Armed::Keyword;
                self.armed = Armed::No;
                secret
            }
            Kind::Other => {
                match bytes {
                    b";" => *self = Statement::default(),
                    b"=" | b":" | b">" | b"(" => {}
                    _ => self.armed = Armed::No,
                }
                false
            }
        }
    }

    fn word(&mut self, word: &[u8]) -> bool {
        let word = word.to_ascii_lowercase();
        let was = std::mem::take(&mut self.armed);
        if has_password(&word) {
            self.armed = if word == b"password" {
                Armed::Keyword
            } else {
                Armed::Name
            };
            self.remember(&word);
            return false;
        }
        match word.as_slice() {
            b"to" => self.armed = was,
            // CONNECTION LIMIT 5 is no text, and disarms.
            b"connection" => self.armed = Armed::Name,
            b"role" | b"user" | b"group" => {
                if matches!(self.before.1.as_slice(), b"create" | b"alter") {
                    self.role = true;
                }
            }
            b"mapping" if self.before.1 == b"user" => (self.mapping, self.role) = (true, false),
            _ => {}
        }
        self.remember(&word);
        // Someone who forgot the quotes.
        self.role && was == Armed::Keyword && word != b"null"
    }

    fn remember(&mut self, word: &[u8]) {
        self.before.0 = std::mem::replace(&mut self.before.1, word.to_vec());
    }

    fn text(&mut self, kind: Kind, body: &[u8], cut: bool) -> bool {
        // 'a' 'b' is no text that the server would take, but both may be parts of a password.
        if self.armed == Armed::Keyword {
            self.armed = Armed::Name;
            return true;
        }
        let option = self.mapping && self.before.1 != b"user";
        let holds = match kind {
            Kind::Text => holds_password(body, cut),
            _ => Holds::Nothing,
        };
        self.all |= holds == Holds::Open;
        self.armed != Armed::No || self.all || option || holds != Holds::Nothing
    }
}

fn has_password(bytes: &[u8]) -> bool {
    bytes.windows(5).any(|w| w.eq_ignore_ascii_case(b"passw"))
}

/// What a text in quotes says of passwords.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    Nothing,
    /// It holds one.
    Password,
    /// It ends, or has a place, where one is to be put in: another text of this statement holds it.
    Open,
}

/// `cut`: it may go on.
fn holds_password(body: &[u8], cut: bool) -> Holds {
    let body = body.to_ascii_lowercase();
    let mut holds = Holds::Nothing;
    let mut from = 0;
    while let Some(n) = body[from..].windows(5).position(|w| w == b"passw") {
        let word = from + n;
        let name_end = body[word..]
            .iter()
            .position(|b| !b.is_ascii_alphanumeric() && *b != b'_');
        from = name_end.map_or(body.len(), |n| word + n);
        let rest = body[from..].trim_ascii_start();
        let marks = |b: &u8| matches!(b, b'=' | b':' | b'\'' | b'"' | b'\\' | b'%' | b'$');
        let prefix = matches!(rest, [b'e' | b'u' | b'n' | b'b', b'\'' | b'&', ..]);
        match rest.first() {
            // The text ends with it: 'password' alone, or 'old_password', is most often a value.
            None if word == 0 || !body[word - 1].is_ascii_whitespace() => {}
            None => holds = Holds::Open,
            // A pattern of LIKE.
            Some(b'%' | b'$') if rest.len() == body.len() - from => {}
            Some(b) if marks(b) || prefix => {
                let filler = |b: &u8| matches!(b, b'=' | b':' | b'\'' | b'"' | b'\\' | b' ' | b'e');
                let value = rest
                    .iter()
                    .position(|b| !filler(b))
                    .map_or(&[][..], |n| &rest[n..]);
                let open = matches!(value.first(), None | Some(b'%' | b'$'));
                if open {
                    holds = Holds::Open;
                } else if holds == Holds::Nothing {
                    holds = Holds::Password;
                }
            }
            Some(_) => {}
        }
    }
    if holds == Holds::Nothing && is_address_with_password(&body, cut) {
        holds = Holds::Password;
    }
    holds
}

/// `postgres://user:password@host/…`
fn is_address_with_password(body: &[u8], cut: bool) -> bool {
    let Some(n) = body.windows(3).position(|w| w == b"://") else {
        return false;
    };
    let rest = &body[n + 3..];
    let Some(at) = rest
        .iter()
        .position(|b| *b == b'@')
        .or(cut.then_some(rest.len()))
    else {
        return false;
    };
    rest[..at].contains(&b':') && !rest[..at].iter().any(u8::is_ascii_whitespace)
}

#[cfg(test)]
mod tests;
