use super::*;

fn shown(event: &AuditEvent) -> String {
    event
        .fields
        .iter()
        .fold(event.name.clone(), |s, (k, v)| format!("{s} {k}={v}"))
}

#[test]
fn sql_is_cut_to_a_stated_size_with_its_length() {
    let long = format!("{}ä{}", "x".repeat(MOST_SQL - 1), "y".repeat(1000));
    let cut = &sql(long.as_bytes(), 70_000).cut;
    assert_eq!(cut.json.len(), MOST_SQL - 1 + 2);
    assert_eq!(cut.whole, Some(69_999));
    assert_eq!(
        shown(&query(&sql(b"select 1\0more", 100))),
        r#"session.query sql="select 1""#
    );
    let password = sql(b"alter role b password 'secret'\0", 31);
    assert_eq!(password.cut, Cut::new("alter role b password '***'", None));
}

#[test]
fn settings_are_told_without_passwords() {
    let told = |all: &[(&str, &[u8])]| {
        let all: Vec<_> = all
            .iter()
            .map(|(n, v)| (n.as_bytes().to_vec(), v.to_vec()))
            .collect();
        shown(&settings(&all))
    };
    assert_eq!(
        told(&[
            ("application_name", b"it's"),
            ("role", b"admin"),
            ("role", b"\xff")
        ]),
        "session.settings settings=[\"application_name=it's\",\"role=admin\",\"role=\u{fffd}\"]"
    );
    for (name, value) in [
        ("my.password", "JQX"),
        ("my.dsn", "host=a password=JQX"),
        ("my.dsn", "password='JQX'"),
        ("my.url", "postgres://u:JQX@h"),
        ("my.password", "a\\' JQX"),
    ] {
        let says = format!("session.settings settings=[\"{name}='***'\"]");
        assert_eq!(told(&[(name, value.as_bytes())]), says);
    }
    // One hides none of the others.
    assert_eq!(
        told(&[(
            "options",
            br"-c my.password=J\ QX -crole=admin  --my.passwd=JQX --a=b -c my.dsn=password=JQX -e"
        )]),
        "session.settings settings=[\"options=-c my.password='***' -crole=admin  --my.passwd='***' --a=b -c my.dsn='***' -e\"]"
    );
}

#[test]
fn a_bind_tells_what_it_runs() {
    let one = || sql(b"select $1", 9);
    let bound = Bound {
        statement: b"s1",
        sql: Some(one()),
        parameters: Some(parameters(b"\0\0\0\x02\0\0\0\x01a\xff\xff\xff\xff\0\0")),
        ..Bound::default()
    };
    assert_eq!(
        shown(&bound.event(false)),
        r#"session.query sql="select $1" statement="s1" parameters=["a",null]"#
    );
    let bound = Bound {
        portal: b"p",
        others: vec![one(), one()],
        doubt: true,
        ..Bound::default()
    };
    let says = r#"session.query sql_unknown=true sql_may_differ=true sql_or=["select $1","select $1"] portal="p""#;
    assert_eq!(shown(&bound.event(false)), says);
}

#[test]
fn what_is_on_record_can_be_left_out() {
    let (first, other) = (sql(b"a", 1), sql(b"b", 1));
    let bound = || Bound {
        sql: Some(first.clone()),
        others: vec![other.clone()],
        ..Bound::default()
    };
    let all = r#"session.query sql="a" sql_or=["b"]"#;
    assert_eq!(shown(&bound().event(true)), all);
    assert_eq!(
        shown(&bound().event(true)),
        "session.query sql_left_out=true"
    );
    assert_eq!(shown(&bound().event(false)), all);
}

#[test]
fn parameters_of_both_formats() {
    let binary = b"\0\x01\0\x01\0\x01\0\0\0\x02\x00\xff\0\0";
    assert_eq!(
        parameters(binary),
        Parameters {
            json: r#"["\\x00ff"]"#.into(),
            cut: false
        }
    );
    let mixed = b"\0\x02\0\0\0\x01\0\x02\0\0\0\x01a\0\0\0\x01a";
    assert_eq!(parameters(mixed).json, r#"["a","\\x61"]"#);
    for n in 0..mixed.len() {
        assert!(parameters(&mixed[..n]).cut, "{n}");
    }
    let long = [b"\0\0\0\x01\0\x01\0\0".as_slice(), &[b'x'; 20_000]].concat();
    let p = parameters(&long);
    assert!(p.cut && p.json.len() == MOST_PARAMETERS + 4);
}

#[test]
fn errors_have_their_code_and_not_their_words() {
    let e = wire::fatal("42601", "syntax error at or near \"secret\"");
    assert_eq!(
        shown(&error(&e[5..], None)),
        r#"session.error sqlstate="42601" severity="FATAL""#
    );
    assert_eq!(
        shown(&error(b"nonsense", Some(&sql(b"x", 1)))),
        r#"session.error sql="x""#
    );
}

#[test]
fn rows_are_summed_up() {
    let mut t = Totals::default();
    for tag in [
        &b"SELECT 5"[..],
        b"INSERT 0 3",
        b"BEGIN",
        b"COPY 12",
        b"",
        b"SELECT x",
    ] {
        t.add_rows(tag);
    }
    assert_eq!(t.rows, 20);
}
