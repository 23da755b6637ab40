//! What a script may say, and in which words it is refused.

use super::*;

fn refused(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

#[test]
fn events_say_one_thing_each() {
    let script = parse(
        r#"
        settings = { list = true, names = ["a"] }
        [[session]]
        name = "one"
        upstream_gets = "a\r\n"
        events = [
          { client = "a\r\n", expect = ["skip 3"] },
          { client_hex = "00 ff" },
          { authorize = "deny", reason = "no" },
          { answer = "ok", data = "x" },
          { close = "upstream" },
        ]
        [[session]]
        who = { user = "bob", labels = { env = "prod" } }
        [[session.events]]
        forward = "db:5432"
        channel = 3
        [[session.events]]
        pty = {}
        [[session.events]]
        env = "LANG=C=D"
        "#,
    )
    .unwrap();
    assert_eq!(script.settings.unwrap()["names"][0], "a");
    let shown: Vec<Vec<String>> = script
        .sessions
        .iter()
        .map(|s| s.events.iter().map(|e| e.what.to_string()).collect())
        .collect();
    assert_eq!(
        shown,
        [
            vec![
                r#"client "a\r\n""#,
                r#"client "\x00\xff""#,
                r#"authorize: deny "no""#,
                r#"answer: ok "x""#,
                "close: upstream"
            ],
            vec![
                "forward db:5432 on channel 3",
                "pty xterm-256color 80x24",
                r#"env LANG="C=D""#
            ]
        ]
    );
}

/// Golden texts: an author meets these before anything else.
#[test]
fn what_is_wrong_is_named_with_its_place() {
    let one = |event: &str| {
        refused(&format!(
            "[[session]]\nname = \"s\"\nevents = [\n  {{ open = true }},\n  {event},\n]"
        ))
    };
    let cases = [
        (
            one(r#"{ client = "a", upstream = "b" }"#),
            "session \"s\", event 2: client and upstream happen at once; make an event of each, in the order that is meant",
        ),
        (
            one(r#"{ expect = [] }"#),
            "session \"s\", event 2: nothing happens in it; an event has one of: open, client, client_hex, upstream, upstream_hex, close, authorize, connect, start_tls, answer, send_secret, offer_cancel, find_cancel; with plugins of world ssh: open, shell, exec, pty, env, subsystem, forward",
        ),
        (
            one(r#"{ client_hex = "0g" }"#),
            "session \"s\", event 2 (client_hex): client_hex is not hexadecimal digits: Invalid character 'g' at position 1",
        ),
        (
            one(r#"{ forward = "db" }"#),
            "session \"s\", event 2 (forward): \"db\" is not host:port",
        ),
        (
            one(r#"{ authorize = "allow", reason = "x" }"#),
            "session \"s\", event 2: reason says nothing here, it belongs to an answer that is deny or fail",
        ),
        (
            one(r#"{ shell = false }"#),
            "session \"s\", event 2 (shell): write shell = true, or leave it out",
        ),
        (
            one(r#"{ offer_cancel = "fail" }"#),
            "session \"s\", event 2 (offer_cancel): the host always has a key to give: write offer_cancel = \"ok\"",
        ),
        (
            one(r#"{ authorize = "allow", data = "x" }"#),
            "session \"s\", event 2: data says nothing here, it belongs to an answer = \"ok\", offer_cancel = \"ok\" or find_cancel = \"ok\"",
        ),
        (
            refused("settings = {}"),
            "there is no [[session]] in it, so nothing would be played",
        ),
    ];
    for (said, expected) in cases {
        assert_eq!(said, expected);
    }
}

#[test]
fn unknown_keys_are_errors_with_their_line() {
    let said = refused("[[session]]\nevents = [\n  { cleint = \"a\" },\n]");
    assert!(
        said.starts_with("TOML parse error at line 3, column 5"),
        "{said}"
    );
    assert!(
        said.contains("unknown field `cleint`, expected one of `open`, `client`"),
        "{said}"
    );
    assert!(said.ends_with("; did you mean `client`?"), "{said}");
    let said = refused("[[session]]\nevents = [{ connect = \"okay\" }]");
    assert!(
        said.contains("unknown variant `okay`, expected `ok` or `fail`"),
        "{said}"
    );
    let said = refused("[[sessions]]\nname = \"x\"");
    assert!(
        said.contains("unknown field `sessions`, expected `settings` or `session`"),
        "{said}"
    );
}
