//! Length-prefixed messages out of "input is kept until consumed, at most 64 KiB" (rule 1 of `wit/codec.wit`); for the codecs
//! of databases, whose messages are a head with a length and a body of any size.
//!
//! A plugin looks at heads, and at bodies where they matter. Whatever it lets pass is not copied; a message longer than
//! what is there passes in parts. Many messages in a row become one `pass`.

use crate::AuditEvent;
use crate::codec::Step;
use crate::event::{Event, PARAMETERS, json};

/// Unconsumed bytes of a side that the host keeps at most: what a plugin can look at in one piece.
pub const WINDOW: usize = 64 << 10;
/// Events of one answer that are steps of their own; the host takes 4096 steps.
const MAX_EVENTS: usize = 1024;
/// Bytes of those beyond that go into one; the audit log takes 64 KiB.
const MOST_FOLDED: usize = 32 << 10;
/// Bytes of events after which long texts are to be left out; the host takes 4 MiB in one answer.
const ROOMY: usize = 1 << 20;

/// What has not come yet of a message whose beginning has passed. One for each side of a connection.
#[derive(Debug, Default)]
pub struct Rest(usize);

impl Rest {
    /// Whether a message has passed in part: then no other may be sent to where it goes.
    pub fn is_open(&self) -> bool {
        self.0 > 0
    }
}

/// The input of one call, and the answer to it as it grows.
#[derive(Debug)]
pub struct Input<'a> {
    data: &'a [u8],
    rest: &'a mut Rest,
    /// Bytes of `data` that are decided about.
    at: usize,
    /// The last of these: they pass, and the step that says so is not written yet.
    passing: usize,
    steps: Vec<Step>,
    events: usize,
    event_bytes: usize,
    /// Events beyond [`MAX_EVENTS`], as JSON objects with commas between them.
    folded: String,
}

impl<'a> Input<'a> {
    /// `data` is what the host shows. What belongs to a message that has passed in part passes.
    pub fn new(data: &'a [u8], rest: &'a mut Rest) -> Self {
        let begun = std::mem::take(&mut rest.0);
        let mut input = Input {
            data,
            rest,
            at: 0,
            passing: 0,
            steps: Vec::new(),
            events: 0,
            event_bytes: 0,
            folded: String::new(),
        };
        input.pass(begun);
        input
    }

    /// What is not decided about yet.
    pub fn left(&self) -> &'a [u8] {
        &self.data[self.at..]
    }

    /// Nothing more can come before some of it is consumed.
    pub fn is_full(&self) -> bool {
        self.at == 0 && self.data.len() >= WINDOW
    }

    /// Lets the next `len` bytes pass: those that are there now, and the others when they come.
    pub fn pass(&mut self, len: usize) {
        let here = len.min(self.data.len() - self.at);
        self.at += here;
        self.passing += here;
        self.rest.0 = len - here;
    }

    /// Drops the next `len` bytes, which must be there.
    pub fn skip(&mut self, len: usize) {
        let here = len.min(self.data.len() - self.at);
        self.at += here;
        self.push(Step::Skip(here as u32));
    }

    /// Writes an audit event. It stands before the `pass` of all bytes that were let pass without another step in between, and so
    /// before those that it is about, if it is written before they pass.
    pub fn event(&mut self, event: AuditEvent) {
        self.events += 1;
        self.event_bytes += event
            .fields
            .iter()
            .map(|(k, v)| k.len() + v.len())
            .sum::<usize>();
        if self.events <= MAX_EVENTS {
            self.steps.push(Step::Event(event));
            return;
        }
        // The host decides field by field who may see the parameters; in here it would not find them.
        let fields = event.fields.iter().filter(|(k, _)| k != PARAMETERS);
        let fields: String = fields.map(|(k, v)| format!(",{}:{v}", json(k))).collect();
        let folded = format!("{{\"event\":{}{fields}}}", json(&event.name));
        if self.folded.len() + folded.len() > MOST_FOLDED {
            self.unfold();
        }
        if !self.folded.is_empty() {
            self.folded.push(',');
        }
        self.folded.push_str(&folded);
    }

    /// Whether the events of this answer have become so large that texts which are on record already should be left out.
    pub fn is_wordy(&self) -> bool {
        self.event_bytes > ROOMY
    }

    /// Any other step, behind what was let pass so far. After a question or a close nothing may follow.
    pub fn push(&mut self, step: Step) {
        self.flush();
        self.steps.push(step);
    }

    /// The answer.
    pub fn end(mut self) -> Vec<Step> {
        self.flush();
        self.steps
    }

    fn unfold(&mut self) {
        if !self.folded.is_empty() {
            let all = std::mem::take(&mut self.folded);
            let event = Event::new("session.batch").json("events", format!("[{all}]"));
            self.steps.push(Step::Event(event.end()));
        }
    }

    fn flush(&mut self) {
        self.unfold();
        if self.passing > 0 {
            let passing = std::mem::take(&mut self.passing);
            self.steps.push(Step::Pass(passing as u32));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_passes_in_parts() {
        let mut rest = Rest::default();
        let mut input = Input::new(b"abcde", &mut rest);
        input.pass(2);
        input.pass(8);
        assert_eq!(input.left(), b"");
        assert_eq!(input.end(), [Step::Pass(5)]);
        assert!(rest.is_open());
        let input = Input::new(b"fghi", &mut rest);
        assert_eq!(input.end(), [Step::Pass(4)]);
        let input = Input::new(b"jkl", &mut rest);
        assert_eq!(input.left(), b"kl");
        assert_eq!(input.end(), [Step::Pass(1)]);
        assert!(!rest.is_open());
    }

    #[test]
    fn events_stand_before_the_bytes_they_are_about() {
        let mut rest = Rest::default();
        let mut input = Input::new(b"abcdef", &mut rest);
        input.event(Event::new("one").end());
        input.pass(1);
        input.event(Event::new("two").end());
        input.pass(2);
        input.skip(1);
        input.event(Event::new("three").end());
        input.pass(2);
        let steps = input.end();
        let event = |n: &str| Step::Event(Event::new(n).end());
        assert_eq!(
            steps,
            [
                event("one"),
                event("two"),
                Step::Pass(3),
                Step::Skip(1),
                event("three"),
                Step::Pass(2)
            ]
        );
    }

    #[test]
    fn more_events_than_the_host_takes_are_folded_into_one() {
        let mut rest = Rest::default();
        let mut input = Input::new(b"x", &mut rest);
        for i in 0..MAX_EVENTS as u64 + 2 {
            input.event(Event::new("query").number("n", i).end());
        }
        input.pass(1);
        let mut steps = input.end();
        assert_eq!(steps.len(), MAX_EVENTS + 2);
        assert_eq!(steps.pop(), Some(Step::Pass(1)));
        let Some(Step::Event(last)) = steps.pop() else {
            panic!("no event");
        };
        assert_eq!(last.name, "session.batch");
        assert_eq!(
            last.fields,
            [(
                "events".to_owned(),
                r#"[{"event":"query","n":1024},{"event":"query","n":1025}]"#.to_owned()
            )]
        );
    }
}
