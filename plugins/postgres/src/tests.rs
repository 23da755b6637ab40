use super::*;
use crate::testing::{Host, auth, kind, query, startup as begin};
use postern_sdk::Side::{Client, Upstream};

fn app() -> Vec<u8> {
    begin(0, &["user", "app", "database", "orders"])
}

fn new(answer: fn(&Step) -> StepResult) -> Host {
    Host::new(PostgresSettings::default(), answer)
}

fn plain() -> PostgresSettings {
    PostgresSettings {
        upstream_tls: UpstreamTls::AllowPlain,
        ..PostgresSettings::default()
    }
}

#[test]
fn asks_before_it_dials() {
    let mut host = new(kind);
    host.send(Client, &[startup::ssl_request(), app()].concat());
    let asked = vec![
        ("db_users".into(), "app".into()),
        ("db_names".into(), "orders".into()),
    ];
    assert_eq!(
        host.questions,
        [Step::Authorize(asked), Step::Connect(Endpoint::Main)]
    );
    assert_eq!(host.got, [startup::ssl_request(), b"N".to_vec()]);
    let mut host = new(kind);
    host.send(
        Client,
        &begin(2, &["user", "app", "replication", "database"]),
    );
    let Step::Authorize(asked) = &host.questions[0] else {
        panic!("{:?}", host.questions);
    };
    assert_eq!(asked[2], ("db_options".into(), "replication".into()));
}

#[test]
fn what_the_startup_sets_is_told_before_it_dials() {
    let mut host = new(|q| match q {
        Step::Connect(_) => StepResult::ConnectFailed("refused".into()),
        q => kind(q),
    });
    let asked = [
        "user",
        "app",
        "options",
        "-c role=admin",
        "session_authorization",
        "x",
    ];
    host.send(Client, &begin(0, &asked));
    assert_eq!(
        host.told(),
        [r#"session.settings settings=["options=-c role=admin","session_authorization=x"]"#]
    );
    let mut host = new(kind);
    host.send(
        Client,
        &begin(0, &["user", "a", "database", "b", "replication", "0"]),
    );
    assert!(host.told().is_empty());
    let mut host = new(|_| StepResult::Denied("no".into()));
    host.send(Client, &begin(0, &asked));
    assert!(host.told().is_empty());
}

#[test]
fn a_denial_comes_before_anything_is_dialled() {
    let mut host = new(|_| StepResult::Denied("no role of bob allows db_user \"app\"".into()));
    host.send(Client, &app());
    let said = (
        "28000".to_owned(),
        "no role of bob allows db_user \"app\"".to_owned(),
    );
    assert_eq!((host.error(), host.questions.len()), (said, 1));
    assert!(host.closed.is_some() && host.got[0].is_empty());
}

#[test]
fn what_fails_on_the_way_is_told() {
    type Case = (fn(&Step) -> StepResult, &'static [u8], &'static str);
    let cases: [Case; 6] = [
        (
            |q| match q {
                Step::Connect(_) => StepResult::ConnectFailed("refused".into()),
                q => kind(q),
            },
            b"",
            "refused",
        ),
        (
            |q| match q {
                Step::StartTls(_) => StepResult::TlsFailed("expired".into()),
                q => kind(q),
            },
            b"S",
            "expired",
        ),
        (kind, b"N", "allow-plain"),
        (kind, b"E\0\0\0\x10sorry", "an error"),
        (kind, b"S-and-more", "S-and-more"),
        (kind, b"J\0\0\0\x0a8.0.1\0", "no PostgreSQL server"),
    ];
    for (answer, server, says) in cases {
        let mut host = new(answer);
        host.send(Client, &app());
        host.send(Upstream, server);
        let (code, why) = host.error();
        assert_eq!(code, "08006");
        assert!(why.contains(says), "{why}");
        assert!(host.closed.is_some());
    }
    let mut host = new(kind);
    host.send(Client, &app());
    host.end(Upstream);
    assert_eq!(host.error().0, "08006");
}

#[test]
fn plain_only_where_it_is_allowed() {
    let mut host = Host::new(plain(), kind);
    host.send(Client, &app());
    host.send(Upstream, b"N");
    assert_eq!(host.got[0], [startup::ssl_request(), app()].concat());
    assert!(host.closed.is_none());
}

#[test]
fn a_request_to_cancel_is_carried_to_the_server() {
    let true_key = b"\0\0\0\x01true";
    for (settings, says) in [(PostgresSettings::default(), b"S"), (plain(), b"N")] {
        let mut host = Host::new(settings, kind);
        host.send(
            Client,
            &[
                startup::ssl_request(),
                startup::cancel_request(b"\0\0\0\x09ours"),
            ]
            .concat(),
        );
        host.send(Upstream, says);
        host.end(Client);
        assert!(host.closed.is_none());
        host.end(Upstream);
        assert_eq!(
            host.questions[..2],
            [
                Step::FindCancel(b"\0\0\0\x09ours".to_vec()),
                Step::Connect(Endpoint::Cancel)
            ]
        );
        assert_eq!(
            host.got[0],
            [startup::ssl_request(), startup::cancel_request(true_key)].concat()
        );
        assert_eq!(host.got[1], b"N");
        assert_eq!(host.closed, Some(None));
    }
    let mut host = new(|_| StepResult::CancelUnknown);
    host.send(Client, &startup::cancel_request(b"\0\0\0\x09ours"));
    assert!(host.closed.is_some() && host.got[1].is_empty() && host.questions.len() == 1);
    let mut host = new(kind);
    host.send(Client, &startup::cancel_request(b"\0\0\0\x09ours"));
    host.send(Upstream, b"N");
    assert!(matches!(host.closed, Some(Some(_))) && host.got[1].is_empty());
}

#[test]
fn a_client_that_makes_no_sense_is_told_so() {
    for (bytes, code) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "08P01"),
        (begin(0, &["database", "x"]), "28000"),
        (startup::ssl_request().repeat(2), "08P01"),
        (wire::untyped(2 << 16, &[0; 300]), "0A000"),
    ] {
        let mut host = new(kind);
        host.send(Client, &bytes);
        assert_eq!(host.error().0, code);
        assert!(host.closed.is_some() && host.questions.is_empty());
    }
}

#[test]
fn what_a_client_sends_too_early_waits() {
    let mut host = new(kind);
    host.send(Client, &[app(), query("select 1")].concat());
    host.send(Upstream, b"S");
    assert!(!host.got[0].ends_with(&query("select 1")));
    host.send(
        Upstream,
        &[auth(0, b""), wire::message(b'K', b"\0\0\0\x01true")].concat(),
    );
    assert!(host.got[0].ends_with(&query("select 1")));
    assert_eq!(host.told(), [r#"session.query sql="select 1""#]);
    // But not without end.
    let mut host = new(kind);
    host.send(Client, &app());
    host.send(Client, &query("select 1").repeat(6000));
    assert_eq!(host.error().0, "08P01");
}

#[test]
fn answers_to_no_question_end_it() {
    let mut p = Postgres::new(PostgresSettings::default());
    assert!(matches!(
        p.on_result(StepResult::Connected)[..],
        [Step::ToClient(_), Step::Close(Some(_))]
    ));
    assert_eq!(p.on_input(Client, b"abc"), [Step::Skip(3)]);
    assert_eq!(p.on_input(Upstream, b"abc"), [Step::Skip(3)]);
    assert_eq!(p.on_close(Client), []);
}
