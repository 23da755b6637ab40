use super::*;
use proptest::prelude::*;

#[test]
fn what_becomes_of_statements() {
    for (sql, becomes) in [
        ("select 1", "select 1"),
        (
            "alter role bob password 'secret'",
            "alter role bob password '***'",
        ),
        (
            "ALTER USER bob WITH ENCRYPTED PASSWORD E'se\\'cret' LOGIN",
            "ALTER USER bob WITH ENCRYPTED PASSWORD '***' LOGIN",
        ),
        (
            "create role a login password $x$sec$ret$x$ valid until '2030-01-01'",
            "create role a login password '***' valid until '2030-01-01'",
        ),
        (
            "alter role bob password /* new */ 'secret'; select 'b'",
            "alter role bob password /* new */ '***'; select 'b'",
        ),
        (
            "alter role bob password null valid until '2030-01-01'",
            "alter role bob password null valid until '2030-01-01'",
        ),
        (
            "alter role bob password secret",
            "alter role bob password '***'",
        ),
        (
            "alter role bob password \"secret\"",
            "alter role bob password '***'",
        ),
        (
            "alter role bob password 12345",
            "alter role bob password '***'",
        ),
        (
            "alter role bob connection limit 5 password 'x'",
            "alter role bob connection limit 5 password '***'",
        ),
        (
            "create user mapping for bob server s options (user 'bob', password 'secret')",
            "create user mapping for bob server s options (user 'bob', password '***')",
        ),
        (
            "alter user mapping for u server s options (set U&\"p\\0061ss\" 'secret')",
            "alter user mapping for u server s options (set U&\"p\\0061ss\" '***')",
        ),
        (
            "create server s foreign data wrapper w options (host 'h', \"sslPassword\" 'x')",
            "create server s foreign data wrapper w options (host 'h', \"sslPassword\" '***')",
        ),
        (
            "create subscription s connection 'host=h password=x' publication p",
            "create subscription s connection '***' publication p",
        ),
        (
            "select dblink('host=h password=x', 'select ''a''')",
            "select dblink('***', 'select ''a''')",
        ),
        (
            "select dblink_connect('postgres://u:x@h/d')",
            "select dblink_connect('***')",
        ),
        (
            "select 'https://example.com/a'",
            "select 'https://example.com/a'",
        ),
        (
            "update users set password = 'x', name = 'bob'",
            "update users set password = '***', name = 'bob'",
        ),
        (
            "select * from users where password is not null and name = 'bob'",
            "select * from users where password is not null and name = 'bob'",
        ),
        (
            "select * from flags where name = 'password_rules'",
            "select * from flags where name = 'password_rules'",
        ),
        (
            "select xmlparse(document '<a xmlns=\"http://a:80/b\"/>')",
            "select xmlparse(document '<a xmlns=\"http://a:80/b\"/>')",
        ),
        (
            "select dblink_connect('postgres://u:x",
            "select dblink_connect('***'",
        ),
        (
            "select * from r where name like 'old_passwd%' or name = 'old_passwd'",
            "select * from r where name like 'old_passwd%' or name = 'old_passwd'",
        ),
        (
            "select 'please reset my password soon'",
            "select 'please reset my password soon'",
        ),
        (
            "execute format('alter role %I password %L', 'bob', 'x')",
            "execute format('***', '***', '***')",
        ),
        (
            "do $$ begin execute 'alter role b password ' || quote_literal('x'); end $$",
            "do $$ begin execute '***' || quote_literal('***'); end $$",
        ),
        (
            "do $$ begin alter role b password 'x'; perform 'y'; end $$",
            "do $$ begin alter role b password '***'; perform 'y'; end $$",
        ),
        ("-- password 'x'\nselect 1", "'***'\nselect 1"),
        (
            "alter role b password 'x'\n  'y' login",
            "alter role b password '***' login",
        ),
        (
            "alter role b password 'cut off",
            "alter role b password '***'",
        ),
        (
            "set password_encryption to 'md5'",
            "set password_encryption to '***'",
        ),
        (
            "alter role b password U&'\\0078' uescape '!'",
            "alter role b password '***' uescape '!'",
        ),
    ] {
        assert_eq!(redact(sql.as_bytes()), becomes, "{sql}");
    }
}

#[test]
fn both_readings_count() {
    // With standard_conforming_strings off the first text goes on to the third quote, and PASSWORD is a keyword.
    let redacted = redact(br"alter role b '\' password 'x'; select '', ' password ', 'x'");
    assert!(!redacted.contains('x'), "{redacted}");
}

#[test]
fn what_is_not_utf8_is_not_guessed_at() {
    assert_eq!(redact(b"select '\xe4'"), "select '\u{fffd}'");
    assert!(redact(b"alter role b password '\xe4x'").starts_with("(left out"));
}

/// Passwords out of characters that are nowhere else in what is made here.
const SECRET: &str = r#"[JQXZ]([JQXZ' $\\"é-]{0,12}[JQXZ])?"#;

/// The secret as a literal.
fn literal(secret: &str, how: u8) -> String {
    let doubled = secret.replace('\'', "''");
    match how {
        0 => format!("'{doubled}'"),
        1 => format!("E'{}'", secret.replace('\\', "\\\\").replace('\'', "\\'")),
        2 => format!("e'{}'", doubled.replace('\\', "\\\\")),
        3 => format!("U&'{}'", doubled.replace('\\', "\\\\")),
        4 if !secret.contains("$$") && !secret.ends_with('$') => format!("$${secret}$$"),
        5 if !secret.contains("$a1$") => format!("$a1${secret}$a1$"),
        6 => {
            let middle = doubled
                .char_indices()
                .map(|(i, _)| i)
                .find(|i| *i > 0 && !doubled[..*i].ends_with('\''));
            let (a, b) = doubled.split_at(
                middle
                    .filter(|i| !doubled[*i..].starts_with('\''))
                    .unwrap_or(0),
            );
            format!("'{a}'\n -- more\n '{b}'")
        }
        _ => format!("N'{doubled}'"),
    }
}

fn blank(how: u8) -> &'static str {
    [" ", "\n", "\t /* ' */ ", " -- '\n", " /* /* $$ */ */ "][usize::from(how) % 5]
}

/// Statements with a place for a password; `_` is white space or a comment.
const STATEMENTS: &[&str] = &[
    "ALTER_ROLE_bob_PASSWORD_@",
    "alter_user_\"PASSWORD\"_with_encrypted_password_@_valid_until_'2030-01-01'",
    "CREATE_USER_bob_LOGIN_Password_@_in_role_a",
    "create_group_bob_password_@",
    "create_user_mapping_for_current_user_server_s_options_(user_'bob',password_@)",
    "alter_user_mapping_for_bob_server_s_options_(set_\"Password\"_@,add_a_'b')",
    "create_server_s_foreign_data_wrapper_w_options_(password_@)",
    "do_$body$_begin_ALTER_ROLE_bob_PASSWORD_@;_end_$body$",
];

const AROUND: &[&str] = &[
    "",
    "select 'it''s';",
    "select 'c:\\';",
    "select E'\\'';",
    "select $f$ ' $f$, $1, a$b;",
    "/* ' */;",
    "select U&\"a'b\", \"it's\";",
    "select 'a'\n'b';",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn no_password_survives(
        secret in SECRET, how in 0u8..8, blanks in prop::collection::vec(0u8..5, 24),
        statement in 0..STATEMENTS.len(), before in 0..AROUND.len(), after in 0..AROUND.len(),
        cut in prop::option::of(0usize..200),
    ) {
        let mut blanks = blanks.into_iter().cycle();
        let words: Vec<&str> = STATEMENTS[statement].split('_').collect();
        let mut sql = AROUND[before].to_owned();
        for (i, word) in words.iter().enumerate() {
            if i > 0 {
                sql.push_str(blank(blanks.next().unwrap_or(0)));
            }
            sql.push_str(&word.replace('@', &literal(&secret, how)));
        }
        sql.push(';');
        sql.push_str(AROUND[after]);
        // As it is, and cut off anywhere.
        let shown = match cut {
            Some(n) => postern_sdk::event::beginning(sql.as_bytes(), n),
            None => sql.as_bytes(),
        };
        let redacted = redact(shown);
        prop_assert!(!redacted.contains(['J', 'Q', 'X', 'Z']), "{sql}\n-> {redacted}");
    }

    #[test]
    fn any_text_can_be_read(sql in r#"(password|connection|user mapping|'|\$\$|\$a\$|E'|\\|;|"|--|/\*|\*/|\n| |ä|x){0,40}"#) {
        let redacted = redact(sql.as_bytes());
        prop_assert!(redacted.len() <= sql.len() * 5 + 5);
    }

    #[test]
    fn texts_without_a_word_of_it_stay(sql in "[a-b'$;\"=() \n-]{0,40}") {
        prop_assert_eq!(redact(sql.as_bytes()), sql.as_str());
    }
}
