//! For the host's tests: a codec that does whatever its settings say, mostly wrong things.

use postern_sdk::codec::{Challenge, Codec, Step, StepResult};
use postern_sdk::{AuditEvent, Endpoint, Manifest, Problem, Settings, Side, Wants, export_codec};
use serde::Deserialize;

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mode {
    /// What to do on the first input from the client (or at once, for `*-on-open`); see `Misbehave::act`.
    mode: String,
    /// `validate` does it instead.
    on_validate: String,
}

impl Settings for Mode {
    fn problems(&self) -> Vec<Problem> {
        let _ = act(&self.on_validate, &[]);
        match self.mode.as_str() {
            "invalid" => vec![
                Problem::new("mode", "may not be \"invalid\""),
                Problem::new("", "nor may the rest"),
            ],
            _ => vec![],
        }
    }
}

pub struct Misbehave {
    mode: String,
}

/// Does it; what comes back are steps.
fn act(mode: &str, data: &[u8]) -> Vec<Step> {
    let n = data.len() as u32;
    match mode {
        "trap" => panic!("asked to"),
        "loop" => loop {
            std::hint::black_box(0);
        },
        "sleep" => {
            std::thread::sleep(std::time::Duration::from_secs(3600));
            vec![]
        }
        "memory" => {
            let mut all: Vec<Vec<u8>> = Vec::new();
            loop {
                all.push(std::hint::black_box(vec![1; 1 << 20]));
            }
        }
        "stack" => vec![Step::Pass(deep(n.wrapping_add(1)))],
        "flood" => {
            for i in 0..10_000 {
                postern_sdk::info!("flood {i}");
                eprintln!("flood on stderr {i}");
            }
            vec![Step::Pass(n)]
        }
        // Contract.
        "pass-too-much" => vec![Step::Pass(n + 1)],
        "pass-overflow" => vec![Step::Pass(u32::MAX), Step::Pass(u32::MAX)],
        "question-in-the-middle" => vec![Step::Authorize(vec![]), Step::Pass(n)],
        "unannounced-endpoint" => vec![Step::Connect(Endpoint::Admin)],
        "unannounced-challenge" => vec![Step::Answer(Challenge {
            method: "md5".into(),
            account: "app".into(),
            data: vec![],
        })],
        "start-tls" => vec![Step::StartTls(Side::Upstream)],
        "connect-twice" => vec![Step::Connect(Endpoint::Main)],
        "send-too-much" => vec![Step::ToClient(vec![0; 2 << 20])],
        "steps-too-many" => vec![Step::NeedMore; 5000],
        "huge-answer" => vec![Step::ToClient(vec![0; 20 << 20])],
        "never" => vec![Step::NeedMore],
        // Well behaved.
        "pass" | "upstream-trap" | "upstream-never" => vec![Step::Pass(n)],
        "copy" => vec![Step::Skip(n), Step::ToUpstream(data.to_vec())],
        "event" => vec![
            Step::Event(AuditEvent {
                name: "seen".into(),
                fields: vec![("bytes".into(), n.to_string())],
            }),
            Step::Pass(n),
        ],
        "splice" => vec![Step::Splice(Side::Client)],
        "close" => vec![
            Step::ToClient(b"bye\n".to_vec()),
            Step::Close(Some("asked to".into())),
        ],
        _ => vec![],
    }
}

#[inline(never)]
fn deep(n: u32) -> u32 {
    let a = std::hint::black_box([n; 64]);
    if a[0] == 0 {
        0
    } else {
        deep(std::hint::black_box(n)).wrapping_add(a[(n % 64) as usize])
    }
}

/// Lines of at most 256 bytes, forwarded only when whole; for the rules about unconsumed input.
fn lines(data: &[u8]) -> Vec<Step> {
    match data.iter().rposition(|b| *b == b'\n') {
        Some(end) => vec![Step::Pass(end as u32 + 1), Step::NeedMore],
        None => vec![Step::NeedMore],
    }
}

impl Codec for Misbehave {
    type Settings = Mode;

    fn manifest() -> Manifest {
        Manifest {
            kind: "misbehave",
            protocol: "none",
            version: env!("CARGO_PKG_VERSION"),
            summary: "does what its settings say",
            principals: &[("things", "anything")],
            settings_schema: r#"{"type":"object"}"#,
            wants: Wants {
                endpoints: &[Endpoint::Main],
                ..Wants::default()
            },
        }
    }

    fn new(settings: Mode) -> Self {
        if settings.mode == "trap-on-new" {
            panic!("asked to");
        }
        Misbehave {
            mode: settings.mode,
        }
    }

    fn on_open(&mut self) -> Vec<Step> {
        match self.mode.as_str() {
            "trap-on-open" => act("trap", &[]),
            "greet" => vec![
                Step::ToClient(b"hello\n".to_vec()),
                Step::Authorize(vec![("things".into(), "one".into())]),
            ],
            "connect-unasked" => vec![Step::Connect(Endpoint::Main)],
            "send-early" => vec![Step::ToUpstream(b"x".to_vec())],
            "ask-forever" => vec![Step::Authorize(vec![])],
            "unannounced-principal" => vec![Step::Authorize(vec![("others".into(), "x".into())])],
            // Authorisation first when a whole line has come: unconsumed input over a question.
            "ask-late" => vec![],
            _ => vec![Step::Authorize(vec![])],
        }
    }

    fn on_input(&mut self, side: Side, data: &[u8]) -> Vec<Step> {
        if self.mode == "lines" {
            return lines(data);
        }
        if self.mode == "ask-late" {
            if !data.contains(&b'\n') {
                return vec![Step::NeedMore];
            }
            self.mode = "pass".into();
            return vec![Step::Authorize(vec![])];
        }
        match side {
            Side::Client => act(&self.mode, data),
            // Answers pass, unless the direction is what is tested.
            Side::Upstream => match self.mode.as_str() {
                "copy" => vec![Step::Skip(data.len() as u32), Step::ToClient(data.to_vec())],
                "upstream-never" => vec![Step::NeedMore],
                "upstream-trap" => act("trap", data),
                _ => vec![Step::Pass(data.len() as u32)],
            },
        }
    }

    fn on_result(&mut self, result: StepResult) -> Vec<Step> {
        match result {
            StepResult::Authorized if self.mode == "ask-forever" => vec![Step::Authorize(vec![])],
            StepResult::Authorized => vec![Step::Connect(Endpoint::Main)],
            StepResult::Connected if self.mode == "result-trap" => act("trap", &[]),
            StepResult::Denied(why) | StepResult::ConnectFailed(why) => {
                vec![
                    Step::ToClient(format!("refused: {why}\n").into_bytes()),
                    Step::Close(Some(why)),
                ]
            }
            _ => vec![],
        }
    }

    fn on_close(&mut self, side: Side) -> Vec<Step> {
        match (self.mode.as_str(), side) {
            ("goodbye", Side::Client) => vec![Step::ToUpstream(b"client left\n".to_vec())],
            _ => vec![],
        }
    }
}

export_codec!(Misbehave);
