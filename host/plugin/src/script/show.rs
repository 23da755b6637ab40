//! Steps and bytes as a script writes them, and their comparison with what was expected.

use crate::types::{Endpoint, Side, Step, StepResult, TemplatePart, Verdict};
use std::fmt::Write;

/// Bytes in quotes: printable ASCII as it is, the rest as `\r`, `\n`, `\t`, `\xNN`.
pub(super) fn bytes(b: &[u8]) -> String {
    format!("\"{}\"", b.escape_ascii().to_string().replace("\\'", "'"))
}

/// Text in quotes, without control characters.
pub(super) fn text(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

pub(super) fn side(s: Side) -> &'static str {
    match s {
        Side::Client => "client",
        Side::Upstream => "upstream",
    }
}

fn endpoint(e: Endpoint) -> &'static str {
    match e {
        Endpoint::Main => "main",
        Endpoint::Cancel => "cancel",
        Endpoint::Admin => "admin",
    }
}

/// A step's name in `wit/codec.wit`, for questions.
pub(super) fn question(s: &Step) -> &'static str {
    match s {
        Step::Authorize(_) => "authorize",
        Step::Connect(_) => "connect",
        Step::StartTls(_) => "start_tls",
        Step::Answer(_) => "answer",
        Step::SendSecret(_) => "send_secret",
        Step::OfferCancel(..) => "offer_cancel",
        Step::FindCancel(_) => "find_cancel",
        _ => "no question",
    }
}

/// One step on one line: its name in `wit/codec.wit`, and what it carries.
pub(super) fn step(s: &Step) -> String {
    match s {
        Step::NeedMore => "need-more".into(),
        Step::Pass(n) => format!("pass {n}"),
        Step::Skip(n) => format!("skip {n}"),
        Step::ToUpstream(b) => format!("to-upstream {}", bytes(b)),
        Step::ToClient(b) => format!("to-client {}", bytes(b)),
        Step::Authorize(asked) => {
            let asked: Vec<_> = asked
                .iter()
                .map(|(k, v)| format!("{k}={}", text(v)))
                .collect();
            format!("authorize {}", asked.join(" ")).trim_end().into()
        }
        Step::Connect(e) => format!("connect {}", endpoint(*e)),
        Step::StartTls(s) => format!("start-tls {}", side(*s)),
        Step::Answer(c) => format!(
            "answer {} account={} {}",
            c.method,
            text(&c.account),
            bytes(&c.data)
        ),
        Step::SendSecret(m) => m.parts.iter().fold(
            format!("send-secret account={}", text(&m.account)),
            |mut out, p| {
                let _ = match p {
                    TemplatePart::Bytes(b) => write!(out, " {}", bytes(b)),
                    TemplatePart::Secret => write!(out, " secret"),
                    TemplatePart::LengthU32Be(n) => write!(out, " length+{n}"),
                };
                out
            },
        ),
        Step::OfferCancel(key, room) => format!("offer-cancel {} {room}", bytes(key)),
        Step::FindCancel(key) => format!("find-cancel {}", bytes(key)),
        Step::Event(e) => e
            .fields
            .iter()
            .fold(format!("event {}", e.name), |out, (k, v)| {
                format!("{out} {k}={v}")
            }),
        Step::Splice(s) => format!("splice {}", side(*s)),
        Step::Close(None) => "close".into(),
        Step::Close(Some(why)) => format!("close {}", text(why)),
    }
}

pub(super) fn verdict(v: &Verdict) -> String {
    match v {
        Verdict::Allow => "allow".into(),
        Verdict::Deny(why) => format!("deny {}", text(why)),
        Verdict::Ignore => "ignore".into(),
    }
}

/// An answer of the host, as the event of a script.
pub(super) fn result(r: &StepResult) -> String {
    match r {
        StepResult::Authorized => "authorize: allow".into(),
        StepResult::Denied(why) => format!("authorize: deny {}", text(why)),
        StepResult::Connected => "connect: ok".into(),
        StepResult::ConnectFailed(why) => format!("connect: fail {}", text(why)),
        StepResult::TlsStarted => "start_tls: ok".into(),
        StepResult::TlsFailed(why) => format!("start_tls: fail {}", text(why)),
        StepResult::Answered(b) => format!("answer: ok {}", bytes(b)),
        StepResult::AnswerFailed(why) => format!("answer: fail {}", text(why)),
        StepResult::SecretSent => "send_secret: ok".into(),
        StepResult::SecretFailed(why) => format!("send_secret: fail {}", text(why)),
        StepResult::CancelKey(key) => format!("offer_cancel: ok {}", bytes(key)),
        StepResult::CancelFound(key) => format!("find_cancel: ok {}", bytes(key)),
        StepResult::CancelUnknown => "find_cancel: fail".into(),
    }
}

/// Is it the same? `need-more` counts as nothing; an expectation that ends in `...` is the beginning of a step. The error is
/// the difference, a line each.
pub(super) fn compare(expected: &[String], answered: &[String]) -> Result<(), String> {
    let says = |s: &&String| s.trim() != "need-more";
    let expected: Vec<&String> = expected.iter().filter(says).collect();
    let answered: Vec<&String> = answered.iter().filter(says).collect();
    let same = |e: &String, a: &String| match e.trim().strip_suffix("...") {
        Some(beginning) => a.starts_with(beginning),
        None => e.trim() == a,
    };
    let pairs = || expected.iter().zip(&answered);
    let before = pairs().take_while(|(e, a)| same(e, a)).count();
    if before == expected.len() && before == answered.len() {
        return Ok(());
    }
    let rest = expected.len().min(answered.len()) - before;
    let backwards = expected.iter().rev().zip(answered.iter().rev());
    let after = backwards.take(rest).take_while(|(e, a)| same(e, a)).count();
    let mut lines: Vec<String> = Vec::new();
    let (expected_end, answered_end) = (expected.len() - after, answered.len() - after);
    lines.extend(answered[..before].iter().map(|l| format!("    {l}")));
    lines.extend(
        expected[before..expected_end]
            .iter()
            .map(|l| format!("  - {l}")),
    );
    lines.extend(
        answered[before..answered_end]
            .iter()
            .map(|l| format!("  + {l}")),
    );
    lines.extend(answered[answered_end..].iter().map(|l| format!("    {l}")));
    Err(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::PluginEvent;

    #[test]
    fn steps_are_written_as_scripts_expect_them() {
        let s = |v: &str| v.to_owned();
        let cases = [
            (Step::Pass(3), "pass 3"),
            (
                Step::ToClient(b"it's \"no\"\r\n\x00\xff".to_vec()),
                r#"to-client "it's \"no\"\r\n\x00\xff""#,
            ),
            (Step::Authorize(vec![]), "authorize"),
            (
                Step::Authorize(vec![(s("users"), s("al")), (s("dbs"), s("ä\n"))]),
                r#"authorize users="al" dbs="ä\n""#,
            ),
            (
                Step::Event(PluginEvent {
                    name: s("query"),
                    fields: vec![(s("rows"), s("3"))],
                }),
                "event query rows=3",
            ),
            (Step::Close(Some(s("no"))), r#"close "no""#),
            (Step::Splice(Side::Upstream), "splice upstream"),
        ];
        for (is, shown) in cases {
            assert_eq!(step(&is), shown);
        }
    }

    #[test]
    fn differences_are_told_with_what_is_around_them() {
        let l = |v: &[&str]| v.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(compare(&l(&["need-more"]), &[]).is_ok());
        assert!(compare(&l(&["close ..."]), &l(&["close \"why\""])).is_ok());
        assert!(compare(&[], &l(&["pass 1"])).is_err());
        assert_eq!(
            compare(
                &l(&["skip 1", "pass 2", "connect main"]),
                &l(&["skip 1", "pass 3", "pass 4", "connect main"])
            ),
            Err("    skip 1\n  - pass 2\n  + pass 3\n  + pass 4\n    connect main".into())
        );
    }
}
