//! The tasks against a server that says what the test lets it say. What the SQL does is for `tests/auto_users.rs`.

use super::*;
use crate::testing::{Host, auth, kind};
use postern_sdk::accounts::Account;
use postern_sdk::codec::StepResult;
use postern_sdk::{Endpoint, Side};

fn admit(roles: &[&str], afterwards: Afterwards) -> Task {
    Task::Admit(Account {
        name: "alice".into(),
        roles: roles.iter().map(|r| (*r).to_owned()).collect(),
        afterwards,
    })
}

fn dismiss(key: Option<&[u8]>) -> Task {
    Task::Dismiss(Departure {
        account: "alice".into(),
        key: key.map(<[u8]>::to_vec),
    })
}

/// As the server sends rows of texts, without the end of the answer.
fn rows(rows: &[&[&str]]) -> Vec<u8> {
    let row = |columns: &&[&str]| {
        let mut body = (columns.len() as u16).to_be_bytes().to_vec();
        for column in *columns {
            body.extend((column.len() as u32).to_be_bytes());
            body.extend(column.as_bytes());
        }
        [
            wire::message(b'T', b"\0\0"),
            wire::message(b'D', &body),
            wire::message(b'C', b"SELECT 1\0"),
        ]
        .concat()
    };
    rows.iter().flat_map(row).collect()
}

/// One server.
struct Server {
    host: Host,
}

impl Server {
    /// The administrator has logged in and asks for settings.
    fn new(task: Task) -> Server {
        let mut host = Host::task(task, kind);
        assert_eq!(host.questions, [Step::Connect(Endpoint::Admin)]);
        host.send(Side::Upstream, b"S");
        assert!(host.got[0].ends_with(
            b"user\0root\0database\0postgres\0application_name\0postern\0client_encoding\0UTF8\0\0"
        ));
        let greeting = [
            auth(0, b""),
            wire::message(b'S', b"server_version\x0015.8\0"),
            wire::message(b'K', b"\0\0\0\x01true"),
            b"Z\0\0\0\x05I".to_vec(),
        ];
        host.got = Default::default();
        host.send(Side::Upstream, &greeting.concat());
        let mut server = Server { host };
        assert!(server.asked().starts_with("SET search_path = pg_catalog;"));
        server
    }

    /// As [`Self::new`], and may do what it has to.
    fn able(task: Task) -> Server {
        let mut server = Server::new(task);
        server.says(&[&["admin", "f", "t", "t"]]);
        server
    }

    /// The SQL that it was asked.
    fn asked(&mut self) -> String {
        let got = std::mem::take(&mut self.host.got[0]);
        assert_eq!(got[0], b'Q', "{:?}", String::from_utf8_lossy(&got));
        let len = u32::from_be_bytes(got[1..5].try_into().unwrap()) as usize;
        assert_eq!(got.len(), len + 1, "one at a time");
        String::from_utf8(got[5..got.len() - 1].to_vec()).unwrap()
    }

    fn says(&mut self, what: &[&[&str]]) {
        self.sends(&[&rows(what)[..], b"Z\0\0\0\x05I"].concat());
    }

    fn fails(&mut self, sqlstate: &str, message: &str) {
        let body = format!("SERROR\0C{sqlstate}\0M{message}\0\0");
        self.sends(&[&wire::message(b'E', body.as_bytes())[..], b"Z\0\0\0\x05I"].concat());
    }

    fn sends(&mut self, bytes: &[u8]) {
        self.host.send(Side::Upstream, bytes);
    }

    /// Its reason, if it has one.
    fn closed(&self) -> Option<&str> {
        let closed = self.host.closed.as_ref();
        closed.expect("it has closed").as_deref()
    }

    fn is_ready(&self) -> bool {
        self.host.got[1] == [1]
    }
}

/// What there is of alice: `login`, `powerful`, sessions; and her roles.
fn alice<'a>(account: &'a [&'a str; 3], has: &'a [&'a str]) -> Vec<Vec<&'a str>> {
    let mut all = vec![[&["account"][..], &account[..]].concat()];
    all.extend(has.iter().map(|role| vec!["has", role]));
    all.push(vec!["mark", "postern_auto_keep"]);
    all.push(vec!["mark", "postern_auto_drop"]);
    all
}

fn say(server: &mut Server, what: &[Vec<&str>]) {
    let what: Vec<&[&str]> = what.iter().map(Vec::as_slice).collect();
    server.says(&what);
}

#[test]
fn an_account_is_made_and_held_until_the_session_is_there() {
    let mut s = Server::able(admit(&["writer", "reader"], Afterwards::Drop));
    assert!(
        s.asked()
            .starts_with("SELECT pg_advisory_lock_shared(1886352244, hashtext(E'alice'));")
    );
    s.says(&[]);
    assert!(s.asked().starts_with("SELECT pg_advisory_unlock_shared("));
    s.says(&[]);
    assert_eq!(s.asked(), "CREATE ROLE postern_auto_drop NOLOGIN");
    // Another agent was faster.
    s.fails("42710", "it exists");
    let sql = s.asked();
    assert!(
        sql.starts_with(r#"CREATE ROLE "alice" NOLOGIN; GRANT "postern_auto_drop" TO "alice"; GRANT "reader" TO "alice"; GRANT "writer" TO "alice"; ALTER ROLE "alice" LOGIN PASSWORD NULL"#),
        "{sql}"
    );
    assert!(s.host.events.is_empty(), "it is not done yet");
    s.says(&[
        &["has", "writer"],
        &["has", "postern_auto_drop"],
        &["has", "reader"],
    ]);
    assert!(s.asked().starts_with("SELECT pg_advisory_lock_shared("));
    assert_eq!(
        s.host.told(),
        [
            r#"user.create account="alice" afterwards="drop""#,
            r#"user.grant account="alice" db_roles=["reader","writer"]"#
        ]
    );
    assert!(!s.is_ready());
    s.says(&[]);
    assert!(s.is_ready() && s.host.closed.is_none() && s.host.got[0].is_empty());
    s.host.end(Side::Client);
    assert_eq!(s.host.got[0], b"X\0\0\0\x04");
    assert_eq!(s.closed(), None);
}

#[test]
fn an_account_that_is_ready_is_only_held() {
    let mut s = Server::able(admit(&["reader"], Afterwards::Keep));
    s.asked();
    let seen = alice(&["t", "f", "3"], &["reader", "postern_auto_keep"]);
    say(&mut s, &seen);
    assert!(s.is_ready() && s.host.events.is_empty());
}

#[test]
fn an_account_gets_the_roles_that_it_shall_have_and_no_others() {
    let mut s = Server::able(admit(&["reader", "auditor"], Afterwards::Keep));
    s.asked();
    let mut seen = alice(&["f", "f", "0"], &["reader", "owner", "postern_auto_drop"]);
    seen.push(vec!["member", "bob"]);
    say(&mut s, &seen);
    s.asked();
    say(&mut s, &seen);
    let sql = s.asked();
    assert!(
        sql.starts_with(r#"REVOKE "owner" FROM "alice"; REVOKE "postern_auto_drop" FROM "alice"; REVOKE "alice" FROM "bob"; GRANT "postern_auto_keep" TO "alice"; GRANT "auditor" TO "alice"; ALTER ROLE "alice" LOGIN PASSWORD NULL"#),
        "{sql}"
    );
    // The server warns, and leaves a role that somebody else has granted.
    s.says(&[
        &["has", "auditor"],
        &["has", "owner"],
        &["has", "postern_auto_keep"],
        &["has", "reader"],
    ]);
    let why = s.closed().unwrap();
    assert!(why.contains("other roles at the server"), "{why}");
    assert!(!s.is_ready() && s.host.events.is_empty());
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let cases: [(&[&str; 3], &[&str]); 3] = [
        (&["t", "f", "0"], &[]),
        (&["t", "f", "0"], &["reader"]),
        // Somebody has put the mark on one with power.
        (&["t", "t", "0"], &["postern_auto_drop"]),
    ];
    for (account, has) in cases {
        let seen = alice(account, has);
        let mut s = Server::able(admit(&["reader"], Afterwards::Drop));
        s.asked();
        say(&mut s, &seen);
        let why = s.closed().unwrap();
        assert!(why.contains("was not made by Postern"), "{why}");
        let mut s = Server::able(dismiss(None));
        s.asked();
        say(&mut s, &seen);
        assert_eq!(s.closed(), None);
        assert_eq!(s.host.got[0], b"X\0\0\0\x04", "nothing was changed");
    }
    // What the server says of it makes no sense.
    let mut s = Server::able(admit(&[], Afterwards::Drop));
    s.asked();
    s.says(&[&["account"], &["has", "postern_auto_drop"]]);
    assert!(s.closed().is_some());
}

#[test]
fn sessions_with_other_roles_are_not_widened() {
    let mut s = Server::able(admit(&["reader", "writer"], Afterwards::Keep));
    s.asked();
    let seen = alice(&["t", "f", "1"], &["reader", "postern_auto_keep"]);
    say(&mut s, &seen);
    let why = s.closed().unwrap();
    assert!(why.contains("with other roles (reader)"), "{why}");
}

#[test]
fn what_nobody_may_have_is_not_granted() {
    for role in ["root", "alice", "postern_auto_drop", "", "a\0b"] {
        let host = Host::task(admit(&[role], Afterwards::Drop), kind);
        assert!(host.questions.is_empty(), "{role:?}");
        assert!(matches!(host.closed, Some(Some(_))), "{role:?}");
    }
}

#[test]
fn what_goes_wrong_is_said() {
    let mut s = Server::new(admit(&[], Afterwards::Drop));
    s.says(&[&["admin", "f", "t", "f"]]);
    let why = s.closed().unwrap();
    assert!(why.contains("GRANT pg_signal_backend"), "{why}");

    let mut s = Server::able(admit(&[], Afterwards::Drop));
    s.asked();
    s.fails("55P03", "canceling statement due to lock timeout");
    assert!(s.closed().unwrap().contains("try again"));

    let mut s = Server::able(admit(&["nobody"], Afterwards::Drop));
    for _ in 0..2 {
        s.asked();
        s.says(&[&["mark", "postern_auto_drop"]]);
    }
    assert!(s.asked().contains(r#"GRANT "nobody""#));
    s.fails("42704", r#"role "nobody" does not exist"#);
    let why = s.closed().unwrap();
    assert!(
        why.contains(r#"role "nobody" does not exist (SQLSTATE 42704)"#),
        "{why}"
    );
    assert!(s.host.events.is_empty());

    let mut s = Server::able(admit(&[], Afterwards::Drop));
    s.host.end(Side::Upstream);
    assert!(s.closed().unwrap().contains("closed the connection"));
    // The user went away.
    let mut s = Server::able(admit(&[], Afterwards::Drop));
    s.host.end(Side::Client);
    assert!(s.closed().is_some());

    for (answer, says) in [
        (
            (|q| match q {
                Step::Connect(_) => StepResult::ConnectFailed("refused".into()),
                q => kind(q),
            }) as fn(&Step) -> StepResult,
            "refused",
        ),
        (
            |q| match q {
                Step::StartTls(_) => StepResult::TlsFailed("expired".into()),
                q => kind(q),
            },
            "expired",
        ),
    ] {
        let mut host = Host::task(Task::Sweep, answer);
        host.send(Side::Upstream, b"S");
        let why = host.closed.unwrap().unwrap();
        assert!(why.contains(says), "{why}");
        assert!(host.got[1].is_empty(), "nobody is there");
    }
    let mut host = Host::task(Task::Sweep, kind);
    host.send(Side::Upstream, b"S");
    host.send(
        Side::Upstream,
        &wire::fatal("28P01", "password authentication failed"),
    );
    let why = host.closed.unwrap().unwrap();
    assert!(
        why.contains(r#"refused the administrator "root": password"#),
        "{why}"
    );
    assert!(host.got[1].is_empty());
}

#[test]
fn the_last_one_takes_it_all() {
    let mut s = Server::able(dismiss(Some(b"\0\0\x12\x34secret")));
    let sql = s.asked();
    assert!(sql.starts_with("SELECT pg_terminate_backend(s.pid)"));
    assert!(sql.contains("s.pid = 4660 AND r.rolname = E'alice'"));
    s.says(&[&["t"]]);
    assert!(
        s.asked()
            .starts_with("SELECT pg_sleep(0.02); SELECT 'there'")
    );
    s.says(&[&[""], &["there"]]);
    assert!(s.asked().starts_with("SELECT pg_sleep(0.02)"), "again");
    s.says(&[&[""]]);
    assert!(s.asked().starts_with("SELECT pg_advisory_lock(1886352244,"));
    let seen = alice(&["t", "f", "0"], &["reader", "postern_auto_drop"]);
    say(&mut s, &seen);
    let sql = s.asked();
    assert!(
        sql.starts_with(
            r#"REVOKE "reader" FROM "alice"; ALTER ROLE "alice" NOLOGIN PASSWORD NULL; SELECT"#
        ),
        "{sql}"
    );
    s.says(&[&["has", "postern_auto_drop"]]);
    assert_eq!(s.asked(), r#"DROP ROLE "alice""#);
    s.says(&[]);
    assert_eq!(s.closed(), None);
    assert_eq!(
        s.host.told(),
        [
            r#"user.revoke account="alice" db_roles=["reader"]"#,
            r#"user.drop account="alice""#
        ]
    );
}

#[test]
fn others_keep_what_they_use() {
    let mut s = Server::able(dismiss(None));
    s.asked();
    let seen = alice(&["t", "f", "1"], &["reader", "postern_auto_drop"]);
    say(&mut s, &seen);
    assert_eq!(s.closed(), None);
    assert!(s.host.events.is_empty());
}

#[test]
fn an_account_that_owns_something_is_disabled() {
    let mut s = Server::able(dismiss(None));
    s.asked();
    let seen = alice(&["t", "f", "0"], &["postern_auto_drop"]);
    say(&mut s, &seen);
    assert!(s.asked().starts_with(r#"ALTER ROLE "alice" NOLOGIN"#));
    s.says(&[&["has", "postern_auto_drop"]]);
    s.asked();
    s.fails("2BP01", "some objects depend on it");
    assert_eq!(s.closed(), None);
    assert_eq!(
        s.host.told(),
        [
            r#"user.disable account="alice" not_dropped="some objects depend on it (SQLSTATE 2BP01)""#
        ]
    );
}

#[test]
fn one_that_is_kept_is_left_without_anything() {
    let mut s = Server::able(dismiss(None));
    s.asked();
    let seen = alice(&["t", "f", "0"], &["a", "b", "postern_auto_keep"]);
    say(&mut s, &seen);
    assert!(
        s.asked()
            .starts_with(r#"REVOKE "a" FROM "alice"; REVOKE "b""#)
    );
    s.says(&[&["has", "postern_auto_keep"], &["has", "b"]]);
    assert!(s.closed().unwrap().contains("still has roles (b)"));

    let mut s = Server::able(dismiss(None));
    s.asked();
    say(&mut s, &seen);
    s.asked();
    s.says(&[&["has", "postern_auto_keep"]]);
    assert_eq!(s.closed(), None);
    assert_eq!(
        s.host.told(),
        [
            r#"user.revoke account="alice" db_roles=["a","b"]"#,
            r#"user.disable account="alice""#
        ]
    );
}

#[test]
fn a_sweep_goes_on_where_one_account_can_not_be_had() {
    let mut s = Server::able(Task::Sweep);
    let sql = s.asked();
    assert!(sql.starts_with("SELECT 'idle'"), "{sql}");
    s.says(&[&["idle", "locked"], &["idle", "bad"], &["idle", "alice"]]);
    let locks = |sql: String, name: &str| {
        let lock = format!("pg_try_advisory_lock(1886352244, hashtext(E'{name}'))");
        assert!(
            sql.starts_with("SELECT pg_advisory_unlock_all();") && sql.contains(&lock),
            "{sql}"
        );
    };
    locks(s.asked(), "locked");
    s.says(&[&[""], &["lock", "f"]]);
    locks(s.asked(), "bad");
    let mut seen = alice(&["t", "f", "0"], &["postern_auto_keep"]);
    seen.push(vec!["lock", "t"]);
    say(&mut s, &seen);
    s.asked();
    s.fails("42501", "permission denied");
    locks(s.asked(), "alice");
    say(&mut s, &seen);
    s.asked();
    s.says(&[&["has", "postern_auto_keep"]]);
    let why = s.closed().unwrap();
    assert!(why.contains(r#"account "bad": "#), "{why}");
    assert_eq!(
        s.host.told(),
        [r#"user.disable account="alice" swept=true"#]
    );
}

#[test]
fn answers_that_make_no_sense_end_it() {
    for bytes in [
        wire::message(b'D', b"\0\x01\0\0\0\x09x"),
        wire::message(b'D', &[0; 40_000]),
        rows(&vec![&["x"][..]; 5000]),
    ] {
        let mut s = Server::new(Task::Sweep);
        s.sends(&bytes);
        assert!(s.closed().is_some());
        assert!(s.host.got[1].is_empty());
    }
}
