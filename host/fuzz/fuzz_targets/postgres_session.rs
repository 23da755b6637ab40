//! A conversation through the PostgreSQL plugin: whatever both sides say, it neither panics nor asks for more than the host
//! carries out, and what it lets pass is what came.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern_sdk::codec::{Codec, Step, StepResult};
use postern_sdk::{Side, settings};
use postgres::Postgres;

/// Answers that let it go on.
fn answer(question: &Step) -> StepResult {
    match question {
        Step::Authorize(_) => StepResult::Authorized,
        Step::Connect(_) => StepResult::Connected,
        Step::StartTls(_) => StepResult::TlsStarted,
        Step::Answer(_) => StepResult::Answered(b"SCRAM-SHA-256\0n,,n=,r=x".to_vec()),
        Step::SendSecret(_) => StepResult::SecretSent,
        Step::OfferCancel((_, room)) => StepResult::CancelKey(vec![7; *room as usize]),
        Step::FindCancel(key) => StepResult::CancelFound(key.clone()),
        other => panic!("{other:?} ends no list"),
    }
}

fn carry_out(plugin: &mut Postgres, kept: &mut Vec<u8>, mut steps: Vec<Step>) -> bool {
    loop {
        assert!(steps.len() <= 4096);
        let Some(last) = steps.pop() else {
            return true;
        };
        let mut question = None;
        for step in steps.into_iter().chain([last]) {
            assert!(question.is_none(), "a step follows a question");
            match step {
                Step::Pass(n) | Step::Skip(n) => drop(kept.drain(..n as usize)),
                Step::NeedMore | Step::ToUpstream(_) | Step::ToClient(_) | Step::Event(_) => {}
                Step::Close(_) => return false,
                step => question = Some(step),
            }
        }
        match question {
            Some(question) => steps = plugin.on_result(answer(&question)),
            None => return true,
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let settings = settings::check(r#"{"upstream_tls": "allow-plain"}"#).expect("settings");
    let mut plugin = Postgres::new(settings);
    let mut kept = [Vec::new(), Vec::new()];
    let mut rest = data;
    // A byte for who speaks and how much, and what is said.
    while let Some((head, after)) = rest.split_first() {
        let (said, after) = after.split_at(usize::from(head >> 1).min(after.len()));
        rest = after;
        let (side, kept) = match head & 1 {
            0 => (Side::Client, &mut kept[0]),
            _ => (Side::Upstream, &mut kept[1]),
        };
        kept.extend_from_slice(said);
        if !kept.is_empty() {
            let steps = plugin.on_input(side, kept);
            if !carry_out(&mut plugin, kept, steps) {
                return;
            }
        }
    }
    for (side, kept) in [Side::Client, Side::Upstream].into_iter().zip(&mut kept) {
        let steps = plugin.on_close(side);
        if !carry_out(&mut plugin, kept, steps) {
            return;
        }
    }
});
