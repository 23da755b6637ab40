use crate::settings::PostgresSettings;
use crate::startup;
use crate::testing::{Host, auth, kind, startup as begin};
use crate::wire;
use postern_sdk::Side::{Client, Upstream};
use postern_sdk::codec::{Step, StepResult};

const READY: &[u8] = b"Z\0\0\0\x05I";

/// Connected and in TLS, the startup message sent.
fn dialled(minor: u32, answer: fn(&Step) -> StepResult) -> Host {
    let mut host = Host::new(PostgresSettings::default(), answer);
    host.send(Client, &begin(minor, &["user", "app"]));
    host.send(Upstream, b"S");
    assert_eq!(
        host.got[0],
        [startup::ssl_request(), begin(minor, &["user", "app"])].concat()
    );
    host.got[0].clear();
    host
}

#[test]
fn scram_is_answered_by_the_host() {
    let mut host = dialled(0, kind);
    host.send(
        Upstream,
        &auth(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"),
    );
    host.send(Upstream, &auth(11, b"r=xy,s=c2FsdA==,i=4096"));
    host.send(Upstream, &auth(12, b"v=proof"));
    let sent = [
        wire::message(b'p', b"SCRAM-SHA-256\0\0\0\0\x09n,,n=,r=x"),
        wire::message(b'p', b"c=biws,r=xy,p=z"),
    ];
    assert_eq!(host.got[0], sent.concat());
    let asked: Vec<_> = host
        .questions
        .iter()
        .filter_map(|q| match q {
            Step::Answer(c) => Some((c.method.as_str(), c.account.as_str(), c.data.as_slice())),
            _ => None,
        })
        .collect();
    assert_eq!(
        asked,
        [
            (
                "scram-sha-256",
                "app",
                &b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0"[..]
            ),
            ("scram-sha-256", "app", b"r=xy,s=c2FsdA==,i=4096"),
            ("scram-sha-256", "app", b"v=proof"),
        ]
    );
    // The client sees nothing of it.
    assert_eq!(host.got[1], b"");
    host.send(Upstream, &[&auth(0, b""), READY].concat());
    assert_eq!(host.got[1], [&auth(0, b""), READY].concat());
}

#[test]
fn a_server_that_proves_nothing_is_refused() {
    let mut host = dialled(0, kind);
    host.send(Upstream, &auth(10, b"SCRAM-SHA-256\0\0"));
    host.send(Upstream, &auth(0, b""));
    assert!(host.error().1.contains("proof"), "{:?}", host.error());
    assert!(host.closed.is_some());
    let mut host = dialled(0, kind);
    host.send(Upstream, &auth(12, b"v=x"));
    assert_eq!(host.error().0, "08P01");
}

#[test]
fn md5_and_cleartext() {
    let mut host = dialled(0, kind);
    host.send(Upstream, &auth(5, b"salt"));
    assert_eq!(host.got[0], wire::message(b'p', b"md5abc\0"));
    let mut host = dialled(0, kind);
    host.send(Upstream, &auth(3, b""));
    let Some(Step::SendSecret(secret)) = host.questions.last() else {
        panic!("{:?}", host.questions);
    };
    assert_eq!((secret.account.as_str(), secret.parts.len()), ("app", 4));
    // The host writes it; we don't.
    assert_eq!(host.got[0], b"");
    host.send(Upstream, &auth(0, b""));
    assert_eq!(host.got[1], auth(0, b""));
}

#[test]
fn without_a_secret_the_user_is_told() {
    let none = |q: &Step| match q {
        Step::Answer(_) => StepResult::AnswerFailed("no password for app".into()),
        q => kind(q),
    };
    let mut host = dialled(0, none);
    host.send(Upstream, &auth(5, b"salt"));
    let (code, why) = host.error();
    assert_eq!(code, "28000");
    assert!(why.contains("as \"app\": no password for app"), "{why}");
}

#[test]
fn other_methods_are_named() {
    for (code, says) in [(7, "GSSAPI"), (9, "SSPI"), (2, "Kerberos"), (99, "99")] {
        let mut host = dialled(0, kind);
        host.send(Upstream, &auth(code, b""));
        assert!(host.error().1.contains(says), "{:?}", host.error());
    }
    for broken in [
        auth(5, b"sal"),
        wire::message(b'R', b"\0"),
        auth(11, b"r="),
        wire::message(b'D', b""),
        b"HTTP/1.1 400".to_vec(),
    ] {
        let mut host = dialled(0, kind);
        host.send(Upstream, &broken);
        assert_eq!(host.error().0, "08P01", "{}", broken.escape_ascii());
    }
}

#[test]
fn the_client_gets_a_key_of_the_hosts() {
    // (minor, what the server says of it, longest key of the client)
    for (minor, negotiated, most) in [
        (0, None, 8),
        (2, None, 256),
        (2, Some(0), 8),
        (2, Some(196_608), 8),
        (2, Some(196_610), 256),
    ] {
        let mut host = dialled(minor, kind);
        let mut seen = Vec::new();
        if let Some(version) = negotiated {
            let v = wire::message(
                b'v',
                &[&u32::to_be_bytes(version)[..], b"\0\0\0\0"].concat(),
            );
            host.send(Upstream, &v);
            seen = v;
        }
        let status = wire::message(b'S', b"a\0b\0");
        let key = wire::message(b'K', b"\0\0\0\x2asecr");
        host.send(
            Upstream,
            &[&auth(0, b""), &status[..], &key, READY].concat(),
        );
        assert!(
            host.questions
                .contains(&Step::OfferCancel((b"\0\0\0\x2asecr".to_vec(), most))),
            "{:?}",
            host.questions
        );
        seen.extend(
            [
                &auth(0, b""),
                &status[..],
                &wire::message(b'K', &vec![7; most as usize]),
                READY,
            ]
            .concat(),
        );
        assert_eq!(host.got[1], seen);
    }
    // Too long to be kept: the session goes on without.
    let mut host = dialled(2, kind);
    let key = wire::message(b'K', &[1; 257]);
    host.send(Upstream, &[&auth(0, b""), &key[..], READY].concat());
    assert_eq!(host.got[1], [&auth(0, b""), READY].concat());
}

#[test]
fn what_the_server_says_of_the_login_passes() {
    let mut host = dialled(0, kind);
    let error = wire::fatal("28P01", "password authentication failed for user \"app\"");
    host.send(Upstream, &error);
    host.end(Upstream);
    assert_eq!(host.got[1], error);
    assert_eq!(
        host.told(),
        [r#"session.error sqlstate="28P01" severity="FATAL""#]
    );
    let why = host.closed.flatten().unwrap_or_default();
    assert!(why.contains("28P01"), "{why}");
    let mut host = dialled(0, kind);
    host.end(Upstream);
    assert_eq!(host.error().0, "08006");
    assert!(host.closed.is_some());
}

#[test]
fn a_long_message_is_no_login() {
    let mut host = dialled(0, kind);
    host.send(Upstream, b"R\0\0\xff\xff");
    assert!(host.error().1.contains("is it a PostgreSQL server"));
}
