//! What the server still owes answers to, in order. A server answers every message, or skips all up to the next Sync after an error;
//! so each of its answers says what became of which message. That tells which Parse has made a prepared statement.
//!
//! A byte for each message, since a client may send many before the first answer. An answer that does not fit (another engine, or
//! something not thought of here) is no error: what is known of prepared statements is doubted from then on.

use crate::audit::Sql;
use crate::wire::Broken;
use std::collections::VecDeque;
use std::rc::Rc;

pub const PARSE: u8 = b'P';
pub const BIND: u8 = b'B';
pub const DESCRIBE: u8 = b'D';
pub const EXECUTE: u8 = b'E';
pub const SYNC: u8 = b'S';
pub const QUERY: u8 = b'Q';
pub const CALL: u8 = b'F';
pub const CLOSE_PORTAL: u8 = b'p';
const CLOSE_STATEMENT: u8 = b's';
/// CopyDone or CopyFail.
pub const COPY_END: u8 = b'c';

/// Messages that may wait for answers: more than fit into all buffers on the way.
const MOST: usize = 4 << 20;
/// Those of them that name a statement.
const MOST_NAMED: usize = 1 << 16;
/// Bytes of SQL that are kept of them.
const MOST_SQL: usize = 1 << 20;

/// A statement that a Parse shall make.
#[derive(Debug, Clone)]
pub struct Parsed {
    pub name: Box<[u8]>,
    /// None where there was no room for it.
    pub sql: Option<Rc<Sql>>,
    segment: u64,
    /// The server may take it for an error within the COPY of a simple query before it, and go on behind it.
    swallowed: bool,
}

/// What an answer of the server tells.
#[derive(Debug)]
pub enum Got {
    Nothing,
    Prepared(Parsed),
    Closed(Box<[u8]>),
    /// This Parse has failed.
    Failed(Parsed),
    /// The answer does not fit.
    Lost,
}

#[derive(Debug, Default)]
pub struct Pending {
    queue: VecDeque<u8>,
    parses: VecDeque<Parsed>,
    closes: VecDeque<Box<[u8]>>,
    sql_bytes: usize,
    /// Simple queries in the queue.
    simple: usize,
    /// Counts Syncs.
    segment: u64,
    /// The server skips what the client sends, up to a Sync that has not been sent yet.
    skipping: bool,
    /// The server reads a COPY, whose end has not been sent yet, and skips Syncs.
    copying: bool,
    lost: bool,
}

impl Pending {
    /// Whether answers can't be matched with messages for now.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// The client has sent this.
    pub fn sent(&mut self, kind: u8) -> Result<(), Broken> {
        self.segment += u64::from(kind == SYNC);
        if self.awaits(kind)? {
            self.simple += usize::from(kind == QUERY);
            self.queue.push_back(kind);
        }
        self.not_too_many()
    }

    /// False if the server skips it, by all that is known.
    pub fn sent_parse(&mut self, name: &[u8], sql: &Rc<Sql>) -> Result<bool, Broken> {
        let awaited = self.awaits(PARSE)?;
        if awaited {
            let fits = self.sql_bytes + sql.cut.json.len() <= MOST_SQL;
            self.sql_bytes += if fits { sql.cut.json.len() } else { 0 };
            self.queue.push_back(PARSE);
            self.parses.push_back(Parsed {
                name: name.into(),
                sql: fits.then(|| sql.clone()),
                segment: self.segment,
                swallowed: self.simple > 0 || self.lost,
            });
        }
        self.not_too_many().map(|()| awaited)
    }

    pub fn sent_close(&mut self, name: &[u8]) -> Result<(), Broken> {
        if self.awaits(CLOSE_STATEMENT)? {
            self.queue.push_back(CLOSE_STATEMENT);
            self.closes.push_back(name.into());
        }
        self.not_too_many()
    }

    /// Whether the server will answer a message of this type that is sent now.
    fn awaits(&mut self, kind: u8) -> Result<bool, Broken> {
        if self.copying {
            // Data, Flush and Terminate are not told of.
            return match kind {
                SYNC => Ok(false),
                COPY_END => {
                    self.copying = false;
                    Ok(false)
                }
                // PostgreSQL takes it for an error; servers differ in what they do then.
                _ => Err(Broken(
                    "the client sends something else in the middle of a COPY".into(),
                )),
            };
        }
        if self.skipping {
            self.skipping = kind != SYNC;
            return Ok(kind == SYNC);
        }
        // One query may have several COPYs, so each end counts: of one that the server has not begun yet, or given up already.
        Ok(kind != COPY_END || !self.queue.is_empty())
    }

    fn not_too_many(&self) -> Result<(), Broken> {
        if self.queue.len() > MOST || self.parses.len() + self.closes.len() > MOST_NAMED {
            return Err(Broken(
                "the client sends more and more without waiting for answers".into(),
            ));
        }
        Ok(())
    }

    /// What a Bind of this statement that is sent now may find prepared by a Parse without an answer so far, the newest first; and
    /// whether it is surely that.
    pub fn parses_of(&self, name: &[u8]) -> (Vec<&Parsed>, bool) {
        let mut found = Vec::new();
        for parsed in self.parses.iter().rev().filter(|p| *p.name == *name) {
            found.push(parsed);
            // No Sync between the two: if that Parse fails, the Bind is skipped.
            if parsed.segment == self.segment && !parsed.swallowed {
                return (found, true);
            }
        }
        (found, false)
    }

    /// The server has sent a message of this type.
    pub fn got(&mut self, kind: u8) -> Got {
        while self.queue.front() == Some(&COPY_END) {
            self.queue.pop_front();
        }
        let first = self.queue.front().copied();
        match (kind, first) {
            (b'1', Some(PARSE)) => match self.drop_first() {
                Some(parsed) => Got::Prepared(parsed),
                None => self.wonder(),
            },
            (b'3', Some(CLOSE_STATEMENT)) => {
                self.queue.pop_front();
                self.closes.pop_front().map_or(Got::Nothing, Got::Closed)
            }
            (b'2', Some(BIND))
            | (b'3', Some(CLOSE_PORTAL))
            | (b'T' | b'n', Some(DESCRIBE))
            | (b'C' | b'I' | b's', Some(EXECUTE)) => {
                self.queue.pop_front();
                Got::Nothing
            }
            (b'T' | b'C' | b'I', Some(QUERY)) | (b'V', Some(CALL)) => Got::Nothing,
            (b'E', _) => self.failed(first),
            (b'Z', _) => self.ready(),
            (b'G' | b'W', Some(QUERY | EXECUTE)) => self.copy_in(),
            (b'1' | b'2' | b'3' | b'T' | b'n' | b'C' | b'I' | b's' | b'V' | b'G' | b'W', _) => {
                self.wonder()
            }
            _ => Got::Nothing,
        }
    }

    fn wonder(&mut self) -> Got {
        self.lost = true;
        Got::Lost
    }

    /// Drops the first, with what is kept of it.
    fn drop_first(&mut self) -> Option<Parsed> {
        match self.queue.pop_front() {
            Some(PARSE) => {
                let parsed = self.parses.pop_front()?;
                self.sql_bytes -= parsed.sql.as_ref().map_or(0, |s| s.cut.json.len());
                Some(parsed)
            }
            Some(CLOSE_STATEMENT) => {
                self.closes.pop_front();
                None
            }
            Some(QUERY) => {
                self.simple -= 1;
                None
            }
            _ => None,
        }
    }

    /// An error: of a simple query, which is answered by a ReadyForQuery all the same; or else all up to the next Sync is skipped.
    fn failed(&mut self, first: Option<u8>) -> Got {
        self.copying = false;
        if matches!(first, None | Some(QUERY | CALL | SYNC)) {
            return Got::Nothing;
        }
        let parsed = self.drop_first();
        while !matches!(self.queue.front(), None | Some(&SYNC)) {
            self.drop_first();
        }
        self.skipping = self.queue.is_empty();
        parsed.map_or(Got::Nothing, Got::Failed)
    }

    fn ready(&mut self) -> Got {
        self.copying = false;
        let mut odd = false;
        loop {
            match self.queue.front() {
                Some(&(QUERY | CALL | SYNC)) => {
                    self.drop_first();
                    break;
                }
                None => {
                    odd = true;
                    break;
                }
                Some(&other) => {
                    odd |= other != COPY_END;
                    self.drop_first();
                }
            }
        }
        // Nothing is owed: from here on answers are those to what comes now.
        self.lost = (self.lost || odd) && !self.queue.is_empty();
        if odd { Got::Lost } else { Got::Nothing }
    }

    /// The server reads COPY data up to its end, and takes no Sync until then.
    fn copy_in(&mut self) -> Got {
        // Behind the message that has begun it.
        while self.queue.get(1) == Some(&SYNC) {
            self.queue.remove(1);
        }
        let Some(begun) = self.queue.pop_front() else {
            return self.wonder();
        };
        // The next message is the end of the data, or taken for an error.
        let next = self.queue.front().copied();
        self.copying = next.is_none();
        self.drop_first();
        self.queue.push_front(begun);
        match next {
            None | Some(COPY_END) => Got::Nothing,
            Some(_) => self.wonder(),
        }
    }
}

#[cfg(test)]
mod tests;
