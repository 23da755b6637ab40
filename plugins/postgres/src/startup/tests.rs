use super::*;

fn message(code: u32, parameters: &[&str]) -> Vec<u8> {
    let mut body = Vec::new();
    for p in parameters {
        body.extend_from_slice(p.as_bytes());
        body.push(0);
    }
    body.push(0);
    wire::untyped(code, &body)
}

const V3: u32 = 3 << 16;

fn read(parameters: &[&str]) -> Result<Startup, Refused> {
    match first(&message(V3, parameters))? {
        First::Startup(s) => Ok(s),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_database_is_named_after_the_user() {
    let s = read(&["user", "app", "application_name", "psql"]).unwrap();
    assert_eq!((s.user.as_str(), s.database.as_str()), ("app", "app"));
    assert!(!s.replication && s.minor == 0);
    let s = read(&["database", "orders", "user", "app"]).unwrap();
    assert_eq!((s.user.as_str(), s.database.as_str()), ("app", "orders"));
    let s = read(&["database", "", "user", "app"]).unwrap();
    assert_eq!(s.database, "app");
}

#[test]
fn all_other_parameters_are_kept() {
    let s = read(&[
        "options",
        "-c role=a",
        "user",
        "app",
        "replication",
        "off",
        "role",
        "b",
        "role",
        "",
    ]);
    let pair = |n: &str, v: &str| (n.as_bytes().to_vec(), v.as_bytes().to_vec());
    assert_eq!(
        s.unwrap().settings,
        [
            pair("options", "-c role=a"),
            pair("role", "b"),
            pair("role", "")
        ]
    );
}

#[test]
fn it_is_read_only_when_whole_and_goes_on_as_it_came() {
    let mut bytes = message(V3 + 2, &["user", "app"]);
    let whole = bytes.clone();
    bytes.extend_from_slice(b"more");
    for n in 0..whole.len() {
        assert_eq!(first(&bytes[..n]), Ok(First::Partial), "{n}");
    }
    let Ok(First::Startup(s)) = first(&bytes) else {
        panic!("not read");
    };
    assert_eq!((s.bytes, s.minor), (whole, 2));
}

#[test]
fn replication_is_whatever_is_not_clearly_none() {
    for (value, is) in [
        ("true", true),
        ("database", true),
        ("on", true),
        ("o", true),
        ("1", true),
        ("", true),
        ("FALSE", false),
        ("f", false),
        ("off", false),
        ("no", false),
        ("0", false),
        ("00", true),
    ] {
        let s = read(&["user", "app", "replication", value]).unwrap();
        assert_eq!(s.replication, is, "{value}");
    }
}

#[test]
fn what_is_decided_about_is_what_the_server_uses() {
    assert_eq!(read(&["user", "a", "user", "b"]).unwrap_err().0, "08P01");
    assert_eq!(read(&["user", &"a".repeat(64)]).unwrap_err().0, "28000");
    assert!(read(&["user", &"a".repeat(63)]).is_ok());
    assert_eq!(read(&["user", ""]).unwrap_err().0, "28000");
    assert_eq!(read(&["database", "x"]).unwrap_err().0, "28000");
    let bytes = wire::untyped(V3, b"user\0\xff\0\0");
    assert!(first(&bytes).unwrap_err().1.contains("UTF-8"));
    let bytes = wire::untyped(V3, b"user\0a\0\0database\0b\0");
    assert!(first(&bytes).unwrap_err().1.contains("after its end"));
    let bytes = wire::untyped(V3, b"user\0a");
    assert!(first(&bytes).is_err());
}

#[test]
fn requests_before_the_start() {
    assert_eq!(
        first(&ssl_request()),
        Ok(First::Encryption { len: 8, gss: false })
    );
    assert_eq!(
        first(&wire::untyped(GSS, &[])),
        Ok(First::Encryption { len: 8, gss: true })
    );
    assert!(first(&wire::untyped(SSL, b"x")).is_err());
    let key = b"\0\0\x01\x02secr".to_vec();
    assert_eq!(
        first(&cancel_request(&key)),
        Ok(First::Cancel { len: 16, key })
    );
    assert!(first(&cancel_request(b"1234567")).is_err());
    assert!(first(&cancel_request(&[7; 257])).is_err());
}

#[test]
fn strangers_are_told_what_they_are() {
    for (bytes, says) in [
        (&b"GET / HTTP/1.1\r\n"[..], "HTTP"),
        (b"SSH-2.0-x\r\n", "SSH"),
        (b"\x16\x03\x01\x02\0\x01", "sslmode"),
        (b"\0\0\0\x07\0\0\0\0", "no client"),
        (b"\0\0\x27\x11", "no client"),
    ] {
        let Refused(code, why) = first(bytes).unwrap_err();
        assert_eq!(code, "08P01");
        assert!(why.contains(says), "{why}");
    }
    let Refused(code, why) = first(&message(2 << 16, &["user", "a"])).unwrap_err();
    assert_eq!(code, "0A000");
    assert!(why.contains("2.0"), "{why}");
}
