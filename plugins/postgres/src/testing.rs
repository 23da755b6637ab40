//! A host without sockets, for the tests: keeps input until it is consumed, carries out steps, answers questions.

use crate::Postgres;
use crate::settings::PostgresSettings;
use crate::wire;
use postern_sdk::accounts::{Administrator, Task};
use postern_sdk::codec::{Codec, Step, StepResult};
use postern_sdk::{AuditEvent, Side};

pub struct Host {
    plugin: Postgres,
    answer: fn(&Step) -> StepResult,
    /// Not consumed, by side.
    kept: [Vec<u8>; 2],
    /// What the server and the client have got.
    pub got: [Vec<u8>; 2],
    /// The events, each with the bytes that the server had got before it.
    pub events: Vec<(AuditEvent, usize)>,
    pub questions: Vec<Step>,
    pub closed: Option<Option<String>>,
}

fn at(side: Side) -> usize {
    match side {
        Side::Client => 0,
        Side::Upstream => 1,
    }
}

/// Everything goes well.
pub fn kind(question: &Step) -> StepResult {
    match question {
        Step::Authorize(_) => StepResult::Authorized,
        Step::Connect(_) => StepResult::Connected,
        Step::StartTls(_) => StepResult::TlsStarted,
        Step::Answer(c) if c.method == "md5-postgres" => StepResult::Answered(b"md5abc".to_vec()),
        Step::Answer(c) if c.data.starts_with(b"SCRAM") => {
            StepResult::Answered(b"SCRAM-SHA-256\0n,,n=,r=x".to_vec())
        }
        Step::Answer(c) if c.data.starts_with(b"r=") => {
            StepResult::Answered(b"c=biws,r=xy,p=z".to_vec())
        }
        Step::Answer(_) => StepResult::Answered(vec![]),
        Step::SendSecret(_) => StepResult::SecretSent,
        Step::OfferCancel((_, most)) => StepResult::CancelKey(vec![7; *most as usize]),
        Step::FindCancel(_) => StepResult::CancelFound(b"\0\0\0\x01true".to_vec()),
        other => panic!("{other:?} is no question"),
    }
}

impl Host {
    pub fn new(settings: PostgresSettings, answer: fn(&Step) -> StepResult) -> Self {
        let mut host = Self::with(settings, answer);
        let steps = host.plugin.on_open();
        host.carry_out(steps, None);
        host
    }

    /// A task, with `root` as the administrator.
    pub fn task(task: Task, answer: fn(&Step) -> StepResult) -> Self {
        let mut host = Self::with(PostgresSettings::default(), answer);
        let admin = Administrator {
            user: "root".into(),
            database: "postgres".into(),
        };
        let steps = host.plugin.on_task(admin, task);
        host.carry_out(steps, None);
        host
    }

    fn with(settings: PostgresSettings, answer: fn(&Step) -> StepResult) -> Self {
        Host {
            plugin: Postgres::new(settings),
            answer,
            kept: Default::default(),
            got: Default::default(),
            events: vec![],
            questions: vec![],
            closed: None,
        }
    }

    /// A session that has begun; what both sides got until then is dropped.
    pub fn session(settings: PostgresSettings) -> Self {
        let mut host = Host::new(settings, kind);
        host.send(Side::Client, &startup(0, &["user", "app"]));
        host.send(Side::Upstream, b"S");
        host.send(Side::Upstream, &auth(0, b""));
        host.send(Side::Upstream, b"Z\0\0\0\x05I");
        assert_eq!(host.got[1], [&auth(0, b"")[..], b"Z\0\0\0\x05I"].concat());
        host.got = Default::default();
        host.questions.clear();
        host
    }

    pub fn send(&mut self, side: Side, bytes: &[u8]) {
        for part in bytes.chunks(16 << 10) {
            if self.closed.is_some() {
                return;
            }
            self.kept[at(side)].extend_from_slice(part);
            self.show(side);
        }
    }

    pub fn end(&mut self, side: Side) {
        if self.closed.is_none() {
            let steps = self.plugin.on_close(side);
            self.carry_out(steps, Some(side));
        }
    }

    fn show(&mut self, side: Side) {
        let data = self.kept[at(side)].clone();
        if data.is_empty() || self.closed.is_some() {
            return;
        }
        let steps = self.plugin.on_input(side, &data);
        let asks = self.carry_out(steps, Some(side));
        let left = self.kept[at(side)].len();
        assert!(
            asks || self.closed.is_some() || left < 64 << 10 || left < data.len(),
            "it consumed nothing of {left}"
        );
    }

    /// True if there was a question, after which all input has been shown again.
    fn carry_out(&mut self, steps: Vec<Step>, about: Option<Side>) -> bool {
        assert!(steps.len() <= 4096, "{} steps", steps.len());
        let count = steps.len();
        for (i, step) in steps.into_iter().enumerate() {
            match step {
                Step::NeedMore => {}
                Step::Pass(n) | Step::Skip(n) => {
                    let side = about.expect("about input");
                    let bytes: Vec<u8> = self.kept[at(side)].drain(..n as usize).collect();
                    if matches!(step, Step::Pass(_)) {
                        self.got[at(side)].extend(bytes);
                    }
                }
                Step::ToUpstream(bytes) => self.got[0].extend(bytes),
                Step::ToClient(bytes) => self.got[1].extend(bytes),
                Step::Event(event) => self.events.push((event, self.got[0].len())),
                Step::Close(why) => {
                    assert_eq!(i + 1, count);
                    self.closed = Some(why);
                }
                Step::Splice(_) => panic!("a session is never spliced"),
                question => {
                    assert_eq!(i + 1, count);
                    let result = (self.answer)(&question);
                    self.questions.push(question);
                    let steps = self.plugin.on_result(result);
                    self.carry_out(steps, None);
                    self.show(Side::Client);
                    self.show(Side::Upstream);
                    return true;
                }
            }
        }
        false
    }

    /// The events as a script writes them.
    pub fn told(&self) -> Vec<String> {
        let shown = |e: &AuditEvent| {
            e.fields
                .iter()
                .fold(e.name.clone(), |s, (k, v)| format!("{s} {k}={v}"))
        };
        self.events.iter().map(|(e, _)| shown(e)).collect()
    }

    /// The error that the client got last: SQLSTATE and message.
    pub fn error(&self) -> (String, String) {
        let from = self.got[1]
            .windows(8)
            .rposition(|w| w.starts_with(b"E\0") && w.ends_with(b"SFA"));
        let body = &self.got[1][from.expect("an error") + 5..];
        let field = |f| wire::error_field(body, f).unwrap_or_default().to_owned();
        (field(b'C'), field(b'M'))
    }
}

pub fn startup(minor: u32, parameters: &[&str]) -> Vec<u8> {
    let body: Vec<u8> = parameters
        .iter()
        .flat_map(|p| [p.as_bytes(), b"\0"].concat())
        .collect();
    wire::untyped((3 << 16) + minor, &[&body[..], b"\0"].concat())
}

pub fn auth(code: u32, rest: &[u8]) -> Vec<u8> {
    wire::message(b'R', &[&code.to_be_bytes()[..], rest].concat())
}

pub fn query(sql: &str) -> Vec<u8> {
    wire::message(b'Q', &[sql.as_bytes(), b"\0"].concat())
}

pub fn parse(name: &str, sql: &str) -> Vec<u8> {
    wire::message(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

pub fn bind(portal: &str, statement: &str) -> Vec<u8> {
    wire::message(
        b'B',
        format!("{portal}\0{statement}\0\0\0\0\0\0\0").as_bytes(),
    )
}

pub fn execute(portal: &str) -> Vec<u8> {
    wire::message(b'E', format!("{portal}\0\0\0\0\0").as_bytes())
}

pub const SYNC: &[u8] = b"S\0\0\0\x04";
