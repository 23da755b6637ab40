//! For the host's tests: a codec that asks what its settings list, one after the other, and tells its client each answer. With
//! a task it does the same, and tells first what the task is.

use postern_sdk::accounts::{Administrator, Task};
use postern_sdk::codec::{Challenge, Codec, SecretMessage, Step, StepResult, TemplatePart};
use postern_sdk::{
    AuditEvent, Endpoint, Manifest, Settings, Side, Wants, export_accounts, export_codec,
};
use serde::Deserialize;

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Asks {
    /// See `Asker::next`.
    ask: Vec<String>,
}

impl Settings for Asks {}

pub struct Asker {
    ask: std::vec::IntoIter<String>,
    /// The upstream was asked for TLS, and has not answered.
    waits: bool,
}

impl Asker {
    fn next(&mut self) -> Vec<Step> {
        let Some(ask) = self.ask.next() else {
            return vec![Step::Close(Some("all was asked".into()))];
        };
        let (what, which) = ask.split_once(' ').unwrap_or((&ask, ""));
        match what {
            "authorize" => vec![Step::Authorize(vec![("db_users".into(), which.into())])],
            "connect" => vec![Step::Connect(match which {
                "cancel" => Endpoint::Cancel,
                "admin" => Endpoint::Admin,
                _ => Endpoint::Main,
            })],
            "tls" => vec![Step::StartTls(Side::Upstream)],
            // As PostgreSQL has it: a request, and one byte in answer.
            "request-tls" => {
                self.waits = true;
                vec![Step::ToUpstream(b"tls?".to_vec())]
            }
            "answer" => vec![Step::Answer(Challenge {
                method: "test".into(),
                account: which.into(),
                data: b"riddle".to_vec(),
            })],
            "secret" => vec![Step::SendSecret(SecretMessage {
                account: which.into(),
                parts: vec![
                    TemplatePart::LengthU32Be(4),
                    TemplatePart::Secret,
                    TemplatePart::Bytes(vec![0]),
                ],
            })],
            "offer" => vec![Step::OfferCancel((which.as_bytes().to_vec(), 8))],
            "find" => vec![Step::FindCancel(which.as_bytes().to_vec())],
            "event" => {
                let event = Step::Event(AuditEvent {
                    name: which.into(),
                    fields: vec![],
                });
                let mut steps = vec![event, Step::ToClient(b"behind\n".to_vec())];
                steps.extend(self.next());
                steps
            }
            "splice" => vec![Step::Splice(Side::Client), Step::Splice(Side::Upstream)],
            other => vec![Step::Close(Some(format!("what is {other}?")))],
        }
    }
}

impl Codec for Asker {
    type Settings = Asks;

    fn manifest() -> Manifest {
        Manifest {
            kind: "asker",
            protocol: "none",
            version: env!("CARGO_PKG_VERSION"),
            summary: "asks what its settings say",
            principals: &[("db_users", "anybody")],
            settings_schema: r#"{"type":"object"}"#,
            wants: Wants {
                endpoints: &[Endpoint::Main, Endpoint::Cancel, Endpoint::Admin],
                start_tls: true,
                challenges: &["test"],
                send_secret: true,
                ..Wants::default()
            },
        }
    }

    fn new(settings: Asks) -> Self {
        Asker {
            ask: settings.ask.into_iter(),
            waits: false,
        }
    }

    fn on_open(&mut self) -> Vec<Step> {
        self.next()
    }

    fn on_task(&mut self, admin: Administrator, task: Task) -> Vec<Step> {
        let Administrator { user, database } = admin;
        let told = format!("{user} at {database}: {task:?}\n");
        let mut steps = vec![Step::ToClient(told.into_bytes())];
        steps.extend(self.next());
        steps
    }

    fn on_input(&mut self, side: Side, data: &[u8]) -> Vec<Step> {
        if side == Side::Upstream && std::mem::take(&mut self.waits) {
            return vec![Step::Skip(1), Step::StartTls(Side::Upstream)];
        }
        vec![Step::Pass(data.len() as u32)]
    }

    fn on_result(&mut self, result: StepResult) -> Vec<Step> {
        let told = match result {
            StepResult::Authorized => "authorized".to_owned(),
            StepResult::Connected => "connected".to_owned(),
            StepResult::TlsStarted => "tls".to_owned(),
            StepResult::SecretSent => "sent".to_owned(),
            StepResult::CancelUnknown => "unknown".to_owned(),
            StepResult::Answered(b) | StepResult::CancelKey(b) | StepResult::CancelFound(b) => {
                String::from_utf8_lossy(&b).into_owned()
            }
            StepResult::Denied(why)
            | StepResult::ConnectFailed(why)
            | StepResult::TlsFailed(why)
            | StepResult::AnswerFailed(why)
            | StepResult::SecretFailed(why) => format!("failed: {why}"),
        };
        let mut steps = vec![Step::ToClient(format!("{told}\n").into_bytes())];
        steps.extend(self.next());
        steps
    }
}

export_codec!(Asker);
export_accounts!();
