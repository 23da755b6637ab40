//! A session once the server has let the user in. Everything passes unchanged; what is asked and what fails is put on record on
//! the way.
//!
//! A query event is written when a simple query comes, and in the extended protocol when a **Bind** does: from there on the server
//! may run something (planning runs functions that are declared immutable), and it carries the parameters. The first Execute of
//! what was bound says nothing new. Events stand before the bytes they are about.

use crate::audit::{self, Bound, Sql, Totals};
use crate::pending::{self, Got, Pending};
use crate::statements::Statements;
use crate::wire::{self, Broken, HEAD, Head};
use postern_sdk::AuditEvent;
use postern_sdk::input::Input;
use std::rc::Rc;

/// Bytes of a name of a statement or portal. PostgreSQL cuts what is longer, others do not: two names could be one or two.
const MOST_NAME: usize = 63;
/// Bytes of a message that are looked at: two names, and as much of the rest as goes into an event.
const LOOK: usize = HEAD + 2 * (MOST_NAME + 1) + 16 * 1024 + 4;
/// Bytes of what else a statement's name may stand for.
const MOST_OTHERS: usize = 24 << 10;
/// Bytes of an error that are looked at.
const LOOK_ERROR: usize = 8 << 10;
/// Longest end of a command that is read.
const MOST_TAG: usize = 256;
/// Portals that are bound and not executed which are remembered.
const MOST_PORTALS: usize = 256;

/// One session.
#[derive(Debug, Default)]
pub struct Session {
    /// Whether events carry parameters.
    parameters: bool,
    pending: Pending,
    statements: Statements,
    /// Portals whose first Execute is still to come.
    bound: Vec<Box<[u8]>>,
    totals: Totals,
    ended: bool,
}

impl Session {
    pub fn new(parameters: bool) -> Self {
        Session {
            parameters,
            ..Session::default()
        }
    }

    /// Reads what the client sends.
    pub fn client(&mut self, input: &mut Input<'_>) -> Result<(), Broken> {
        while let Some(head) = wire::client_head(input.left())? {
            let look = match head.kind {
                b'd' => {
                    input.pass(wire::run(input.left(), b'd').max(head.len));
                    continue;
                }
                b'Q' | b'P' | b'B' => head.len.min(LOOK),
                b'E' | b'C' => head.len,
                b'F' => head.len.min(HEAD + 4),
                _ => HEAD,
            };
            let Some(message) = input.left().get(..look) else {
                return Ok(());
            };
            self.asks(head, &message[HEAD..], input)?;
            input.pass(head.len);
        }
        Ok(())
    }

    /// One message of the client, of which `body` is what is looked at.
    fn asks(&mut self, head: Head, body: &[u8], input: &mut Input<'_>) -> Result<(), Broken> {
        let body_len = head.len - HEAD;
        match head.kind {
            b'Q' => {
                self.totals.queries += 1;
                input.event(audit::query(&audit::sql(body, body_len)));
                self.pending.sent(pending::QUERY)
            }
            b'P' => {
                let (name, rest) = name(body, "Parse")?;
                // Behind it is the number of types that the client gives, most often none.
                let len = body_len - (body.len() - rest.len());
                let sql = audit::sql(rest, len.saturating_sub(2));
                if !self.pending.sent_parse(name, &sql)? {
                    self.statements.doubt(name, sql);
                }
                Ok(())
            }
            b'B' => {
                let (portal, rest) = name(body, "Bind")?;
                let (statement, rest) = name(rest, "Bind")?;
                self.totals.queries += 1;
                let mut bound = self.look_up(statement);
                bound.portal = portal;
                bound.parameters = self.parameters.then(|| audit::parameters(rest));
                input.event(bound.event(input.is_wordy()));
                self.remember(portal);
                self.pending.sent(pending::BIND)
            }
            b'E' => {
                let (portal, _) = name(body, "Execute")?;
                match self.bound.iter().position(|p| **p == *portal) {
                    Some(at) => drop(self.bound.swap_remove(at)),
                    None => input.event(audit::again(portal)),
                }
                self.pending.sent(pending::EXECUTE)
            }
            b'C' => {
                let (what, rest) = body.split_first().ok_or_else(|| short("Close"))?;
                let (name, _) = name(rest, "Close")?;
                match what {
                    b'S' => self.pending.sent_close(name),
                    _ => self.pending.sent(pending::CLOSE_PORTAL),
                }
            }
            b'F' => {
                let (oid, _) = wire::u32_of(body).ok_or_else(|| short("FunctionCall"))?;
                self.totals.queries += 1;
                input.event(audit::call(oid));
                self.pending.sent(pending::CALL)
            }
            b'D' => self.pending.sent(pending::DESCRIBE),
            b'S' => self.pending.sent(pending::SYNC),
            b'c' | b'f' => self.pending.sent(pending::COPY_END),
            b'X' => {
                self.end().into_iter().for_each(|e| input.event(e));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// What a Bind of this statement runs, as far as it is known.
    fn look_up<'a>(&mut self, statement: &'a [u8]) -> Bound<'a> {
        let (unanswered, sure) = self.pending.parses_of(statement);
        let mut candidates: Vec<_> = unanswered.iter().map(|p| p.sql.clone()).collect();
        let mut doubt = candidates.iter().any(Option::is_none) || (self.pending.is_lost() && !sure);
        if !sure && let Some((sql, other, doubted)) = self.statements.get(statement) {
            doubt |= doubted;
            candidates.push(Some(sql));
            candidates.extend(other.map(Some));
        }
        let mut known = candidates.into_iter().flatten();
        let sql = known.next();
        let same = |a: &Rc<Sql>, b: &Rc<Sql>| a.cut == b.cut;
        let mut others: Vec<_> = known
            .filter(|s| sql.as_ref().is_some_and(|first| !same(s, first)))
            .collect();
        others.dedup_by(|a, b| same(a, b));
        // More than anybody asks for by accident.
        let mut bytes = 0;
        let fits = |s: &&Rc<Sql>| {
            bytes += s.cut.json.len();
            bytes <= MOST_OTHERS
        };
        let fitting = others.iter().take_while(fits).count();
        doubt |= others.len() > fitting;
        others.truncate(fitting);
        Bound {
            statement,
            doubt: doubt && sql.is_some(),
            sql,
            others,
            ..Bound::default()
        }
    }

    fn remember(&mut self, portal: &[u8]) {
        if self.bound.iter().any(|p| **p == *portal) {
            return;
        }
        if self.bound.len() >= MOST_PORTALS {
            self.bound.remove(0);
        }
        self.bound.push(portal.into());
    }

    /// Reads what the server sends.
    pub fn server(&mut self, input: &mut Input<'_>) -> Result<(), Broken> {
        while let Some(head) = wire::server_head(input.left())? {
            let look = match head.kind {
                b'D' | b'd' => {
                    input.pass(wire::run(input.left(), head.kind).max(head.len));
                    continue;
                }
                b'E' => head.len.min(LOOK_ERROR),
                b'C' if head.len <= MOST_TAG => head.len,
                _ => HEAD,
            };
            let Some(message) = input.left().get(..look) else {
                return Ok(());
            };
            self.answers(head.kind, &message[HEAD..], input);
            input.pass(head.len);
        }
        Ok(())
    }

    fn answers(&mut self, kind: u8, body: &[u8], input: &mut Input<'_>) {
        let got = self.pending.got(kind);
        match kind {
            b'E' => {
                self.totals.errors += 1;
                let sql = match &got {
                    Got::Failed(parsed) => parsed.sql.as_deref(),
                    _ => None,
                };
                input.event(audit::error(body, sql));
            }
            b'C' => self.done(wire::text(body, body.len()).map_or(body, |(tag, _)| tag)),
            _ => {}
        }
        match got {
            Got::Prepared(parsed) => match parsed.sql {
                Some(sql) => self
                    .statements
                    .put(parsed.name, sql, self.pending.is_lost()),
                None => self.statements.remove(&parsed.name),
            },
            Got::Closed(name) => self.statements.remove(&name),
            Got::Lost => self.statements.doubt_all(),
            Got::Failed(_) | Got::Nothing => {}
        }
    }

    /// A command has been carried out; some change what names stand for.
    fn done(&mut self, tag: &[u8]) {
        self.totals.add_rows(tag);
        match tag {
            b"DISCARD ALL" | b"DEALLOCATE ALL" => self.statements.clear(),
            b"PREPARE" => self.statements.doubt_all(),
            _ => {}
        }
    }

    /// The event at the end, once.
    pub fn end(&mut self) -> Option<AuditEvent> {
        let first = !std::mem::replace(&mut self.ended, true);
        first.then(|| self.totals.event())
    }
}

fn name<'a>(body: &'a [u8], message: &str) -> Result<(&'a [u8], &'a [u8]), Broken> {
    wire::text(body, MOST_NAME + 1).ok_or_else(|| match body.len() > MOST_NAME {
        true => Broken(format!(
            "a name in a {message} message is longer than {MOST_NAME} bytes"
        )),
        false => short(message),
    })
}

fn short(message: &str) -> Broken {
    Broken(format!("a {message} message ends too early"))
}

#[cfg(test)]
mod tests;
