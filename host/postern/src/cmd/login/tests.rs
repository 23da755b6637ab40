use super::*;
use clap::Parser;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: LoginArgs,
}

fn args(line: &[&str]) -> LoginArgs {
    Line::try_parse_from(std::iter::once("login").chain(line.iter().copied()))
        .unwrap()
        .args
}

fn last() -> Profile {
    Profile {
        cluster: "demo".into(),
        proxy: "p:443".into(),
        user: "alice".into(),
        ca_pins: vec![CaPin([1; 32])],
        not_after: 0,
        roles: vec![],
        logins: vec![],
    }
}

fn local() -> String {
    "localuser".into()
}

#[test]
fn the_last_login_is_repeated() {
    let p = plan(args(&[]), Some(&last()), local).unwrap();
    assert_eq!(
        p,
        Plan {
            proxy: "p:443".into(),
            cluster: Some("demo".into()),
            user: "alice".into(),
            pins: vec![CaPin([1; 32])],
            code: None
        }
    );
}

#[test]
fn another_proxy_or_cluster_inherits_nothing() {
    let p = plan(args(&["--proxy", "other"]), Some(&last()), local).unwrap();
    assert_eq!(
        p,
        Plan {
            proxy: "other:443".into(),
            cluster: None,
            user: "localuser".into(),
            pins: vec![],
            code: None
        }
    );
    let p = plan(args(&["--cluster", "second"]), Some(&last()), local).unwrap();
    assert_eq!((p.pins, p.user.as_str()), (vec![], "localuser"));
}

#[test]
fn a_given_pin_replaces_the_remembered_one() {
    let pin = CaPin([2; 32]).to_string();
    assert_eq!(
        plan(args(&["--ca-pin", &pin]), Some(&last()), local)
            .unwrap()
            .pins,
        vec![CaPin([2; 32])]
    );
}

#[test]
fn a_link_says_everything() {
    let pin = CaPin([3; 32]);
    let p = plan(
        args(&[&format!(
            "https://new.example.com/enroll?cluster=demo&user=bob&code=c0de&ca_pin={pin}"
        )]),
        Some(&last()),
        local,
    )
    .unwrap();
    assert_eq!(
        p,
        Plan {
            proxy: "new.example.com:443".into(),
            cluster: Some("demo".into()),
            user: "bob".into(),
            pins: vec![pin],
            code: Some("c0de".into())
        }
    );
    assert!(Line::try_parse_from(["login", "https://x/enroll?a", "--user", "eve"]).is_err());
}

#[test]
fn nothing_known_is_a_usage_error() {
    let e = plan(args(&[]), None, local).unwrap_err();
    assert_eq!(e.code(), 2);
    assert!(
        e.to_string().contains("postern login --proxy HOST:PORT"),
        "{e}"
    );
}

#[test]
fn a_bundle_without_the_pinned_ca_is_not_stored() {
    let host = postern_identity::Ca::generate(CaKind::Host, "demo")
        .unwrap()
        .public();
    let bundle = TrustBundle {
        cluster: "demo".into(),
        cas: vec![host.clone()],
    };
    let credentials = UserCredentials {
        trust_json: serde_json::to_string(&bundle).unwrap(),
        ..Default::default()
    };
    assert_eq!(trust_of(&credentials, "demo", &[host.pin()]), Ok(bundle));
    assert!(
        trust_of(&credentials, "demo", &[CaPin([9; 32])])
            .unwrap_err()
            .to_string()
            .contains("nothing was stored")
    );
    assert!(trust_of(&credentials, "other", &[host.pin()]).is_err());
}

#[test]
fn the_greeting_says_until_when() {
    let mut p = last();
    p.not_after = 1_000_000 + 12 * 3600;
    let text = greeting(&p, 1_000_000);
    assert!(
        text.starts_with("Logged in to cluster demo as alice for 12 h ("),
        "{text}"
    );
}
