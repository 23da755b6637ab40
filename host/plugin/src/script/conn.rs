//! What the host keeps of one connection, without sockets: bytes that nobody has decided about, the question that is open, and
//! the rules of `wit/codec.wit`. `host/relay` holds a plugin to the same rules between real streams; a test there compares the
//! two, word by word.

use crate::asking::Asking;
use crate::types::{Endpoint, Side, Step, StepResult};

/// Unconsumed bytes of a side that are kept.
const LARGEST: usize = 64 << 10;
/// Bytes that one answer may send.
const MAX_SEND: usize = 1 << 20;

/// What one side sends.
#[derive(Default)]
struct Half {
    /// Sent, but not looked at: while a question is open, or more than is kept.
    arriving: Vec<u8>,
    /// Shown to the plugin, or about to be.
    undecided: Vec<u8>,
    /// `undecided` has to be shown (again).
    fresh: bool,
    /// Spliced: nobody is asked.
    native: bool,
    /// It has sent its last byte.
    eof: bool,
    /// The other side has been told of that.
    ended: bool,
    /// What the other side got.
    out: Vec<u8>,
}

#[derive(Default)]
pub(super) struct Conn {
    client: Half,
    upstream: Half,
    asking: Asking,
    question: Option<Step>,
    /// The side whose end the plugin was just told.
    ending: Option<Side>,
    closed: bool,
    /// Whose turn it is, where both have something.
    second: bool,
}

/// What the plugin has to be shown next.
pub(super) enum Next {
    Input(Side, Vec<u8>),
    End(Side),
}

impl Conn {
    fn of(&mut self, side: Side) -> &mut Half {
        match side {
            Side::Client => &mut self.client,
            Side::Upstream => &mut self.upstream,
        }
    }

    pub(super) fn connected(&self) -> bool {
        self.asking.endpoint().is_some()
    }

    pub(super) fn closed(&self) -> bool {
        self.closed
    }

    pub(super) fn question(&self) -> Option<&Step> {
        self.question.as_ref()
    }

    pub(super) fn native(&mut self, side: Side) -> bool {
        self.of(side).native
    }

    pub(super) fn ended(&mut self, side: Side) -> bool {
        self.of(side).eof
    }

    pub(super) fn all_native(&self) -> bool {
        self.client.native && self.upstream.native
    }

    /// (to the upstream, to the client)
    pub(super) fn totals(&self) -> (Vec<u8>, Vec<u8>) {
        (self.client.out.clone(), self.upstream.out.clone())
    }

    /// A side sends bytes.
    pub(super) fn arrives(&mut self, side: Side, bytes: &[u8]) {
        let half = self.of(side);
        if half.native {
            half.out.extend_from_slice(bytes);
        } else {
            half.arriving.extend_from_slice(bytes);
        }
        self.asking.heard();
    }

    /// A side sends nothing more.
    pub(super) fn ends(&mut self, side: Side) {
        let half = self.of(side);
        half.eof = true;
        half.ended |= half.native;
        self.asking.heard();
    }

    /// The host's answer to the open question.
    pub(super) fn answered(&mut self, result: &StepResult) {
        if let Some(question) = self.question.take() {
            self.asking.answered(&question, result);
            if matches!(result, StepResult::Connected) {
                // Nothing of an upstream before it is this one's.
                self.upstream = Half {
                    out: std::mem::take(&mut self.upstream.out),
                    ..Half::default()
                };
            }
        }
        // It may be what the plugin needed to go on with input that it has seen.
        for half in [&mut self.client, &mut self.upstream] {
            half.fresh |= !half.native && !half.undecided.is_empty();
        }
    }

    /// What the plugin is shown next, if anything.
    pub(super) fn next(&mut self) -> Option<Next> {
        if self.closed || self.question.is_some() {
            return None;
        }
        // Who cancels need not wait until it is done.
        let cancels = self.asking.endpoint() == Some(Endpoint::Cancel);
        let order = [Side::Client, Side::Upstream];
        for side in [
            order[usize::from(self.second)],
            order[usize::from(!self.second)],
        ] {
            let half = self.of(side);
            if half.native || half.ended {
                continue;
            }
            let room = LARGEST.saturating_sub(half.undecided.len());
            let more = room.min(half.arriving.len());
            half.fresh |= more > 0;
            half.undecided.extend(half.arriving.drain(..more));
            let next = if half.fresh && !half.undecided.is_empty() {
                half.fresh = false;
                Next::Input(side, half.undecided.clone())
            } else if half.eof && !(cancels && side == Side::Client) {
                self.ending = Some(side);
                Next::End(side)
            } else {
                continue;
            };
            self.second = side == Side::Client;
            return Some(next);
        }
        None
    }

    /// Carries out one answer. `about`: whose input (or end) it answers. The error says which rule it breaks.
    pub(super) fn carry_out(&mut self, steps: &[Step], about: Option<Side>) -> Result<(), String> {
        let before = about.map(|s| self.of(s).undecided.len());
        let (mut sent, mut over) = (0, false);
        for step in steps {
            if over {
                return broke("a step follows a question or a close; it must end its list");
            }
            match step {
                Step::NeedMore | Step::Event(_) => {}
                Step::Pass(n) | Step::Skip(n) => {
                    let pass = matches!(step, Step::Pass(_));
                    self.consume(about, *n as usize, pass)?;
                }
                Step::ToUpstream(bytes) => {
                    sent += bytes.len();
                    if !self.connected() {
                        return broke("to-upstream before connect was answered");
                    }
                    self.send(Side::Upstream, bytes, sent)?;
                }
                Step::ToClient(bytes) => {
                    sent += bytes.len();
                    self.send(Side::Client, bytes, sent)?;
                }
                Step::Splice(side) => {
                    self.asking.may_splice()?;
                    self.splice(*side);
                }
                Step::Close(_) => {
                    self.closed = true;
                    over = true;
                }
                Step::Authorize(_)
                | Step::Connect(_)
                | Step::StartTls(_)
                | Step::Answer(_)
                | Step::SendSecret(_)
                | Step::OfferCancel(..)
                | Step::FindCancel(_) => {
                    self.question = Some(step.clone());
                    over = true;
                }
            }
        }
        if let Some(side) = about {
            let left = self.of(side).undecided.len();
            if left >= LARGEST && before == Some(left) && !over {
                return broke(
                    "it consumed nothing of a full 64 KiB; longer messages must be passed on in parts",
                );
            }
        }
        if let Some(question) = &self.question {
            return self.asking.may_ask(question).map_err(String::from);
        }
        if !self.closed
            && let Some(side) = self.ending.take()
        {
            // It has answered on-close: what it left is dropped.
            let half = self.of(side);
            if !half.native {
                half.undecided.clear();
                half.ended = true;
            }
        }
        Ok(())
    }

    fn consume(&mut self, about: Option<Side>, n: usize, pass: bool) -> Result<(), String> {
        let what = if pass { "pass" } else { "skip" };
        let Some(side) = about else {
            return broke(&format!("{what} without input"));
        };
        if pass {
            self.asking.may_pass(side)?;
        }
        let half = self.of(side);
        if n > half.undecided.len() {
            return broke(&format!("{what} of more bytes than there are"));
        }
        let bytes = half.undecided.drain(..n);
        if pass {
            half.out.extend(bytes);
        }
        Ok(())
    }

    fn send(&mut self, to: Side, bytes: &[u8], sent: usize) -> Result<(), String> {
        if sent > MAX_SEND {
            return broke("one answer sends more than 1 MiB");
        }
        let half = self.of(to.other());
        if half.ended {
            return broke("it sends to a side that it was told has been closed");
        }
        half.out.extend_from_slice(bytes);
        Ok(())
    }

    fn splice(&mut self, side: Side) {
        let half = self.of(side);
        half.native = true;
        half.fresh = false;
        half.out.append(&mut half.undecided);
        half.out.append(&mut half.arriving);
        half.ended |= half.eof;
    }
}

fn broke<T>(why: &str) -> Result<T, String> {
    Err(why.into())
}
