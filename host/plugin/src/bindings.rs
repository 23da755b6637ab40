//! Generated from `wit/`, and the conversions to our own types. Nothing here leaves the crate.

use crate::instance::Ctx;
use crate::types::{self, Description, World};

/// `manifest`, which every plugin exports, and the imports.
pub(crate) mod base {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "base",
        exports: { default: async },
    });
}

pub(crate) mod codec {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "codec",
        exports: { default: async },
        with: {
            "postern:plugin/types": super::base::postern::plugin::types,
            "postern:plugin/log": super::base::postern::plugin::log,
            "postern:plugin/clock": super::base::postern::plugin::clock,
        },
    });
}

/// Beside `codec`, of one and the same component.
pub(crate) mod accounts {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "accounts",
        exports: { default: async },
    });
}

pub(crate) mod ssh {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "ssh",
        exports: { default: async },
        with: {
            "postern:plugin/types": super::base::postern::plugin::types,
            "postern:plugin/log": super::base::postern::plugin::log,
            "postern:plugin/clock": super::base::postern::plugin::clock,
        },
    });
}

use accounts::exports::postern::plugin::accounts_service as wit_accounts;
use base::exports::postern::plugin::manifest;
use base::postern::plugin::{clock, log};
use codec::exports::postern::plugin::codec_service as wit_codec;
use ssh::exports::postern::plugin::ssh_service as wit_ssh;

pub(crate) type WitSide = base::postern::plugin::types::Side;
type WitEndpoint = base::postern::plugin::types::Endpoint;

impl base::postern::plugin::types::Host for Ctx {}

impl log::Host for Ctx {
    fn write(&mut self, level: log::Level, message: String) {
        let level = match level {
            log::Level::Trace => tracing::Level::TRACE,
            log::Level::Debug => tracing::Level::DEBUG,
            log::Level::Info => tracing::Level::INFO,
            log::Level::Warn => tracing::Level::WARN,
            log::Level::Error => tracing::Level::ERROR,
        };
        self.log.line(level, &message);
    }
}

impl clock::Host for Ctx {
    fn now(&mut self) -> u64 {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
    }

    fn monotonic(&mut self) -> u64 {
        self.meter.nanos()
    }
}

pub(crate) fn description(world: World, d: manifest::Description) -> Description {
    Description {
        world,
        kind: d.kind,
        protocol: d.protocol,
        version: d.version,
        summary: d.summary,
        principals: d
            .principals
            .into_iter()
            .map(|p| types::Principal {
                name: p.name,
                help: p.help,
            })
            .collect(),
        settings_schema: d.settings_schema,
        wants: types::Wants {
            endpoints: d.wants.endpoints.into_iter().map(endpoint).collect(),
            start_tls: d.wants.start_tls,
            challenges: d.wants.challenges,
            send_secret: d.wants.send_secret,
            body_filters: d.wants.body_filters,
        },
    }
}

fn endpoint(e: WitEndpoint) -> types::Endpoint {
    match e {
        WitEndpoint::Main => types::Endpoint::Main,
        WitEndpoint::Cancel => types::Endpoint::Cancel,
        WitEndpoint::Admin => types::Endpoint::Admin,
    }
}

fn side(s: WitSide) -> types::Side {
    match s {
        WitSide::Client => types::Side::Client,
        WitSide::Upstream => types::Side::Upstream,
    }
}

pub(crate) fn wit_side(s: types::Side) -> WitSide {
    match s {
        types::Side::Client => WitSide::Client,
        types::Side::Upstream => WitSide::Upstream,
    }
}

pub(crate) fn step(s: wit_codec::Step) -> types::Step {
    use types::Step as S;
    use wit_codec::Step as W;
    match s {
        W::NeedMore => S::NeedMore,
        W::Pass(n) => S::Pass(n),
        W::Skip(n) => S::Skip(n),
        W::ToUpstream(b) => S::ToUpstream(b),
        W::ToClient(b) => S::ToClient(b),
        W::Authorize(p) => S::Authorize(p),
        W::Connect(e) => S::Connect(endpoint(e)),
        W::StartTls(s) => S::StartTls(side(s)),
        W::Answer(c) => S::Answer(types::Challenge {
            method: c.method,
            account: c.account,
            data: c.data,
        }),
        W::SendSecret(m) => S::SendSecret(types::SecretMessage {
            account: m.account,
            parts: m.parts.into_iter().map(part).collect(),
        }),
        W::OfferCancel((key, room)) => S::OfferCancel(key, room),
        W::FindCancel(key) => S::FindCancel(key),
        W::Event(e) => S::Event(types::PluginEvent {
            name: e.name,
            fields: e.fields,
        }),
        W::Splice(s) => S::Splice(side(s)),
        W::Close(reason) => S::Close(reason),
    }
}

fn part(p: wit_codec::TemplatePart) -> types::TemplatePart {
    match p {
        wit_codec::TemplatePart::Bytes(b) => types::TemplatePart::Bytes(b),
        wit_codec::TemplatePart::Secret => types::TemplatePart::Secret,
        wit_codec::TemplatePart::LengthU32Be(n) => types::TemplatePart::LengthU32Be(n),
    }
}

pub(crate) fn wit_result(r: types::StepResult) -> wit_codec::StepResult {
    use types::StepResult as S;
    use wit_codec::StepResult as W;
    match r {
        S::Authorized => W::Authorized,
        S::Denied(why) => W::Denied(why),
        S::Connected => W::Connected,
        S::ConnectFailed(why) => W::ConnectFailed(why),
        S::TlsStarted => W::TlsStarted,
        S::TlsFailed(why) => W::TlsFailed(why),
        S::Answered(b) => W::Answered(b),
        S::AnswerFailed(why) => W::AnswerFailed(why),
        S::SecretSent => W::SecretSent,
        S::SecretFailed(why) => W::SecretFailed(why),
        S::CancelKey(key) => W::CancelKey(key),
        S::CancelFound(key) => W::CancelFound(key),
        S::CancelUnknown => W::CancelUnknown,
    }
}

pub(crate) fn wit_administrator(a: &types::Administrator) -> wit_accounts::Administrator {
    wit_accounts::Administrator {
        user: a.user.clone(),
        database: a.database.clone(),
    }
}

pub(crate) fn wit_task(task: types::Task) -> wit_accounts::Task {
    use types::Task as S;
    use wit_accounts::Task as W;
    match task {
        S::Admit(account) => W::Admit(wit_accounts::Account {
            name: account.name,
            roles: account.roles,
            afterwards: match account.afterwards {
                types::Afterwards::Keep => wit_accounts::Afterwards::Keep,
                types::Afterwards::Drop => wit_accounts::Afterwards::Drop,
            },
        }),
        S::Dismiss { account, key } => W::Dismiss(wit_accounts::Departure { account, key }),
        S::Sweep => W::Sweep,
    }
}

pub(crate) fn wit_session(s: &types::SshSessionInfo) -> wit_ssh::SshSession {
    wit_ssh::SshSession {
        id: s.session.clone(),
        user: s.user.clone(),
        roles: s.roles.clone(),
        login: s.login.clone(),
        resource: s.resource.clone(),
        labels: s.labels.clone(),
        source: s.source.clone(),
    }
}

pub(crate) fn wit_event(e: types::SshEvent) -> wit_ssh::Event {
    use types::SshEvent as S;
    use wit_ssh::Event as W;
    match e {
        S::Shell => W::Shell,
        S::Exec { command } => W::Exec(command),
        S::Pty { term, cols, rows } => W::Pty(wit_ssh::Pty { term, cols, rows }),
        S::Env { name, value } => W::Env((name, value)),
        S::Subsystem { name } => W::Subsystem(name),
        S::Forward { host, port } => W::Forward(wit_ssh::Target { host, port }),
    }
}

pub(crate) fn verdict(v: wit_ssh::Verdict) -> types::Verdict {
    match v {
        wit_ssh::Verdict::Allow => types::Verdict::Allow,
        wit_ssh::Verdict::Deny(why) => types::Verdict::Deny(why),
        wit_ssh::Verdict::Ignore => types::Verdict::Ignore,
    }
}
