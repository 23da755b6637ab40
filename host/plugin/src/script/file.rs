//! The script file: TOML in, typed events out. `docs/plugins.md` has the reference for authors.

use super::error::{Place, ScriptError};
use super::{Script, show};
use crate::types::{Side, SshEvent, SshSessionInfo, StepResult, World};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;

/// One session, checked.
#[derive(Debug, Clone)]
pub(super) struct Session {
    pub name: Option<String>,
    pub settings: Option<Map<String, Value>>,
    pub who: Option<Who>,
    pub events: Vec<Event>,
    pub upstream_gets: Option<Vec<u8>>,
    pub client_gets: Option<Vec<u8>>,
}

#[derive(Debug, Clone)]
pub(super) struct Event {
    pub what: What,
    pub expect: Option<Vec<String>>,
}

/// What happens.
#[derive(Debug, Clone)]
pub(super) enum What {
    Open,
    Bytes(Side, Vec<u8>),
    Close(Side),
    /// The host's answer to the question of this name.
    Result(&'static str, StepResult),
    Ssh(u32, SshEvent),
}

const CODEC_EVENTS: &str = "open, client, client_hex, upstream, upstream_hex, close, authorize, connect, start_tls, answer, send_secret, offer_cancel, find_cancel";
const SSH_EVENTS: &str = "open, shell, exec, pty, env, subsystem, forward";

/// The keys that are events in this world.
pub(super) fn events_of(world: World) -> &'static str {
    match world {
        World::Codec => CODEC_EVENTS,
        World::Ssh => SSH_EVENTS,
    }
}

impl What {
    /// The world in which it happens; `None`: in all.
    pub(super) fn world(&self) -> Option<World> {
        match self {
            What::Open => None,
            What::Ssh(..) => Some(World::Ssh),
            What::Bytes(..) | What::Close(_) | What::Result(..) => Some(World::Codec),
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Open => write!(f, "open"),
            What::Bytes(s, b) => write!(f, "{} {}", show::side(*s), show::bytes(b)),
            What::Close(s) => write!(f, "close: {}", show::side(*s)),
            What::Result(_, r) => f.write_str(&show::result(r)),
            What::Ssh(channel, event) => {
                match event {
                    SshEvent::Shell => write!(f, "shell"),
                    SshEvent::Exec { command } => write!(f, "exec {}", show::text(command)),
                    SshEvent::Pty { term, cols, rows } => write!(f, "pty {term} {cols}x{rows}"),
                    SshEvent::Env { name, value } => write!(f, "env {name}={}", show::text(value)),
                    SshEvent::Subsystem { name } => write!(f, "subsystem {}", show::text(name)),
                    SshEvent::Forward { host, port } => write!(f, "forward {host}:{port}"),
                }?;
                if *channel == 0 {
                    Ok(())
                } else {
                    write!(f, " on channel {channel}")
                }
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawScript {
    settings: Option<Map<String, Value>>,
    #[serde(default, rename = "session")]
    sessions: Vec<RawSession>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSession {
    name: Option<String>,
    settings: Option<Map<String, Value>>,
    who: Option<Who>,
    #[serde(default)]
    events: Vec<RawEvent>,
    upstream_gets: Option<String>,
    client_gets: Option<String>,
}

/// Whose SSH session it is; what is left out is an example.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Who {
    user: String,
    roles: Vec<String>,
    login: String,
    resource: String,
    labels: BTreeMap<String, String>,
    source: String,
}

impl Default for Who {
    fn default() -> Self {
        Who {
            user: "alice".into(),
            roles: vec!["access".into()],
            login: "deploy".into(),
            resource: "web-1".into(),
            labels: BTreeMap::new(),
            source: "192.0.2.1:50000".into(),
        }
    }
}

impl Who {
    pub(super) fn session(&self, id: &str) -> SshSessionInfo {
        SshSessionInfo {
            session: id.into(),
            user: self.user.clone(),
            roles: self.roles.clone(),
            login: self.login.clone(),
            resource: self.resource.clone(),
            labels: self.labels.clone().into_iter().collect(),
            source: self.source.clone(),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    Allow,
    Deny,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Outcome {
    Ok,
    Fail,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Closer {
    Client,
    Upstream,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawPty {
    term: String,
    cols: u32,
    rows: u32,
}

impl Default for RawPty {
    fn default() -> Self {
        RawPty {
            term: "xterm-256color".into(),
            cols: 80,
            rows: 24,
        }
    }
}

/// Every key that an event may have: exactly one that happens, and what goes with it.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawEvent {
    open: Option<bool>,
    client: Option<String>,
    client_hex: Option<String>,
    upstream: Option<String>,
    upstream_hex: Option<String>,
    close: Option<Closer>,
    authorize: Option<Verdict>,
    connect: Option<Outcome>,
    start_tls: Option<Outcome>,
    answer: Option<Outcome>,
    send_secret: Option<Outcome>,
    offer_cancel: Option<Outcome>,
    find_cancel: Option<Outcome>,
    shell: Option<bool>,
    exec: Option<String>,
    pty: Option<RawPty>,
    env: Option<String>,
    subsystem: Option<String>,
    forward: Option<String>,
    // What goes with them.
    reason: Option<String>,
    data: Option<String>,
    data_hex: Option<String>,
    channel: Option<u32>,
    expect: Option<Vec<String>>,
}

pub(super) fn parse(text: &str) -> Result<Script, ScriptError> {
    let raw: RawScript = toml::from_str(text).map_err(|e| ScriptError::NotAScript(not_toml(&e)))?;
    if raw.sessions.is_empty() {
        return Err(ScriptError::NotAScript(
            "there is no [[session]] in it, so nothing would be played".into(),
        ));
    }
    let mut sessions = Vec::new();
    for (i, session) in raw.sessions.into_iter().enumerate() {
        let name = session.name.clone().unwrap_or_else(|| (i + 1).to_string());
        let mut events = Vec::new();
        for (n, event) in session.events.into_iter().enumerate() {
            let place: Place = (String::new(), n + 1);
            events.push(event.checked().map_err(|(shown, why)| {
                let place = shown.map_or(place, |s| (s, n + 1));
                ScriptError::at(&name, Some(place), why)
            })?);
        }
        sessions.push(Session {
            name: session.name,
            settings: session.settings,
            who: session.who,
            events,
            upstream_gets: session.upstream_gets.map(String::into_bytes),
            client_gets: session.client_gets.map(String::into_bytes),
        });
    }
    Ok(Script {
        settings: raw.settings,
        sessions,
    })
}

/// What the parser says, and for an unknown word the one that was meant, perhaps.
fn not_toml(e: &toml::de::Error) -> String {
    let said = e.to_string().trim_end().to_owned();
    // "unknown field `cleint`, expected one of `open`, `client`, …"
    let words: Vec<&str> = e.message().split('`').skip(1).step_by(2).collect();
    let Some((unknown, known)) = words
        .split_first()
        .filter(|_| e.message().starts_with("unknown"))
    else {
        return said;
    };
    let near = |word: &&&str| strsim::jaro_winkler(unknown, word);
    match known.iter().max_by(|a, b| near(a).total_cmp(&near(b))) {
        Some(word) if near(&word) > 0.8 => format!("{said}; did you mean `{word}`?"),
        _ => said,
    }
}

/// The event's key where one is known, and what is wrong.
type Wrong = (Option<String>, String);

impl RawEvent {
    fn checked(self) -> Result<Event, Wrong> {
        let mut keys: Vec<(&'static str, What)> = Vec::new();
        let named = |key: &str, why: String| -> Wrong { (Some(key.into()), why) };
        let hex = |key: &'static str, text: &str| {
            let digits: String = text.chars().filter(|c| !c.is_whitespace()).collect();
            hex::decode(digits)
                .map_err(|e| named(key, format!("{key} is not hexadecimal digits: {e}")))
        };
        if let Some(data) = self.client {
            keys.push(("client", What::Bytes(Side::Client, data.into())));
        }
        if let Some(data) = self.client_hex {
            let data = hex("client_hex", &data)?;
            keys.push(("client_hex", What::Bytes(Side::Client, data)));
        }
        if let Some(data) = self.upstream {
            keys.push(("upstream", What::Bytes(Side::Upstream, data.into())));
        }
        if let Some(data) = self.upstream_hex {
            let data = hex("upstream_hex", &data)?;
            keys.push(("upstream_hex", What::Bytes(Side::Upstream, data)));
        }
        if let Some(side) = self.close {
            let side = match side {
                Closer::Client => Side::Client,
                Closer::Upstream => Side::Upstream,
            };
            keys.push(("close", What::Close(side)));
        }
        let reason = |instead: &str| self.reason.clone().unwrap_or_else(|| instead.into());
        if let Some(verdict) = &self.authorize {
            let result = match verdict {
                Verdict::Allow => StepResult::Authorized,
                Verdict::Deny => StepResult::Denied(reason("no role of alice allows it")),
            };
            keys.push(("authorize", What::Result("authorize", result)));
        }
        if let Some(outcome) = self.connect {
            let result = match outcome {
                Outcome::Ok => StepResult::Connected,
                Outcome::Fail => StepResult::ConnectFailed(reason("connection refused")),
            };
            keys.push(("connect", What::Result("connect", result)));
        }
        if let Some(outcome) = self.start_tls {
            let result = match outcome {
                Outcome::Ok => StepResult::TlsStarted,
                Outcome::Fail => StepResult::TlsFailed(reason("the certificate is not trusted")),
            };
            keys.push(("start_tls", What::Result("start_tls", result)));
        }
        let data = |key: &'static str| match (&self.data, &self.data_hex) {
            (Some(text), None) => Ok(text.clone().into_bytes()),
            (None, Some(digits)) => hex("data_hex", digits),
            (None, None) => Ok(vec![]),
            (Some(_), Some(_)) => Err(named(key, "data and data_hex are the same thing".into())),
        };
        if let Some(outcome) = self.answer {
            let data = data("answer")?;
            let result = match outcome {
                Outcome::Ok => StepResult::Answered(data),
                Outcome::Fail => StepResult::AnswerFailed(reason("no secret for it")),
            };
            keys.push(("answer", What::Result("answer", result)));
        }
        if let Some(outcome) = self.send_secret {
            let result = match outcome {
                Outcome::Ok => StepResult::SecretSent,
                Outcome::Fail => StepResult::SecretFailed(reason("no secret for it")),
            };
            keys.push(("send_secret", What::Result("send_secret", result)));
        }
        match self.offer_cancel {
            Some(Outcome::Ok) => {
                let result = StepResult::CancelKey(data("offer_cancel")?);
                keys.push(("offer_cancel", What::Result("offer_cancel", result)));
            }
            Some(Outcome::Fail) => {
                let why = "the host always has a key to give: write offer_cancel = \"ok\"";
                return Err(named("offer_cancel", why.into()));
            }
            None => {}
        }
        if let Some(outcome) = self.find_cancel {
            let result = match outcome {
                Outcome::Ok => StepResult::CancelFound(data("find_cancel")?),
                Outcome::Fail => StepResult::CancelUnknown,
            };
            keys.push(("find_cancel", What::Result("find_cancel", result)));
        }
        let channel = self.channel.unwrap_or(0);
        let mut ssh = |key, event| keys.push((key, What::Ssh(channel, event)));
        if let Some(command) = self.exec {
            ssh("exec", SshEvent::Exec { command });
        }
        if let Some(RawPty { term, cols, rows }) = self.pty {
            ssh("pty", SshEvent::Pty { term, cols, rows });
        }
        if let Some(env) = self.env {
            let Some((name, value)) = env.split_once('=') else {
                return Err(named("env", format!("{env:?} is not NAME=value")));
            };
            let (name, value) = (name.into(), value.into());
            ssh("env", SshEvent::Env { name, value });
        }
        if let Some(name) = self.subsystem {
            ssh("subsystem", SshEvent::Subsystem { name });
        }
        if let Some(target) = self.forward {
            let parts = target.rsplit_once(':');
            let Some((host, Ok(port))) = parts.map(|(h, p)| (h, p.parse())) else {
                return Err(named("forward", format!("{target:?} is not host:port")));
            };
            let host = host.into();
            ssh("forward", SshEvent::Forward { host, port });
        }
        for (key, value, what) in [
            ("open", self.open, What::Open),
            ("shell", self.shell, What::Ssh(channel, SshEvent::Shell)),
        ] {
            match value {
                Some(true) => keys.push((key, what)),
                Some(false) => {
                    return Err(named(key, format!("write {key} = true, or leave it out")));
                }
                None => {}
            }
        }
        let what = match keys.len() {
            1 => keys.remove(0).1,
            0 => {
                let why = format!(
                    "nothing happens in it; an event has one of: {CODEC_EVENTS}; with plugins of world ssh: {SSH_EVENTS}"
                );
                return Err((None, why));
            }
            _ => {
                let all: Vec<_> = keys.iter().map(|(k, _)| *k).collect();
                let why = format!(
                    "{} happen at once; make an event of each, in the order that is meant",
                    all.join(" and ")
                );
                return Err((None, why));
            }
        };
        let beside =
            |key: &str, of: &str| (None, format!("{key} says nothing here, it belongs to {of}"));
        let fails = matches!(
            what,
            What::Result(
                _,
                StepResult::Denied(_)
                    | StepResult::ConnectFailed(_)
                    | StepResult::TlsFailed(_)
                    | StepResult::AnswerFailed(_)
                    | StepResult::SecretFailed(_)
            )
        );
        if self.reason.is_some() && !fails {
            return Err(beside("reason", "an answer that is deny or fail"));
        }
        let answered = matches!(
            what,
            What::Result(
                _,
                StepResult::Answered(_) | StepResult::CancelKey(_) | StepResult::CancelFound(_)
            )
        );
        if (self.data.is_some() || self.data_hex.is_some()) && !answered {
            let of = "an answer = \"ok\", offer_cancel = \"ok\" or find_cancel = \"ok\"";
            return Err(beside("data", of));
        }
        if self.channel.is_some() && !matches!(what, What::Ssh(..)) {
            return Err(beside("channel", "the events of an SSH session"));
        }
        Ok(Event {
            what,
            expect: self.expect,
        })
    }
}

#[cfg(test)]
mod tests;
