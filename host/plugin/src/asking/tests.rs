use super::*;
use Endpoint::{Admin, Cancel, Main};

fn key() -> Vec<u8> {
    vec![1; 8]
}

fn message(parts: Vec<TemplatePart>) -> Step {
    Step::SendSecret(SecretMessage {
        account: "app".into(),
        parts,
    })
}

/// Answers every question well, as a host would that has no objections.
fn asked(steps: &[Step]) -> Result<Asking, &'static str> {
    asked_of(Asking::default(), steps)
}

fn asked_of(mut asking: Asking, steps: &[Step]) -> Result<Asking, &'static str> {
    for step in steps {
        asking.may_ask(step)?;
        let result = match step {
            Step::Authorize(_) => StepResult::Authorized,
            Step::Connect(_) => StepResult::Connected,
            Step::StartTls(_) => StepResult::TlsStarted,
            Step::OfferCancel(..) => StepResult::CancelKey(key()),
            Step::FindCancel(_) => StepResult::CancelFound(key()),
            _ => StepResult::SecretSent,
        };
        asking.answered(step, &result);
    }
    Ok(asking)
}

fn session(then: &[Step]) -> Vec<Step> {
    let mut steps = vec![Step::Authorize(vec![]), Step::Connect(Main)];
    steps.extend_from_slice(then);
    steps
}

#[test]
fn what_a_session_and_a_cancel_need_may_be_asked() {
    let tls = Step::StartTls(Side::Upstream);
    let offer = Step::OfferCancel(key(), 8);
    assert!(asked(&session(&[tls.clone(), message(vec![]), offer])).is_ok());
    assert!(asked(&[Step::FindCancel(key()), Step::Connect(Cancel), tls]).is_ok());
}

#[test]
fn what_breaks_a_rule_may_not() {
    let tls = Step::StartTls(Side::Upstream);
    let offer = Step::OfferCancel(key(), 8);
    let found = Step::FindCancel(key());
    let cases: Vec<(Vec<Step>, &str)> = vec![
        (vec![Step::Connect(Main)], "connect without an authorize"),
        (vec![Step::Connect(Cancel)], "without a find-cancel"),
        (session(&[Step::Connect(Main)]), "connected already"),
        (session(&[Step::Connect(Admin)]), "for tasks"),
        (session(&[Step::Connect(Cancel)]), "without a find-cancel"),
        (vec![tls.clone()], "start-tls before connect"),
        (session(&[tls.clone(), tls]), "speaks TLS already"),
        (vec![message(vec![])], "send-secret before connect"),
        (
            session(&[message(vec![TemplatePart::Secret; 17])]),
            "16 parts",
        ),
        (
            session(&[message(vec![TemplatePart::Bytes(vec![0; 4097])])]),
            "4 KiB",
        ),
        (vec![offer.clone()], "without a connection"),
        (
            vec![Step::Authorize(vec![]), Step::Connect(Admin)],
            "for tasks",
        ),
        (session(&[offer.clone(), offer]), "twice"),
        (session(&[Step::OfferCancel(vec![], 8)]), "1 to 256"),
        (session(&[Step::OfferCancel(vec![0; 257], 8)]), "1 to 256"),
        (session(&[Step::OfferCancel(key(), 7)]), "less than 8"),
        (session(std::slice::from_ref(&found)), "of a session"),
        (vec![Step::FindCancel(vec![0; 257])], "256 bytes"),
        (vec![found.clone(), found.clone()], "only connect(cancel)"),
        (
            vec![found.clone(), Step::Authorize(vec![])],
            "only connect(cancel)",
        ),
        (
            vec![found.clone(), Step::Connect(Main)],
            "only connect(cancel)",
        ),
        (vec![found, Step::Connect(Admin)], "for tasks"),
    ];
    for (steps, words) in cases {
        let why = asked(&steps).unwrap_err();
        assert!(why.contains(words), "{steps:?}: {why}");
    }
}

#[test]
fn one_key_is_tried_and_an_unknown_one_opens_nothing() {
    let mut asking = Asking::default();
    let found = Step::FindCancel(key());
    asking.may_ask(&found).unwrap();
    asking.answered(&found, &StepResult::CancelUnknown);
    assert!(asking.may_ask(&found).unwrap_err().contains("twice"));
    let why = asking.may_ask(&Step::Connect(Cancel)).unwrap_err();
    assert!(why.contains("without a find-cancel that found"), "{why}");
}

#[test]
fn a_task_is_the_administrators_and_nothing_else() {
    let tls = Step::StartTls(Side::Upstream);
    let login = [Step::Connect(Admin), tls, message(vec![])];
    assert!(asked_of(Asking::of_task(), &login).is_ok());
    for (steps, words) in [
        (vec![Step::Connect(Main)], "another endpoint"),
        (vec![Step::Connect(Cancel)], "another endpoint"),
        (vec![Step::Authorize(vec![])], "in a task"),
        (vec![Step::FindCancel(key())], "in a task"),
        (
            vec![Step::Connect(Admin), Step::OfferCancel(key(), 8)],
            "in a task",
        ),
        (
            vec![Step::Connect(Admin), Step::Connect(Admin)],
            "connected already",
        ),
    ] {
        let why = asked_of(Asking::of_task(), &steps).unwrap_err();
        assert!(why.contains(words), "{steps:?}: {why}");
    }
}

#[test]
fn nothing_passes_to_or_from_the_administrators_connection() {
    let admin = asked_of(Asking::of_task(), &[Step::Connect(Admin)]).unwrap();
    assert!(admin.may_pass(Side::Client).is_err() && admin.may_pass(Side::Upstream).is_err());
    assert!(admin.may_splice().is_err());
    let main = asked(&session(&[])).unwrap();
    assert!(main.may_pass(Side::Client).is_ok() && main.may_splice().is_ok());
}

#[test]
fn a_connection_whose_tls_failed_is_gone() {
    let mut asking = asked(&session(&[])).unwrap();
    let tls = Step::StartTls(Side::Upstream);
    asking.may_ask(&tls).unwrap();
    asking.answered(&tls, &StepResult::TlsFailed("no".into()));
    assert_eq!(asking.endpoint(), None);
    assert!(asking.may_pass(Side::Client).is_err());
}

#[test]
fn where_tls_is_needed_nothing_is_used_before() {
    let mut asking = asked(&session(&[])).unwrap();
    asking.needs_tls(true);
    assert!(asking.may_pass(Side::Upstream).is_err() && asking.may_splice().is_err());
    let offer = Step::OfferCancel(key(), 8);
    assert!(asking.may_ask(&offer).is_err() && asking.may_ask(&message(vec![])).is_err());
    let tls = Step::StartTls(Side::Upstream);
    asking.may_ask(&tls).unwrap();
    asking.answered(&tls, &StepResult::TlsStarted);
    assert!(asking.may_pass(Side::Upstream).is_ok() && asking.may_ask(&offer).is_ok());
}
