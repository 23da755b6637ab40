use super::*;
use proptest::prelude::*;

const LABEL: &str = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?";
const CLUSTER: &str = "[a-z0-9]{1,20}(\\.[a-z0-9]{1,20}){0,3}";

/// The rule once more, in another way.
fn is_label(s: &str) -> bool {
    let ok = |c: &char| matches!(c, 'a'..='z' | '0'..='9' | '-');
    s.chars().filter(ok).count() == s.chars().count()
        && (1..=63).contains(&s.len())
        && !s.starts_with('-')
        && !s.ends_with('-')
}

proptest! {
    #[test]
    fn labels_are_labels(s in LABEL) {
        prop_assert!(check_label("name", &s).is_ok());
    }

    #[test]
    fn check_label_is_the_rule(s in "[a-cA-C0-1. _é-]{0,70}") {
        prop_assert_eq!(check_label("name", &s).is_ok(), is_label(&s));
    }

    #[test]
    fn anything_is_judged_without_panic(s in ".*", cluster in CLUSTER) {
        let _ = (check_label("x", &s), check_cluster_name(&s), check_dns_name("x", &s));
        let _ = (check_user_name(&s), check_host_id(&s), ResourceId::from_dns(&s, &cluster));
        let _ = ResourceId::from_dns(&format!("{s}.{cluster}"), &cluster);
    }

    #[test]
    fn dns_round_trips(kind in LABEL, name in LABEL, cluster in CLUSTER) {
        prop_assume!(!RESERVED_KINDS.contains(&kind.as_str()));
        let id = ResourceId::new(&kind, &name).unwrap();
        let dns = id.dns(&cluster);
        prop_assume!(dns.len() <= MAX_DNS);
        prop_assert_eq!(ResourceId::from_dns(&dns.to_uppercase(), &cluster), Some(id.clone()));
        prop_assert_eq!(ResourceId::from_dns(&dns, &cluster), Some(id));
        // Never a name of the cluster's own, or of a cluster whose name ours ends with.
        prop_assert!(dns != auth_dns(&cluster) && dns != proxy_dns(&cluster));
        let other = format!("x{cluster}");
        prop_assert_eq!(ResourceId::from_dns(&dns, &other), None);
    }

    #[test]
    fn what_parses_has_one_spelling(dns in "[a-z.-]{0,12}", cluster in "[a-z]{1,2}") {
        if let Some(id) = ResourceId::from_dns(&dns, &cluster) {
            prop_assert_eq!(id.dns(&cluster), dns);
        }
    }

    #[test]
    fn user_names_need_no_escape(name in "[a-zA-Z0-9_][a-zA-Z0-9._@+-]{0,63}") {
        prop_assert!(check_user_name(&name).is_ok());
        let uri = spiffe_user("demo", &name);
        prop_assert_eq!(uri.strip_prefix("spiffe://demo/user/"), Some(name.as_str()));
    }
}

#[test]
fn user_names_that_would_change_a_path_are_refused() {
    for bad in ["", ".", "..", "a/b", "a b", "-rf", "@x", "ä", "a%2f", "a\n"] {
        assert!(check_user_name(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn names_of_the_cluster_itself_are_no_resources() {
    for kind in RESERVED_KINDS {
        assert!(ResourceId::new(kind, "x").is_err());
        assert_eq!(
            ResourceId::from_dns(&format!("x.{kind}.demo"), "demo"),
            None
        );
    }
    for dns in [
        "auth.demo",
        "demo",
        ".demo",
        "a.b.c.demo",
        "a.ssh.demo.",
        "a.ssh.xdemo",
        "a..demo",
    ] {
        assert_eq!(ResourceId::from_dns(dns, "demo"), None, "{dns}");
    }
    assert_eq!(
        ResourceId::from_dns("Web-1.SSH.demo", "demo")
            .unwrap()
            .to_string(),
        "ssh/web-1"
    );
}

#[test]
fn cluster_names() {
    for good in ["demo", "eu.example.com", &format!("a{}", ".a".repeat(99))] {
        assert!(check_cluster_name(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "A",
        "a_b",
        &format!("aa{}", ".a".repeat(100)),
    ] {
        assert!(check_cluster_name(bad).is_err(), "{bad}");
    }
}

#[test]
fn errors_name_the_thing_the_value_and_the_rule_and_stay_short() {
    let e = check_label("resource name", "Web_1").unwrap_err();
    assert_eq!(
        e.to_string(),
        "resource name \"Web_1\" may only contain lower-case letters, digits and '-'"
    );
    let long = check_label("kind", &"é".repeat(10_000)).unwrap_err();
    assert!(long.to_string().len() < 300);
}
