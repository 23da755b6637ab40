use super::*;
use proptest::prelude::*;

fn sql(text: &str) -> Rc<Sql> {
    crate::audit::sql(text.as_bytes(), text.len())
}

/// Client: `P` with name and SQL of one letter each (`Pab`), `C` with a name, others alone. Server: after a `<`.
fn play(pending: &mut Pending, script: &str) -> Vec<String> {
    let mut told = Vec::new();
    for word in script.split_whitespace() {
        let b = word.as_bytes();
        match b[0] {
            b'<' => {
                let got = pending.got(b[1]);
                told.push(match got {
                    Got::Nothing => continue,
                    Got::Prepared(p) => format!(
                        "prepared {}={}",
                        p.name.escape_ascii(),
                        p.sql.unwrap().cut.json
                    ),
                    Got::Failed(p) => format!("failed {}", p.name.escape_ascii()),
                    Got::Closed(name) => format!("closed {}", name.escape_ascii()),
                    Got::Lost => "lost".into(),
                });
            }
            b'P' => drop(pending.sent_parse(&b[1..2], &sql(&word[2..])).unwrap()),
            b'C' => pending.sent_close(&b[1..]).unwrap(),
            kind => pending.sent(kind).unwrap(),
        }
    }
    told
}

fn all(script: &str) -> Vec<String> {
    let mut pending = Pending::default();
    let told = play(&mut pending, script);
    assert!(
        pending.queue.is_empty() && pending.parses.is_empty() && pending.closes.is_empty(),
        "{script}: {pending:?}"
    );
    assert_eq!((pending.sql_bytes, pending.simple), (0, 0));
    assert!(
        !pending.skipping && !pending.copying && !pending.lost,
        "{script}: {pending:?}"
    );
    told
}

#[test]
fn answers_in_order() {
    for (script, told) in [
        ("Q <T <D <C <T <C <Z", &[][..]),
        ("Pa1 B D E S <1 <2 <T <D <C <Z", &["prepared a=\"1\""]),
        (
            "Pa1 D S <1 <t <n <Z Ca S <3 <Z",
            &["prepared a=\"1\"", "closed a"],
        ),
        // Two at once, the first fails and takes its segment with it.
        (
            "Pa1 B E Ca S Pb2 S <E <Z <1 <Z",
            &["failed a", "prepared b=\"2\""],
        ),
        (
            "Pa1 B E S Pb2 S <1 <2 <E <Z <1 <Z",
            &["prepared a=\"1\"", "prepared b=\"2\""],
        ),
        // The error is known before the Sync is sent; what comes until then is skipped.
        ("Pa1 <E Pb2 Q B S <Z", &["failed a"]),
        // A simple query that fails skips nothing, nor does a Sync that fails to commit.
        ("Q <E <Z S <E <Z F <E <Z F <V <Z", &[]),
        ("B E p S <2 <s <3 <Z", &[]),
        // A simple query within an extended one is skipped with the rest.
        ("Pa1 Q S <E <Z", &["failed a"]),
        ("E S <I <Z", &[]),
        // Notices and parameters at any time.
        ("<N <S <A Q <N <S <C <A <Z <N", &[]),
    ] {
        assert_eq!(all(script), told, "{script}");
    }
}

#[test]
fn a_server_takes_no_sync_while_it_reads_a_copy() {
    for script in [
        // As libpq does it: a Sync with the command, and one at the end.
        "B E S <2 <G c S <C <Z Q <C <Z",
        // All at once.
        "B E S c S <2 <G <C <Z Q <C <Z",
        "Q <G c <C <G c <C <Z",
        "Q S <G c <C <Z",
        // It fails in the middle; what is still sent of it is ignored.
        "Q <G <E <Z c Q <C <Z",
        "B E S <2 <G <E c S <Z",
        "B E c S <2 <E <Z",
        // Two of one query, however early their ends come.
        "Q c c <G <C <G <C <Z Q <C <Z",
        "Q c <G c <C <G <C <Z Q <C <Z",
        "Q c S c <G <C <G <C <Z Q <C <Z",
        // The first fails; the other end is ignored.
        "Q c c <G <E <Z Q <C <Z",
        "Q <G c c <E <Z Q <C <Z",
        "Q <G c <E <Z c Q <C <Z",
    ] {
        assert_eq!(all(script), [""; 0], "{script}");
    }
}

#[test]
fn nothing_else_is_sent_in_the_middle_of_a_copy() {
    for kind in [QUERY, CALL, BIND, DESCRIBE, EXECUTE, CLOSE_PORTAL] {
        let mut p = Pending::default();
        play(&mut p, "Q <G");
        assert!(p.sent(kind).is_err(), "{kind}");
    }
    let mut p = Pending::default();
    play(&mut p, "B E S <2 <G S");
    assert!(p.sent_parse(b"a", &sql("1")).is_err() && p.sent_close(b"a").is_err());
    // Behind its end, or its failure, anything is.
    assert_eq!(play(&mut p, "c Q <C <Z"), [""; 0]);
    assert_eq!(play(&mut p, "Q <G <E Pa1 <Z S <1 <Z"), ["prepared a=\"1\""]);
    // It was sent before the server said that there is one: what became of it is not known.
    let mut p = Pending::default();
    assert_eq!(play(&mut p, "Q Pa1 <G"), ["lost"]);
    assert!(p.parses.is_empty() && p.sql_bytes == 0);
    assert_eq!(play(&mut p, "<E <Z"), [""; 0]);
    assert!(!p.is_lost());
    assert_eq!(play(&mut p, "<G"), ["lost"]);
}

#[test]
fn what_does_not_fit_is_doubted_until_nothing_is_owed() {
    let mut p = Pending::default();
    assert_eq!(play(&mut p, "B E S <1"), ["lost"]);
    assert!(p.is_lost());
    assert_eq!(play(&mut p, "<2 <C <Z"), [""; 0]);
    assert!(!p.is_lost());
    assert_eq!(play(&mut p, "<Z"), ["lost"]);
    assert_eq!(play(&mut p, "B S <Z"), ["lost"]);
    assert_eq!(play(&mut p, "Pa1 S <1 <Z"), ["prepared a=\"1\""]);
}

#[test]
fn what_a_name_may_stand_for() {
    let mut p = Pending::default();
    let of = |p: &Pending, name: &[u8]| {
        let (found, sure) = p.parses_of(name);
        let texts: Vec<String> = found
            .iter()
            .map(|p| p.sql.clone().unwrap().cut.json.clone())
            .collect();
        (texts.join(""), sure)
    };
    play(&mut p, "Pa1 B S Pa2 S Pb3");
    assert_eq!(of(&p, b"b"), ("\"3\"".into(), true));
    assert_eq!(of(&p, b"a"), ("\"2\"\"1\"".into(), false));
    assert_eq!(of(&p, b"c"), (String::new(), false));
    play(&mut p, "Pa4");
    assert_eq!(of(&p, b"a"), ("\"4\"".into(), true));
    // A COPY of the query may take it for an error of its own.
    let mut p = Pending::default();
    play(&mut p, "Pa1 Q Pa2");
    assert_eq!(of(&p, b"a"), ("\"2\"\"1\"".into(), true));
    play(&mut p, "<1 <G");
    assert_eq!(of(&p, b"a"), (String::new(), false));
    play(&mut p, "<E <Z Pa3");
    assert_eq!(of(&p, b"a"), ("\"3\"".into(), true));
}

#[test]
fn a_client_that_never_waits_is_stopped() {
    let mut p = Pending::default();
    let stopped = (0..MOST + 2).position(|_| p.sent(SYNC).is_err());
    assert_eq!(stopped, Some(MOST));
    let mut p = Pending::default();
    let long = sql(&"x".repeat(10_000));
    let stopped = (0..MOST_NAMED + 2).position(|_| p.sent_parse(b"", &long).is_err());
    assert_eq!(stopped, Some(MOST_NAMED));
    assert!(p.sql_bytes <= MOST_SQL);
}

/// PostgreSQL, as far as the order of its answers goes; `fails` decides about each message.
fn server(sent: &[u8], mut fails: impl FnMut() -> bool) -> Vec<u8> {
    let (mut out, mut skipping) = (Vec::new(), false);
    for b in sent {
        match *b {
            SYNC => {
                out.push(b'Z');
                skipping = false;
            }
            _ if skipping => {}
            QUERY | CALL => {
                out.push(if fails() {
                    b'E'
                } else if *b == QUERY {
                    b'C'
                } else {
                    b'V'
                });
                out.push(b'Z');
            }
            _ if fails() => {
                out.push(b'E');
                skipping = true;
            }
            PARSE => out.push(b'1'),
            BIND => out.push(b'2'),
            CLOSE_STATEMENT | CLOSE_PORTAL => out.push(b'3'),
            DESCRIBE => out.extend(b"tT"),
            EXECUTE => out.extend(b"DC"),
            _ => {}
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// However far the client is ahead, every answer finds its message.
    #[test]
    fn follows_a_server(
        sent in prop::collection::vec(prop::sample::select(b"PPBDEEsSSQFp".to_vec()), 0..40),
        failing in prop::collection::vec(prop::bool::weighted(0.2), 40),
        ahead in prop::collection::vec(0usize..5, 100),
    ) {
        let mut sent = sent;
        sent.push(SYNC);
        let mut fate = failing.clone().into_iter();
        let answers = server(&sent, || fate.next().unwrap_or(false));
        // How many answers there can be once so many messages have been sent.
        let possible = |n: usize| {
            let mut fate = failing.clone().into_iter();
            server(&sent[..n], || fate.next().unwrap_or(false)).len()
        };
        let (mut p, mut n, mut done) = (Pending::default(), 0, 0);
        for (i, kind) in sent.iter().enumerate() {
            match *kind {
                PARSE => p.sent_parse(&[i as u8], &sql("x")).map(drop),
                CLOSE_STATEMENT => p.sent_close(&[i as u8]),
                kind => p.sent(kind),
            }.unwrap();
            n += 1;
            let mut budget = ahead[i % ahead.len()];
            while budget > 0 && done < possible(n) {
                prop_assert!(!matches!(p.got(answers[done]), Got::Lost));
                (done, budget) = (done + 1, budget - 1);
            }
        }
        for answer in &answers[done..] {
            prop_assert!(!matches!(p.got(*answer), Got::Lost));
        }
        prop_assert!(p.queue.is_empty() && p.parses.is_empty() && p.closes.is_empty());
    }

    #[test]
    fn any_order_does_no_harm(script in prop::collection::vec((any::<bool>(), prop::sample::select(b"PBDEsSQFpc123TnCIsVGWEZ".to_vec())), 0..60)) {
        let mut p = Pending::default();
        for (sent, kind) in script {
            let copying = p.copying;
            let sent = match (sent, kind) {
                (true, PARSE) => p.sent_parse(b"a", &sql("x")).map(drop),
                (true, CLOSE_STATEMENT) => p.sent_close(b"a"),
                (true, kind) => p.sent(kind),
                (false, kind) => {
                    p.got(kind);
                    Ok(())
                }
            };
            prop_assert!(sent.is_ok() || copying);
            let simple = p.queue.iter().filter(|b| **b == QUERY).count();
            prop_assert_eq!(simple, p.simple);
            let named = p.queue.iter().filter(|b| **b == PARSE).count();
            prop_assert_eq!(named, p.parses.len());
            let closes = p.queue.iter().filter(|b| **b == CLOSE_STATEMENT).count();
            prop_assert_eq!(closes, p.closes.len());
        }
    }
}
