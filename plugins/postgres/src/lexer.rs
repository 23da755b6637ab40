//! Tokens of PostgreSQL's SQL, as far as they must be told apart to find where a text in quotes begins and ends
//! (https://www.postgresql.org/docs/current/sql-syntax-lexical.html). Any bytes give tokens that cover all of them.

use std::ops::Range;

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Space,
    Comment,
    /// A keyword or a name without quotes.
    Word,
    /// A name in double quotes.
    Quoted,
    /// `'…'` of any kind, with its continuations on further lines.
    Text,
    /// `$tag$…$tag$`.
    Dollar,
    Number,
    /// `$1`.
    Parameter,
    Other,
}

/// One token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub kind: Kind,
    pub at: Range<usize>,
    /// What is within the quotes.
    pub body: Range<usize>,
}

/// Splits SQL into tokens. `backslashes`: whether a backslash escapes in texts that are not `E'…'` too, as with
/// `standard_conforming_strings = off`.
pub fn tokens(sql: &[u8], backslashes: bool) -> impl Iterator<Item = Token> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= sql.len() {
            return None;
        }
        let token = Lexer { sql, backslashes }.token(at);
        at = token.at.end;
        Some(token)
    })
}

struct Lexer<'a> {
    sql: &'a [u8],
    backslashes: bool,
}

fn is_name_start(b: u8) -> bool {
    b.is_ascii_alphabetic() || b == b'_' || b >= 0x80
}

fn is_name(b: u8) -> bool {
    is_name_start(b) || b.is_ascii_digit() || b == b'$'
}

fn is_space(b: u8) -> bool {
    matches!(b, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

impl Lexer<'_> {
    fn byte(&self, at: usize) -> Option<u8> {
        self.sql.get(at).copied()
    }

    fn starts(&self, at: usize, with: &[u8]) -> bool {
        self.sql[at.min(self.sql.len())..].starts_with(with)
    }

    /// Where the bytes that are `of` it end.
    fn run(&self, from: usize, of: impl Fn(u8) -> bool) -> usize {
        let rest = self.sql.get(from..).unwrap_or_default();
        from + rest.iter().position(|b| !of(*b)).unwrap_or(rest.len())
    }

    fn token(&self, at: usize) -> Token {
        let plain = |kind, end: usize| Token {
            kind,
            at: at..end,
            body: at..end,
        };
        match self.sql[at] {
            b if is_space(b) => plain(Kind::Space, self.run(at, is_space)),
            b'-' if self.starts(at, b"--") => plain(Kind::Comment, self.line(at)),
            b'/' if self.starts(at, b"/*") => plain(Kind::Comment, self.block(at)),
            b'\'' => self.text(at, at, self.backslashes),
            b'"' => self.quoted(at, at),
            b'$' => self.dollar(at),
            b'0'..=b'9' => plain(Kind::Number, self.run(at, |b| b.is_ascii_digit())),
            b if is_name_start(b) => self.word(at),
            _ => plain(Kind::Other, at + 1),
        }
    }

    /// A word, or the letter before a quote.
    fn word(&self, at: usize) -> Token {
        let end = self.run(at, is_name);
        match (self.sql[at].to_ascii_lowercase(), end - at, self.byte(end)) {
            (b'e', 1, Some(b'\'')) => self.text(at, end, true),
            (b'b' | b'x' | b'n', 1, Some(b'\'')) => self.text(at, end, self.backslashes),
            (b'u', 1, Some(b'&')) if self.byte(end + 1) == Some(b'\'') => {
                self.text(at, end + 1, self.backslashes)
            }
            (b'u', 1, Some(b'&')) if self.byte(end + 1) == Some(b'"') => self.quoted(at, end + 1),
            _ => Token {
                kind: Kind::Word,
                at: at..end,
                body: at..end,
            },
        }
    }

    /// A text whose first quote is at `quote`. Two texts with a line break between them are one.
    fn text(&self, at: usize, quote: usize, escapes: bool) -> Token {
        let mut from = quote + 1;
        loop {
            let end = self.closing(from, b'\'', escapes);
            let after = (end + 1).min(self.sql.len());
            match self.continuation(after) {
                Some(again) => from = again + 1,
                None => {
                    return Token {
                        kind: Kind::Text,
                        at: at..after,
                        body: quote + 1..end,
                    };
                }
            }
        }
    }

    fn quoted(&self, at: usize, quote: usize) -> Token {
        let end = self.closing(quote + 1, b'"', false);
        Token {
            kind: Kind::Quoted,
            at: at..(end + 1).min(self.sql.len()),
            body: quote + 1..end,
        }
    }

    /// Where the closing quote is, or the end of everything.
    fn closing(&self, from: usize, quote: u8, escapes: bool) -> usize {
        let mut at = from;
        while let Some(b) = self.byte(at) {
            at += match b {
                b'\\' if escapes => 2,
                b if b == quote && self.byte(at + 1) == Some(quote) => 2,
                b if b == quote => return at,
                _ => 1,
            };
        }
        self.sql.len()
    }

    /// The quote that goes on with a text which ended at `from`: after white space that has a line break in it, and `--` comments.
    fn continuation(&self, from: usize) -> Option<usize> {
        let (mut at, mut broken) = (from, false);
        loop {
            let end = self.run(at, is_space);
            broken |= self.sql[at..end].iter().any(|b| matches!(b, b'\n' | b'\r'));
            at = end;
            if !self.starts(at, b"--") {
                break;
            }
            at = self.line(at);
        }
        (broken && self.byte(at) == Some(b'\'')).then_some(at)
    }

    fn line(&self, at: usize) -> usize {
        self.run(at, |b| !matches!(b, b'\n' | b'\r'))
    }

    /// Comments of this kind nest.
    fn block(&self, at: usize) -> usize {
        let (mut at, mut depth) = (at + 2, 1);
        while depth > 0 && at < self.sql.len() {
            if self.starts(at, b"/*") {
                (at, depth) = (at + 2, depth + 1);
            } else if self.starts(at, b"*/") {
                (at, depth) = (at + 2, depth - 1);
            } else {
                at += 1;
            }
        }
        at.min(self.sql.len())
    }

    fn dollar(&self, at: usize) -> Token {
        let plain = |kind, end: usize| Token {
            kind,
            at: at..end,
            body: at..end,
        };
        let digits = self.run(at + 1, |b| b.is_ascii_digit());
        if digits > at + 1 {
            return plain(Kind::Parameter, digits);
        }
        let tag = self.run(at + 1, |b| is_name(b) && b != b'$');
        if self.byte(tag) != Some(b'$') {
            return plain(Kind::Other, at + 1);
        }
        let (delimiter, from) = (&self.sql[at..=tag], tag + 1);
        let found = self.sql[from..]
            .windows(delimiter.len())
            .position(|w| w == delimiter);
        let end = found.map_or(self.sql.len(), |n| from + n);
        Token {
            kind: Kind::Dollar,
            at: at..(end + delimiter.len()).min(self.sql.len()),
            body: from..end,
        }
    }
}

#[cfg(test)]
mod tests;
