use super::*;
use crate::cli::{Cli, Command as Cmd};
use clap::Parser;

fn line(words: &[&str]) -> Result<Line, Failure> {
    split(words.iter().map(OsString::from).collect())
}

fn os(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

#[test]
fn a_plain_name() {
    assert_eq!(
        line(&["web-1"]),
        Ok(Line {
            before: vec![],
            login: None,
            name: "web-1".into(),
            after: vec![],
            login_by_option: false
        })
    );
}

#[test]
fn options_before_and_after_belong_to_ssh() {
    let got = line(&[
        "-vvA",
        "-L",
        "8080:x:80",
        "-p2",
        "root@web-1",
        "-N",
        "ls",
        "-l",
    ])
    .unwrap();
    assert_eq!(got.before, os(&["-vvA", "-L", "8080:x:80", "-p2"]));
    assert_eq!(
        (got.login.as_deref(), got.name.as_str()),
        (Some("root"), "web-1")
    );
    assert_eq!(got.after, os(&["-N", "ls", "-l"]));
    assert!(
        !got.login_by_option,
        "-l after the command is the command's"
    );
}

#[test]
fn an_argument_may_be_attached_or_follow() {
    assert_eq!(line(&["-Tlroot", "web-1"]).unwrap().name, "web-1");
    let got = line(&["-Tl", "root", "web-1"]).unwrap();
    assert!(got.login_by_option);
    assert!(line(&["-o", "User=root", "web-1"]).unwrap().login_by_option);
    assert!(line(&["-oUser root", "web-1"]).unwrap().login_by_option);
    assert!(
        !line(&["-oUserKnownHostsFile=x", "web-1"])
            .unwrap()
            .login_by_option
    );
    assert_eq!(line(&["--", "web-1", "-x"]).unwrap().after, os(&["-x"]));
}

#[test]
fn a_missing_name_or_argument_is_said() {
    for bad in [&["-v"][..], &["@web-1"], &["root@"], &["--"]] {
        assert!(
            line(bad)
                .unwrap_err()
                .to_string()
                .starts_with("which server?"),
            "{bad:?}"
        );
    }
    assert_eq!(
        line(&["-L"]).unwrap_err().to_string(),
        "ssh option -L needs an argument"
    );
}

#[test]
fn a_login_may_contain_an_at_sign() {
    assert_eq!(
        line(&["alice@corp@web-1"]).unwrap().login.as_deref(),
        Some("alice@corp")
    );
}

#[test]
fn the_whole_line_reaches_us_through_clap() {
    let parsed = Cli::try_parse_from([
        "postern",
        "ssh",
        "--home",
        "/h",
        "-v",
        "-o",
        "LogLevel=DEBUG",
        "root@web-1",
        "grep",
        "--json",
        "-h",
        "x",
    ])
    .unwrap();
    let Cmd::Ssh(args) = parsed.command else {
        panic!("not ssh")
    };
    assert_eq!(
        args.args,
        os(&[
            "-v",
            "-o",
            "LogLevel=DEBUG",
            "root@web-1",
            "grep",
            "--json",
            "-h",
            "x"
        ])
    );
    assert!(!parsed.global.json);
    assert_eq!(parsed.global.home, Some("/h".into()));
}

#[test]
fn another_kind_says_what_to_run() {
    let profile = Profile {
        cluster: "demo".into(),
        proxy: "p:443".into(),
        user: "a".into(),
        ca_pins: vec![],
        not_after: 1,
        roles: vec![],
        logins: vec![],
    };
    assert_eq!(
        server("orders.tcp", &profile).unwrap_err().to_string(),
        "orders.tcp is not a server but of kind tcp; run: postern proxy orders.tcp"
    );
    assert_eq!(
        server("web-1", &profile),
        server("web-1.ssh.demo", &profile)
    );
}
