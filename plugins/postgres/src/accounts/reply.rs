//! What the server answers to one of our queries: rows of texts, or the first error.

use crate::wire::{self, Broken, HEAD};
use postern_sdk::input::Input;

/// What we ask for is short.
const LONGEST: usize = 30_000;
const MOST_ROWS: usize = 4096;

/// An error of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub sqlstate: String,
    pub message: String,
}

impl Failure {
    pub fn read(body: &[u8]) -> Failure {
        let field = |f| wire::error_field(body, f).unwrap_or("unknown").to_owned();
        Failure {
            sqlstate: field(b'C'),
            message: field(b'M'),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.sqlstate)
    }
}

/// One answer, as far as it is there.
#[derive(Debug, Default)]
pub struct Reply {
    rows: Vec<Vec<String>>,
    pub failure: Option<Failure>,
}

impl Reply {
    /// Reads on; true when the answer is complete.
    pub fn read(&mut self, input: &mut Input<'_>) -> Result<bool, Broken> {
        while let Some(head) = wire::server_head(input.left())? {
            if head.len > LONGEST {
                return Err(Broken(
                    "the server's answer to the administrator is too long".into(),
                ));
            }
            let Some(message) = input.left().get(..head.len) else {
                break;
            };
            let body = &message[HEAD..];
            match head.kind {
                b'D' if self.rows.len() == MOST_ROWS => {
                    return Err(Broken(format!(
                        "the server answers the administrator with more than {MOST_ROWS} rows"
                    )));
                }
                b'D' => self.rows.push(row(body).ok_or_else(|| {
                    Broken("the server sent the administrator a row that makes no sense".into())
                })?),
                b'E' => {
                    self.failure.get_or_insert_with(|| Failure::read(body));
                }
                _ => {}
            }
            input.skip(head.len);
            if head.kind == b'Z' {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The rows that begin with this word, without it.
    pub fn rows<'a>(&'a self, word: &'a str) -> impl Iterator<Item = &'a [String]> {
        let rows = self.rows.iter().filter_map(|row| row.split_first());
        rows.filter(move |(first, _)| *first == word)
            .map(|(_, rest)| rest)
    }

    /// The first columns of those rows.
    pub fn names(&self, word: &str) -> Vec<String> {
        let rows = self.rows(word);
        rows.filter_map(|row| row.first().cloned()).collect()
    }
}

/// NULL is as good as nothing.
fn row(body: &[u8]) -> Option<Vec<String>> {
    let (columns, mut rest) = wire::u16_of(body)?;
    let mut row = Vec::new();
    for _ in 0..columns {
        let (len, after) = wire::u32_of(rest)?;
        let (value, after) = match len {
            u32::MAX => (&[][..], after),
            len => after.split_at_checked(len as usize)?,
        };
        row.push(String::from_utf8_lossy(value).into_owned());
        rest = after;
    }
    Some(row)
}
