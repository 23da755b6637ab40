use super::*;
use proptest::prelude::*;

fn shown(sql: &str, backslashes: bool) -> Vec<(Kind, &str)> {
    tokens(sql.as_bytes(), backslashes)
        .filter(|t| t.kind != Kind::Space)
        .map(|t| (t.kind, &sql[t.at]))
        .collect()
}

#[test]
fn quotes_of_all_kinds() {
    use Kind::*;
    let cases: &[(&str, &[(Kind, &str)])] = &[
        ("a'b''c'd", &[(Word, "a"), (Text, "'b''c'"), (Word, "d")]),
        (r"'\'x", &[(Text, r"'\'"), (Word, "x")]),
        (r"E'\'x'y", &[(Text, r"E'\'x'"), (Word, "y")]),
        (
            r#"U&"a""b"U&'x'"#,
            &[(Quoted, r#"U&"a""b""#), (Text, "U&'x'")],
        ),
        ("N'x'B'1'", &[(Text, "N'x'"), (Text, "B'1'")]),
        ("me'x'", &[(Word, "me"), (Text, "'x'")]),
        ("$$a'b$$c", &[(Dollar, "$$a'b$$"), (Word, "c")]),
        ("$t$a$$b$t$", &[(Dollar, "$t$a$$b$t$")]),
        ("a$$b$$", &[(Word, "a$$b$$")]),
        ("$1$2", &[(Parameter, "$1"), (Parameter, "$2")]),
        ("1$$x$$", &[(Number, "1"), (Dollar, "$$x$$")]),
        ("$ä$x$ä$", &[(Dollar, "$ä$x$ä$")]),
        ("'open", &[(Text, "'open")]),
        ("$$open", &[(Dollar, "$$open")]),
        ("$a", &[(Other, "$"), (Word, "a")]),
        ("'a' 'b'", &[(Text, "'a'"), (Text, "'b'")]),
        ("'a'\n  'b'c", &[(Text, "'a'\n  'b'"), (Word, "c")]),
        ("E'a' -- x\n'b\\'c'", &[(Text, "E'a' -- x\n'b\\'c'")]),
        ("-- a'b\n'c'", &[(Comment, "-- a'b"), (Text, "'c'")]),
        (
            "/* a /* ' */ b */c",
            &[(Comment, "/* a /* ' */ b */"), (Word, "c")],
        ),
        (
            "a*/*b*/c",
            &[(Word, "a"), (Other, "*"), (Comment, "/*b*/"), (Word, "c")],
        ),
        ("/*/", &[(Comment, "/*/")]),
    ];
    for (sql, expected) in cases {
        assert_eq!(shown(sql, false), *expected, "{sql}");
    }
    assert_eq!(shown(r"'\'x'y", true), [(Text, r"'\'x'"), (Word, "y")]);
}

proptest! {
    #[test]
    fn tokens_cover_everything(sql in r#"[aeEuU&'"$\\0-9/*;\n -]{0,60}"#, backslashes: bool) {
        let mut end = 0;
        for t in tokens(sql.as_bytes(), backslashes) {
            prop_assert_eq!(t.at.start, end);
            prop_assert!(t.at.end > t.at.start);
            prop_assert!(t.body.start <= t.body.end && t.body.end <= t.at.end && t.body.start >= t.at.start);
            end = t.at.end;
        }
        prop_assert_eq!(end, sql.len());
    }

    #[test]
    fn bytes_of_any_kind_do_no_harm(sql: Vec<u8>, backslashes: bool) {
        prop_assert_eq!(tokens(&sql, backslashes).map(|t| t.at.len()).sum::<usize>(), sql.len());
    }
}
