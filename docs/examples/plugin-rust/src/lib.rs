//! Kind `finger` (RFC 1288): the client sends one line, a user's name; the server answers about that user and closes.
//!
//! The name is the principal: a role says about whom one may ask. `docs/plugins.md` walks through this file.

use postern_sdk::codec::{Codec, Step, StepResult};
use postern_sdk::{Endpoint, Manifest, Problem, Settings, Side, Wants, export_codec};
use serde::Deserialize;

/// `[services.<name>.settings]`; `settings.schema.json` says the same to people.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FingerSettings {
    list: bool,
    longest: usize,
}

impl Default for FingerSettings {
    fn default() -> Self {
        FingerSettings {
            list: false,
            longest: 512,
        }
    }
}

impl Settings for FingerSettings {
    fn problems(&self) -> Vec<Problem> {
        if (16..=4096).contains(&self.longest) {
            return vec![];
        }
        vec![Problem::new("longest", "must be 16 to 4096 bytes")]
    }
}

/// One connection.
pub struct Finger {
    settings: FingerSettings,
    /// What goes to the server: our own words for what was asked, so that it gets what was decided about.
    query: Option<String>,
}

impl Codec for Finger {
    type Settings = FingerSettings;

    fn manifest() -> Manifest {
        Manifest {
            kind: "finger",
            protocol: "Finger (RFC 1288)",
            version: env!("CARGO_PKG_VERSION"),
            summary: "asks a finger server about a user",
            principals: &[("users", "whom the query is about")],
            settings_schema: include_str!("settings.schema.json"),
            wants: Wants {
                endpoints: &[Endpoint::Main],
                ..Wants::default()
            },
        }
    }

    fn new(settings: FingerSettings) -> Self {
        Finger {
            settings,
            query: None,
        }
    }

    fn on_input(&mut self, side: Side, data: &[u8]) -> Vec<Step> {
        // The server's answer is spliced, so this is the client. After its line it has nothing to say.
        if side == Side::Upstream || self.query.is_some() {
            return vec![Step::Skip(data.len() as u32)];
        }
        let Some(end) = data.iter().position(|b| *b == b'\n') else {
            if data.len() > self.settings.longest {
                return refuse("the query is too long");
            }
            return vec![Step::NeedMore];
        };
        let (long, user) = match parse(&data[..end]) {
            Ok(query) => query,
            Err(why) => return refuse(why),
        };
        let asked = match user {
            "" if !self.settings.list => return refuse("say about whom; there is no list here"),
            "" => vec![],
            user => vec![("users".to_owned(), user.to_owned())],
        };
        self.query = Some(format!("{}{user}\r\n", if long { "/W " } else { "" }));
        vec![Step::Skip(end as u32 + 1), Step::Authorize(asked)]
    }

    fn on_result(&mut self, result: StepResult) -> Vec<Step> {
        match result {
            StepResult::Authorized => vec![Step::Connect(Endpoint::Main)],
            StepResult::Connected => {
                let query = self.query.clone().unwrap_or_default();
                vec![
                    Step::ToUpstream(query.into_bytes()),
                    Step::Splice(Side::Upstream),
                ]
            }
            StepResult::Denied(why) | StepResult::ConnectFailed(why) => refuse(&why),
            _ => refuse("the host gave an answer to no question"),
        }
    }

    fn on_close(&mut self, side: Side) -> Vec<Step> {
        match (side, &self.query) {
            (Side::Client, None) => vec![Step::Close(Some("the client sent no query".into()))],
            _ => vec![],
        }
    }
}

/// `[/W ]user`: whether the long form is wanted, and about whom.
fn parse(line: &[u8]) -> Result<(bool, &str), &'static str> {
    let line = std::str::from_utf8(line).map_err(|_| "the query is no text")?;
    let line = line.trim_ascii();
    let (long, user) = match line.strip_prefix("/W") {
        Some(rest) => (true, rest.trim_ascii_start()),
        None => (false, line),
    };
    if user.contains('@') {
        // RFC 1288, 3.2.1: the server would ask a third one, about which no role says anything.
        return Err("queries are not forwarded to other hosts");
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !user.chars().all(plain) {
        return Err("this is no user name");
    }
    Ok((long, user))
}

/// Says why in the protocol's own way (finger has only text), then closes; the reason goes to the audit log too.
fn refuse(why: &str) -> Vec<Step> {
    vec![
        Step::ToClient(format!("{why}\r\n").into_bytes()),
        Step::Close(Some(why.into())),
    ]
}

export_codec!(Finger);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_asked_about_and_sent_in_our_words() {
        let mut f = Finger::new(FingerSettings::default());
        assert_eq!(f.on_input(Side::Client, b"/W  al"), [Step::NeedMore]);
        let asked = vec![("users".to_owned(), "alice".to_owned())];
        assert_eq!(
            f.on_input(Side::Client, b"/W  alice \r\n"),
            [Step::Skip(12), Step::Authorize(asked)]
        );
        let steps = f.on_result(StepResult::Connected);
        assert_eq!(steps[0], Step::ToUpstream(b"/W alice\r\n".to_vec()));
    }

    #[test]
    fn what_no_role_could_decide_about_is_refused() {
        for line in ["a@b", "a b", "\u{e4}", ""] {
            let mut f = Finger::new(FingerSettings::default());
            let steps = f.on_input(Side::Client, format!("{line}\n").as_bytes());
            assert!(matches!(steps[..], [_, Step::Close(Some(_))]), "{line:?}");
        }
    }
}
