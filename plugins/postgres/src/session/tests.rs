use crate::settings::PostgresSettings;
use crate::testing::{Host, SYNC, auth, bind, execute, parse, query, startup};
use crate::wire;
use postern_sdk::Side::{self, Client, Upstream};
use proptest::prelude::*;

fn session() -> Host {
    let settings = PostgresSettings {
        parameters: false,
        ..PostgresSettings::default()
    };
    Host::session(settings)
}

fn m(kind: u8, body: &str) -> Vec<u8> {
    wire::message(kind, body.as_bytes())
}

/// `ParseComplete` and its like.
fn server(kinds: &str) -> Vec<u8> {
    kinds
        .bytes()
        .flat_map(|k| match k {
            b'C' => m(k, "SELECT 2\0"),
            b'Z' => m(k, "I"),
            b'E' => m(k, "SERROR\0VERROR\0C42601\0Mno\0\0"),
            k => m(k, ""),
        })
        .collect()
}

#[test]
fn everything_passes_and_queries_are_told() {
    let mut host = session();
    let asked = [
        query("select 1"),
        parse("s", "select 2"),
        bind("", "s"),
        execute(""),
        SYNC.into(),
        wire::message(b'F', b"\0\0\x03\xbb\0\0\0\0\0\0"),
        m(b'X', ""),
    ]
    .concat();
    let answered = [server("TDCZ12DCZV"), server("Z")].concat();
    host.send(Client, &asked);
    host.send(Upstream, &answered);
    assert_eq!(host.got, [asked, answered]);
    assert_eq!(
        host.told(),
        [
            r#"session.query sql="select 1""#,
            r#"session.query sql="select 2" statement="s""#,
            "session.query function_oid=955",
            "session.end queries=3 rows=0 errors=0",
        ]
    );
    host.end(Client);
    assert_eq!(host.events.len(), 4);
}

#[test]
fn totals_come_at_the_end() {
    let mut host = session();
    host.send(Client, &query("select 1").repeat(2));
    host.send(Upstream, &server("TDDCZEZ"));
    host.end(Upstream);
    host.end(Client);
    assert_eq!(
        host.told()[2..],
        [
            r#"session.error sqlstate="42601" severity="ERROR""#,
            "session.end queries=2 rows=2 errors=1"
        ]
    );
    assert!(host.closed.is_none());
}

#[test]
fn a_bind_is_told_with_the_sql_that_it_runs() {
    let mut host = session();
    let told = |host: &Host| host.told().pop().unwrap_or_default();
    host.send(Client, &[parse("a", "select 1"), SYNC.into()].concat());
    host.send(Upstream, &server("1Z"));
    // That name is taken: the first stays.
    host.send(Client, &[parse("a", "select 2"), SYNC.into()].concat());
    host.send(Client, &bind("", "a"));
    assert_eq!(
        told(&host),
        r#"session.query sql="select 2" sql_or=["select 1"] statement="a""#
    );
    host.send(Upstream, &server("EZ"));
    assert_eq!(
        told(&host),
        r#"session.error sqlstate="42601" severity="ERROR" sql="select 2""#
    );
    host.send(Client, &[&bind("", "a"), SYNC].concat());
    assert_eq!(told(&host), r#"session.query sql="select 1" statement="a""#);
    host.send(Upstream, &server("22Z"));
    // Closed, and unknown to us.
    host.send(Client, &[m(b'C', "Sa\0"), SYNC.into()].concat());
    host.send(Upstream, &server("3Z"));
    host.send(Client, &[bind("p", "a"), SYNC.into()].concat());
    assert_eq!(
        told(&host),
        r#"session.query sql_unknown=true statement="a" portal="p""#
    );
}

#[test]
fn sql_that_prepares_makes_names_doubtful() {
    let mut host = session();
    host.send(
        Client,
        &[
            parse("a", "select 1"),
            SYNC.into(),
            query("prepare b as select 2"),
        ]
        .concat(),
    );
    host.send(
        Upstream,
        &[server("1Z"), m(b'C', "PREPARE\0"), server("Z")].concat(),
    );
    host.send(Client, &bind("", "a"));
    let told = host.told().pop();
    assert_eq!(
        told.as_deref(),
        Some(r#"session.query sql="select 1" sql_may_differ=true statement="a""#)
    );
}

#[test]
fn names_that_a_server_may_cut_are_refused() {
    let name = "n".repeat(63);
    let longer = format!("{name}o");
    let mut host = session();
    let whole = [
        parse(&name, "select 1"),
        bind(&name, &name),
        execute(&name),
        m(b'C', &format!("S{name}\0")),
    ]
    .concat();
    host.send(Client, &whole);
    assert!(host.closed.is_none() && host.got[0] == whole);
    assert!(host.told()[0].contains("select 1"), "{:?}", host.told());
    for bytes in [
        parse(&longer, "select 1"),
        bind("", &longer),
        bind(&longer, ""),
        execute(&longer),
        m(b'C', &format!("S{longer}\0")),
    ] {
        let mut host = session();
        host.send(Client, &bytes);
        let (code, why) = host.error();
        assert_eq!(code, "08P01");
        assert!(why.contains("longer than 63 bytes"), "{why}");
        assert!(host.closed.is_some() && host.got[0].is_empty());
    }
}

/// `select 1` is prepared without a name.
fn prepared() -> Host {
    let mut host = session();
    host.send(Client, &[parse("", "select 1"), SYNC.into()].concat());
    host.send(Upstream, &server("1Z"));
    host
}

#[test]
fn two_copies_in_one_query_hide_nothing() {
    let two = query("select pg_sleep(2); copy a from stdin; copy b from stdin");
    let data = [m(b'd', "1\n"), m(b'c', "")].concat();
    let evil = [parse("", "EVIL"), bind("", ""), execute(""), SYNC.into()].concat();
    // Both ends come before the server begins; or one of them does; or none.
    for early in 0..=2 {
        let mut host = prepared();
        host.send(Client, &two);
        host.send(Client, &data.repeat(early));
        host.send(Upstream, &server("TDCG"));
        if early == 0 {
            host.send(Client, &data);
        }
        host.send(Upstream, &server("CG"));
        if early < 2 {
            host.send(Client, &data);
        }
        host.send(Client, &evil);
        let told = host.told().pop().unwrap_or_default();
        assert!(host.closed.is_none());
        assert!(told.starts_with(r#"session.query sql="EVIL""#), "{told}");
        host.send(Upstream, &server("CZ12DCZ"));
        host.send(Client, &bind("", ""));
        let told = host.told().pop().unwrap_or_default();
        assert_eq!(told, r#"session.query sql="EVIL""#);
    }
    // In the middle of the second: the server would take it for an error.
    let mut host = prepared();
    host.send(Client, &[two, data].concat());
    host.send(Upstream, &server("TDCGCG"));
    let before = host.got[0].len();
    host.send(Client, &evil);
    assert_eq!(
        (host.error().0.as_str(), host.got[0].len()),
        ("08P01", before)
    );
    assert!(host.closed.is_some());
}

#[test]
fn a_copy_ends_as_clients_end_it() {
    let copy = query("copy a from stdin");
    let (flush, terminate) = (m(b'H', ""), m(b'X', ""));
    for after in [
        &[m(b'c', ""), query("select 1")][..],
        &[m(b'f', "no\0"), query("select 1")],
        &[m(b'f', "no\0"), terminate.clone()],
        &[terminate],
        &[
            flush,
            SYNC.into(),
            m(b'd', "1\n"),
            m(b'c', ""),
            parse("", "x"),
        ],
    ] {
        let mut host = session();
        host.send(Client, &copy);
        host.send(Upstream, &server("G"));
        host.send(Client, &after.concat());
        assert!(host.closed.is_none(), "{:?}", host.closed);
        assert_eq!(host.got[0], [copy.clone(), after.concat()].concat());
    }
}

#[test]
fn what_a_copy_may_swallow_does_not_pass_for_what_is_run() {
    let mut host = session();
    host.send(Client, &[parse("a", "EVIL"), SYNC.into()].concat());
    host.send(Upstream, &server("1Z"));
    // Servers up to PostgreSQL 13 take the Parse for an error in the COPY, and go on with the Bind.
    let asked = [query("copy a from stdin"), parse("a", "x"), bind("", "a")];
    host.send(Client, &asked.concat());
    let told = host.told().pop().unwrap_or_default();
    assert_eq!(
        told,
        r#"session.query sql="x" sql_or=["EVIL"] statement="a""#
    );
    host.send(Upstream, &server("G"));
    host.send(Client, &bind("", "a"));
    let told = host.told().pop().unwrap_or_default();
    assert!(told.contains(r#"sql="EVIL" sql_may_differ=true"#), "{told}");
}

#[test]
fn what_seems_to_be_skipped_is_told_as_well() {
    let mut host = prepared();
    host.send(Client, &bind("", "missing"));
    host.send(Upstream, &server("E"));
    let asked = [parse("", "EVIL"), parse("b", "EVIL"), SYNC.into()];
    host.send(Client, &asked.concat());
    host.send(Upstream, &server("Z"));
    host.send(Client, &[bind("", ""), bind("", "b")].concat());
    let told = host.told();
    assert_eq!(
        told[told.len() - 2..],
        [
            r#"session.query sql="select 1" sql_may_differ=true sql_or=["EVIL"]"#,
            r#"session.query sql="EVIL" sql_may_differ=true statement="b""#
        ]
    );
    // Until it is prepared anew.
    host.send(Client, &[parse("", "select 2"), SYNC.into()].concat());
    host.send(Upstream, &server("221Z"));
    host.send(Client, &bind("", ""));
    let told = host.told().pop().unwrap_or_default();
    assert_eq!(told, r#"session.query sql="select 2""#);
}

#[test]
fn an_execute_is_told_when_no_bind_has() {
    let mut host = session();
    host.send(
        Client,
        &[
            parse("", "x"),
            bind("p", ""),
            execute("p"),
            execute("p"),
            execute("cursor"),
        ]
        .concat(),
    );
    assert_eq!(
        host.told()[1..],
        [
            r#"session.query again=true portal="p""#,
            r#"session.query again=true portal="cursor""#
        ]
    );
}

#[test]
fn parameters_are_told_where_that_is_set() {
    let mut host = Host::session(PostgresSettings::default());
    let bind = wire::message(b'B', b"\0\0\0\0\0\x01\0\0\0\x02hi\0\0");
    host.send(Client, &[parse("", "select $1"), bind].concat());
    assert_eq!(
        host.told(),
        [r#"session.query sql="select $1" parameters=["hi"]"#]
    );
}

#[test]
fn long_messages_pass_in_parts() {
    let mut host = session();
    let long = "x".repeat(1 << 20);
    let asked = [
        query(&long),
        parse("s", &long),
        m(b'd', &long),
        m(b'c', ""),
        query("select 1"),
    ]
    .concat();
    let answered = [m(b'T', &long), m(b'D', &long), m(b'd', &long), server("CZ")].concat();
    host.send(Client, &asked);
    host.send(Upstream, &answered);
    assert!(host.got == [asked, answered]);
    let told = host.told();
    assert_eq!(told.len(), 2);
    let sql = format!(
        r#"session.query sql="{}" sql_bytes=1048576"#,
        &long[..16 << 10]
    );
    assert!(told[0] == sql, "{}", &told[0][..100]);
}

#[test]
fn many_small_messages_at_once() {
    let mut host = session();
    let sql = format!("select '{}'", "y".repeat(10_000));
    host.send(Client, &[parse("s", &sql), SYNC.into()].concat());
    // All in one call, as the host may show them.
    let asked = bind("", "s").repeat(3000);
    let mut p = crate::Postgres::new(PostgresSettings::default());
    p.phase = crate::Phase::Session;
    use postern_sdk::codec::Codec;
    p.on_input(Client, &parse("s", &sql));
    let steps = p.on_input(Client, &asked);
    assert!(steps.len() < 4096, "{}", steps.len());
    let bytes: usize = steps
        .iter()
        .map(|s| match s {
            postern_sdk::codec::Step::Event(e) => e.fields.iter().map(|(_, v)| v.len()).sum(),
            _ => 0,
        })
        .sum();
    assert!(bytes < 2 << 20, "{bytes}");
    assert_eq!(
        steps.last(),
        Some(&postern_sdk::codec::Step::Pass(asked.len() as u32))
    );
}

#[test]
fn what_breaks_the_protocol_ends_the_session() {
    let long = "n".repeat(1100);
    for (side, bytes) in [
        (Client, m(b'p', "secret\0")),
        (Client, b"Q\0\0\0\x03".to_vec()),
        (Client, b"Q\xff\xff\xff\xff".to_vec()),
        (Client, startup(0, &["user", "app"])),
        (Client, m(b'P', "no end")),
        (Client, m(b'B', "\0no end")),
        (Client, m(b'C', "")),
        (Client, m(b'F', "x")),
        (Client, parse(&long, "select 1")),
        (Upstream, b"\0\0\0\0\x08".to_vec()),
        (Upstream, b"Z\0\0\0\0".to_vec()),
        (Upstream, b"D\xff\xff\xff\xff".to_vec()),
    ] {
        let mut host = session();
        host.send(Client, &query("select 1"));
        host.send(side, &bytes);
        assert_eq!(host.error().0, "08P01", "{}", bytes.escape_ascii());
        assert!(matches!(&host.closed, Some(Some(_))));
        assert_eq!(
            host.told().pop().as_deref(),
            Some("session.end queries=1 rows=0 errors=0")
        );
        // Nothing of the message has passed, what came before it has.
        assert_eq!(host.got[0], query("select 1"));
    }
}

#[test]
fn nothing_is_put_into_the_middle_of_a_message() {
    let mut host = session();
    host.send(Upstream, &m(b'D', "abcdef")[..8]);
    host.send(Client, &m(b'p', ""));
    assert_eq!(host.got[1], &m(b'D', "abcdef")[..8]);
    assert!(host.closed.is_some());
}

/// A conversation: who sends what.
fn conversation() -> impl Strategy<Value = Vec<(Side, Vec<u8>)>> {
    let name = prop::sample::select(vec!["", "a", "b"]);
    let sql = prop::sample::select(vec!["select 1", "alter role b password 'JQX'", ""]);
    let client = (0..9u8, name, sql, 0..90_000usize).prop_map(|(what, name, sql, n)| {
        let bytes = match what {
            0 => query(sql),
            1 => parse(name, sql),
            2 => bind(name, name),
            3 => execute(name),
            4 => SYNC.to_vec(),
            5 => m(b'C', &format!("S{name}\0")),
            6 => m(b'd', &"d".repeat(n)),
            7 => query(&format!("{sql} {}", "q".repeat(n))),
            _ => m(b'c', ""),
        };
        (Client, bytes)
    });
    let kinds = prop::sample::select(b"123TDCZEnsGIVNSAt".to_vec());
    let upstream = (kinds, 0..90_000usize).prop_map(|(kind, n)| match kind {
        b'D' | b'T' => vec![(Upstream, m(kind, &"d".repeat(n)))],
        // A client that sends something else then is refused.
        b'G' => vec![(Upstream, server("G")), (Client, m(b'c', ""))],
        kind => vec![(Upstream, server(&char::from(kind).to_string()))],
    });
    let one = prop_oneof![client.prop_map(|c| vec![c]), upstream];
    prop::collection::vec(one, 0..30).prop_map(|talk| talk.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// However bytes are cut into segments: they pass unchanged, the same is told, and before it passes.
    #[test]
    fn segments_make_no_difference(talk in conversation(), cuts in prop::collection::vec(1usize..9000, 1..20)) {
        let mut whole = session();
        talk.iter().for_each(|(side, bytes)| whole.send(*side, bytes));
        let mut parts = session();
        let mut cuts = cuts.into_iter().cycle();
        for (side, bytes) in &talk {
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (part, after) = rest.split_at(cuts.next().unwrap_or(1).min(rest.len()));
                parts.send(*side, part);
                rest = after;
            }
        }
        prop_assert!(whole.got == parts.got);
        prop_assert_eq!(whole.told(), parts.told());
        let sent = |of: Side| talk.iter().filter(|(s, _)| *s == of).map(|(_, b)| &b[..]).collect::<Vec<_>>().concat();
        prop_assert!(whole.got == [sent(Client), sent(Upstream)]);
        prop_assert!(!whole.told().concat().contains("JQX"));
        // Strict recording: an event stands before the message that it is about.
        let mut starts = Vec::new();
        let mut at = 0;
        for (_, bytes) in talk.iter().filter(|(s, _)| *s == Client) {
            if matches!(bytes[0], b'Q' | b'B') {
                starts.push(at);
            }
            at += bytes.len();
        }
        for host in [&whole, &parts] {
            let queries = host.events.iter().filter(|(e, _)| e.name == "session.query" && e.fields[0].0 != "again");
            let before: Vec<usize> = queries.map(|(_, at)| *at).collect();
            prop_assert_eq!(before.len(), starts.len());
            prop_assert!(before.iter().zip(&starts).all(|(told, start)| told <= start), "{:?} {:?}", before, starts);
        }
    }

    /// Any bytes from either side, at any time: no panic, no endless loop, and at its end a close or a wait.
    #[test]
    fn bytes_of_any_kind_do_no_harm(
        begun: u8,
        talk in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 1..200)), 0..20),
    ) {
        let mut host = match begun % 4 {
            0 => Host::new(PostgresSettings::default(), crate::testing::kind),
            1 => session(),
            _ => {
                let mut host = Host::new(PostgresSettings::default(), crate::testing::kind);
                host.send(Client, &startup(0, &["user", "app"]));
                host.send(Upstream, b"S");
                if begun % 4 == 3 {
                    host.send(Upstream, &auth(0, b""));
                }
                host
            }
        };
        for (client, bytes) in talk {
            host.send(if client { Client } else { Upstream }, &bytes);
        }
        host.end(Client);
        host.end(Upstream);
    }
}
