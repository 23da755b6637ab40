//! The rules as tables, as properties, and against a second reading of them.

use crate::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

type Labels = BTreeMap<String, String>;
type Traits = BTreeMap<String, Vec<String>>;

fn role(json: &str) -> Role {
    serde_json::from_str(json).unwrap()
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .collect()
}

fn ask(roles: &[Role], traits: &Traits, labels: &Labels, asked: &[(&str, &str)]) -> Decision {
    let who = Subject {
        user: "alice",
        roles,
        traits,
    };
    decide(
        &who,
        &Target {
            kind: "ssh",
            name: "web-1",
            labels,
        },
        asked,
    )
}

fn reason(decision: Decision) -> String {
    match decision {
        Decision::Deny { reason } => reason,
        Decision::Allow { role } => panic!("allowed by {role}"),
    }
}

fn traits(logins: &[&str]) -> Traits {
    BTreeMap::from([(
        "logins".to_owned(),
        logins.iter().map(|s| s.to_string()).collect(),
    )])
}

const ACCESS: &str =
    r#"{"name":"access","allow":{"ssh":{"labels":{"*":["*"]},"logins":["{{internal.logins}}"]}}}"#;

#[test]
fn the_default_role_allows_the_users_own_logins() {
    let roles = [role(ACCESS)];
    let (none, mine) = (labels(&[]), traits(&["alice", "deploy"]));
    assert_eq!(
        ask(&roles, &mine, &none, &[("logins", "deploy")]),
        Decision::Allow {
            role: "access".into()
        }
    );
    assert_eq!(
        reason(ask(&roles, &mine, &none, &[("logins", "root")])),
        r#"no role of alice (access) allows login "root" on ssh "web-1""#
    );
    let who = Subject {
        user: "alice",
        roles: &roles,
        traits: &mine,
    };
    assert_eq!(
        allowed_principals(&who, "ssh", "logins"),
        ["alice", "deploy"]
    );
    assert_eq!(allowed_principals(&who, "tcp", "logins"), [""; 0]);
    // Another kind is not covered.
    let target = Target {
        kind: "tcp",
        name: "web-1",
        labels: &none,
    };
    assert_eq!(
        reason(decide(&who, &target, &[])),
        r#"no role of alice (access) allows tcp "web-1""#
    );
}

#[test]
fn reasons_name_what_is_missing() {
    let nothing = Traits::new();
    let prod = labels(&[("env", "prod")]);
    assert_eq!(
        reason(ask(&[], &nothing, &prod, &[])),
        r#"alice has no roles, so ssh "web-1" is not allowed"#
    );
    let dev =
        role(r#"{"name":"dev","allow":{"ssh":{"labels":{"env":["dev"]},"logins":["root"]}}}"#);
    assert_eq!(
        reason(ask(&[dev], &nothing, &prod, &[("logins", "root")])),
        r#"no role of alice (dev) allows ssh "web-1""#
    );
    let a = role(r#"{"name":"a","allow":{"*":{"labels":{"*":["*"]},"db_users":["app"]}}}"#);
    let b = role(r#"{"name":"b","allow":{"*":{"labels":{"*":["*"]},"databases":["orders"]}}}"#);
    assert_eq!(
        reason(ask(
            &[b, a],
            &nothing,
            &prod,
            &[("db_users", "app"), ("databases", "orders")]
        )),
        r#"no single role of alice (a, b) allows db user "app" and database "orders" together on ssh "web-1""#
    );
}

#[test]
fn deny_wins_and_says_which_role() {
    let all = role(r#"{"name":"all","allow":{"ssh":{"labels":{"*":["*"]},"logins":["*"]}}}"#);
    let with = |deny: &str| {
        [
            all.clone(),
            role(&format!(
                r#"{{"name":"contractors","deny":{{"ssh":{deny}}}}}"#
            )),
        ]
    };
    let nothing = Traits::new();
    let (prod, dev) = (labels(&[("env", "prod")]), labels(&[("env", "dev")]));
    let root = [("logins", "root")];

    // Labels and principals: both are needed.
    let both = with(r#"{"labels":{"env":["prod"]},"logins":["root"]}"#);
    assert_eq!(
        reason(ask(&both, &nothing, &prod, &root)),
        r#"role contractors denies login "root" on ssh resources labelled env=prod"#
    );
    assert!(ask(&both, &nothing, &prod, &[("logins", "app")]).is_allow());
    assert!(ask(&both, &nothing, &dev, &root).is_allow());
    assert!(
        ask(&both, &nothing, &prod, &[]).is_allow(),
        "the resource is still seen"
    );

    // Principals alone: everywhere in the kind.
    let everywhere = with(r#"{"logins":["root"]}"#);
    assert_eq!(
        reason(ask(&everywhere, &nothing, &dev, &root)),
        r#"role contractors denies login "root" on all ssh resources"#
    );

    // Labels alone: the whole resource, for any login and for seeing it.
    let whole = with(r#"{"labels":{"env":["prod"]}}"#);
    for asked in [&root[..], &[]] {
        assert_eq!(
            reason(ask(&whole, &nothing, &prod, asked)),
            "role contractors denies ssh resources labelled env=prod"
        );
    }
    assert!(ask(&whole, &nothing, &dev, &root).is_allow());

    // Neither: the kind.
    assert_eq!(
        reason(ask(&with("{}"), &nothing, &dev, &[])),
        "role contractors denies all ssh resources"
    );
}

#[test]
fn the_kind_star_is_every_kind() {
    let allow = role(r#"{"name":"a","allow":{"*":{"labels":{"*":["*"]},"logins":["x"]}}}"#);
    let deny = role(r#"{"name":"d","deny":{"*":{"logins":["x"]}}}"#);
    let (nothing, none) = (Traits::new(), labels(&[]));
    assert!(
        ask(
            std::slice::from_ref(&allow),
            &nothing,
            &none,
            &[("logins", "x")]
        )
        .is_allow()
    );
    assert!(!ask(&[allow, deny], &nothing, &none, &[("logins", "x")]).is_allow());
}

#[test]
fn labels_and_their_values() {
    let nothing = Traits::new();
    let mine = BTreeMap::from([("team".to_owned(), vec!["pay".to_owned()])]);
    let can = |rule: &str, have: &[(&str, &str)], traits: &Traits| {
        let role = role(&format!(
            r#"{{"name":"r","allow":{{"ssh":{{"labels":{rule}}}}}}}"#
        ));
        ask(&[role], traits, &labels(have), &[]).is_allow()
    };
    assert!(can(
        r#"{"env":["prod","stage"],"team":["pay"]}"#,
        &[("env", "stage"), ("team", "pay")],
        &nothing
    ));
    assert!(
        !can(
            r#"{"env":["prod"],"team":["pay"]}"#,
            &[("env", "prod")],
            &nothing
        ),
        "all labels"
    );
    assert!(
        !can(r#"{"env":["*"]}"#, &[("team", "x")], &nothing),
        "the label has to be there"
    );
    assert!(can(r#"{"*":["prod"]}"#, &[("x", "prod")], &nothing));
    assert!(!can(r#"{"*":["prod"]}"#, &[("x", "dev")], &nothing));
    assert!(can(r#"{"*":["*"]}"#, &[], &nothing));
    assert!(
        !can("{}", &[("env", "prod")], &nothing),
        "no labels allow nothing"
    );
    assert!(can(
        r#"{"team":["{{external.team}}"]}"#,
        &[("team", "pay")],
        &mine
    ));
    assert!(!can(
        r#"{"team":["{{external.team}}"]}"#,
        &[("team", "pay")],
        &nothing
    ));
}

#[test]
fn what_is_not_understood_never_allows_and_always_denies() {
    let nothing = Traits::new();
    let prod = labels(&[("env", "prod")]);
    let all = role(r#"{"name":"all","allow":{"ssh":{"labels":{"*":["*"]},"logins":["*"]}}}"#);
    for bad in ["^(", "{{internal.", "web-[1]", ""] {
        let allow = role(&format!(
            r#"{{"name":"r","allow":{{"ssh":{{"labels":{{"env":["{bad}"]}}}}}}}}"#
        ));
        assert!(
            !ask(std::slice::from_ref(&allow), &nothing, &prod, &[]).is_allow(),
            "{bad}"
        );
        assert!(allow.validate().is_err());
        for deny in [
            format!(r#"{{"labels":{{"env":["{bad}"]}}}}"#),
            format!(r#"{{"labels":{{"other":["{bad}"]}}}}"#),
            format!(r#"{{"logins":["{bad}"]}}"#),
            r#"{"labels":{"env":[]}}"#.to_owned(),
            r#"{"logins":[]}"#.to_owned(),
        ] {
            let deny = role(&format!(r#"{{"name":"d","deny":{{"ssh":{deny}}}}}"#));
            let roles = [all.clone(), deny];
            let why = reason(ask(&roles, &nothing, &prod, &[("logins", "root")]));
            assert!(why.contains("correct the role"), "{why}");
            let mine = traits(&["root"]);
            let who = Subject {
                user: "alice",
                roles: &[role(ACCESS), roles[1].clone()],
                traits: &mine,
            };
            assert_eq!(allowed_principals(&who, "ssh", "logins"), [""; 0]);
        }
    }
}

#[test]
fn principals_for_certificates() {
    let roles = [
        role(ACCESS),
        role(
            r#"{"name":"ops","allow":{"ssh":{"labels":{"env":["prod"]},"logins":["root","adm-*","*","^x$"]}},"deny":{"ssh":{"logins":["deploy"]}}}"#,
        ),
        role(r#"{"name":"nolabels","allow":{"ssh":{"logins":["never"]}}}"#),
        // Denied in some places only: the agent decides there.
        role(r#"{"name":"prod","deny":{"ssh":{"labels":{"env":["prod"]},"logins":["root"]}}}"#),
    ];
    let mine = traits(&["alice", "deploy", ""]);
    let who = Subject {
        user: "alice",
        roles: &roles,
        traits: &mine,
    };
    assert_eq!(allowed_principals(&who, "ssh", "logins"), ["alice", "root"]);
}

#[test]
fn forwarding_and_lifetimes() {
    let open = role(ACCESS);
    let mut closed = role(ACCESS);
    closed.name = "closed".into();
    closed.options = Options {
        max_session_ttl_secs: 60,
        port_forwarding: false,
        ..Options::default()
    };
    let other = role(
        r#"{"name":"other","allow":{"ssh":{"labels":{"env":["prod"]}}},"options":{"port_forwarding":false}}"#,
    );
    let (nothing, none) = (Traits::new(), labels(&[]));
    let forward = |roles: &[Role]| {
        let who = Subject {
            user: "alice",
            roles,
            traits: &nothing,
        };
        may_forward(
            &who,
            &Target {
                kind: "ssh",
                name: "web-1",
                labels: &none,
            },
        )
    };
    assert!(forward(std::slice::from_ref(&open)));
    assert!(
        forward(&[open.clone(), other]),
        "a role for other resources has no say here"
    );
    assert!(!forward(&[open.clone(), closed.clone()]));
    assert!(!forward(&[]));
    assert!(!forward(&[
        open.clone(),
        role(r#"{"name":"d","deny":{"ssh":{}}}"#)
    ]));
    assert_eq!(session_ttl_secs(&[open.clone(), closed]), 60);
    assert_eq!(session_ttl_secs(&[open]), 12 * 3600);
    assert_eq!(session_ttl_secs(&[]), 12 * 3600);
}

#[test]
fn validation_says_which_part() {
    role(ACCESS).validate().unwrap();
    for (json, want) in [
        (
            r#"{"name":"A b"}"#,
            r#"role "A b": the name "A b" is no DNS label"#,
        ),
        (
            r#"{"name":"r","allow":{"ssh":{"labels":{"env":["^("]}}}}"#,
            r#"allow "ssh": label "env": "^(" is no regular expression: unclosed group"#,
        ),
        (
            r#"{"name":"r","allow":{"ssh":{"logins":["root"]}}}"#,
            "without labels it allows nothing",
        ),
        (
            r#"{"name":"r","deny":{"ssh":{"login":["root"]}}}"#,
            r#"ssh has no principals "login"; it has: logins"#,
        ),
        (
            r#"{"name":"r","deny":{"x":{"Up":["root"]}}}"#,
            r#"principal type "Up""#,
        ),
        (
            r#"{"name":"r","deny":{"SSH":{}}}"#,
            r#"the kind "SSH" is no DNS label"#,
        ),
        (
            r#"{"name":"r","deny":{"ssh":{"logins":[]}}}"#,
            "has no values",
        ),
        (
            r#"{"name":"r","options":{"max_session_ttl_secs":0}}"#,
            "nobody could log in",
        ),
    ] {
        let message = role(json).validate().unwrap_err().to_string();
        assert!(message.contains(want), "{message}");
    }
    assert!(serde_json::from_str::<Role>(r#"{"name":"r","alow":{}}"#).is_err());
    assert!(
        serde_json::from_str::<Role>(r#"{"name":"r","allow":{"ssh":{"lables":{"a":["b"]}}}}"#)
            .is_err()
    );
    let stored = serde_json::to_string(&role(ACCESS)).unwrap();
    assert_eq!(role(&stored), role(ACCESS));
}

#[test]
fn what_is_granted_has_a_name() {
    let json = |roles: &str| {
        format!(
            r#"{{"name":"r","allow":{{"postgres":{{"labels":{{"*":["*"]}},"db_roles":[{roles}]}}}},"options":{{"create_db_user":"drop"}}}}"#
        )
    };
    role(&json(r#""reader","{{external.team}}""#))
        .validate()
        .unwrap();
    for pattern in [r#""*""#, r#""read*""#, r#""^read""#] {
        let why = role(&json(pattern)).validate().unwrap_err().to_string();
        assert!(why.contains("is a pattern"), "{why}");
    }
    let all = r#"{"name":"r","deny":{"postgres":{"db_roles":["*"]}}}"#;
    role(all).validate().unwrap();
    let unknown = r#"{"name":"r","options":{"create_db_user":"forget"}}"#;
    assert!(serde_json::from_str::<Role>(unknown).is_err());
    let written = serde_json::to_string(&role(r#"{"name":"r"}"#)).unwrap();
    assert!(!written.contains("create_db_user"), "{written}");
}

/// Roles on postgres: name, environment, the rest of the rule, options.
fn db_role(name: &str, env: &str, rule: &str, options: &str) -> Role {
    role(&format!(
        r#"{{"name":"{name}","allow":{{"postgres":{{"labels":{{"env":["{env}"]}},"db_names":["orders"]{rule}}}}},"options":{{{options}}}}}"#
    ))
}

fn on_db<T>(roles: &[Role], env: &str, ask: impl Fn(&Subject<'_>, &Target<'_>) -> T) -> T {
    let (traits, labels) = (
        BTreeMap::from([("team".to_owned(), vec!["payments".to_owned()])]),
        labels(&[("env", env)]),
    );
    let who = Subject {
        user: "alice",
        roles,
        traits: &traits,
    };
    let target = Target {
        kind: "postgres",
        name: "db",
        labels: &labels,
    };
    ask(&who, &target)
}

const OWN: [(&str, &str); 2] = [("db_users", "alice"), ("db_names", "orders")];

#[test]
fn an_account_of_ones_own_is_allowed_where_a_role_makes_it() {
    let makes = db_role("makes", "dev", "", r#""create_db_user":"keep""#);
    let app = db_role("app", "*", r#","db_users":["app"]"#, "");
    let roles = [makes, app];
    let can = |env: &str, asked: &[(&str, &str)]| {
        on_db(&roles, env, |who, target| {
            decide(who, target, asked).is_allow()
        })
    };
    assert!(can("dev", &OWN));
    assert!(!can("prod", &OWN), "the other role names it not");
    assert!(!can("dev", &[("db_users", "bob"), ("db_names", "orders")]));
    assert!(!can("dev", &[("db_users", "alice"), ("db_names", "hr")]));
    assert!(!can("dev", &[("db_names", "alice")]), "another type");
    assert!(can("dev", &[("db_users", "app"), ("db_names", "orders")]));
    let listed = |env| {
        on_db(&roles, env, |who, _| {
            allowed_principals(who, "postgres", "db_users")
        })
    };
    assert_eq!(listed("dev"), ["alice", "app"]);
    let denied = role(r#"{"name":"no","deny":{"postgres":{"db_users":["alice"]}}}"#);
    let with = [roles[0].clone(), denied];
    assert!(!on_db(&with, "dev", |who, target| decide(who, target, &OWN)).is_allow());
}

#[test]
fn an_account_gets_what_the_roles_say_that_allow_the_session() {
    let made = |roles: &[Role], env: &str, asked: &[(&str, &str)]| {
        on_db(roles, env, |who, target| automatic(who, target, asked))
    };
    let keep = r#""create_db_user":"keep""#;
    let drop = r#""create_db_user":"drop""#;
    let reader = db_role(
        "a",
        "*",
        r#","db_roles":["reader","{{external.team}}"]"#,
        keep,
    );
    let writer = db_role("b", "dev", r#","db_roles":["writer","reader"]"#, drop);
    // It says what such accounts get, but makes none, and does not allow this one.
    let other = db_role("c", "*", r#","db_roles":["owner"]"#, "");
    let roles = [writer.clone(), reader.clone(), other.clone()];
    let want = |roles: &[&str], afterwards, named| {
        let roles = roles.iter().map(|r| (*r).to_owned()).collect();
        Some(Automatic {
            roles,
            afterwards,
            named,
        })
    };
    assert_eq!(
        made(&roles, "prod", &OWN),
        want(&["payments", "reader"], AfterSession::Keep, false)
    );
    assert_eq!(
        made(&roles, "dev", &OWN),
        want(&["payments", "reader", "writer"], AfterSession::Drop, false)
    );
    assert_eq!(made(&roles, "dev", &[("db_users", "app")]), None);
    assert_eq!(made(&[other], "dev", &OWN), None);
    // Allowed by its name besides.
    let named = db_role(
        "d",
        "*",
        r#","db_users":["al*"],"db_roles":["auditor"]"#,
        "",
    );
    assert_eq!(
        made(&[reader.clone(), named], "dev", &OWN),
        want(&["auditor", "payments", "reader"], AfterSession::Keep, true)
    );
    // What is denied is not granted; the session goes on.
    for (deny, left) in [
        (
            r#"{"labels":{"env":["dev"]},"db_roles":["wr*"]}"#,
            &["payments", "reader"][..],
        ),
        (r#"{"db_roles":["*"]}"#, &[]),
        (
            r#"{"labels":{"env":["prod"]},"db_roles":["*"]}"#,
            &["payments", "reader", "writer"],
        ),
    ] {
        let deny = role(&format!(r#"{{"name":"z","deny":{{"postgres":{deny}}}}}"#));
        let roles = [writer.clone(), reader.clone(), deny];
        assert_eq!(
            made(&roles, "dev", &OWN),
            want(left, AfterSession::Drop, false)
        );
    }
}

#[test]
fn locks_expire() {
    let lock = |expires_unix| Lock {
        target: "user:a".into(),
        reason: String::new(),
        expires_unix,
    };
    assert!(lock(None).holds_at(u64::MAX));
    assert!(lock(Some(10)).holds_at(9) && !lock(Some(10)).holds_at(10));
}

/// The rules once more, in the plainest words, one role and one question at a time.
mod reference {
    use super::*;

    pub fn decide(
        roles: &[Role],
        traits: &Traits,
        kind: &str,
        labels: &Labels,
        asked: &[(&str, &str)],
    ) -> bool {
        let rules = |rules: &BTreeMap<String, Rule>| -> Vec<Rule> {
            ["*", kind]
                .iter()
                .filter_map(|k| rules.get(*k))
                .cloned()
                .collect()
        };
        for role in roles {
            for rule in rules(&role.deny) {
                let here = rule.labels.is_empty() || select(&rule, traits, labels, true);
                let this = rule.principals.is_empty()
                    || asked.iter().any(|(p, v)| {
                        rule.principals
                            .get(*p)
                            .is_some_and(|l| list(l, traits, v, true))
                    });
                if here && this {
                    return false;
                }
            }
        }
        roles.iter().any(|role| {
            rules(&role.allow).iter().any(|rule| {
                !rule.labels.is_empty()
                    && select(rule, traits, labels, false)
                    && asked.iter().all(|(p, v)| {
                        rule.principals
                            .get(*p)
                            .is_some_and(|l| list(l, traits, v, false))
                    })
            })
        })
    }

    fn select(rule: &Rule, traits: &Traits, labels: &Labels, deny: bool) -> bool {
        rule.labels.iter().all(|(key, values)| {
            if deny && (values.is_empty() || values.iter().any(|v| broken(v))) {
                return true;
            }
            if key == "*" && values.iter().any(|v| v == "*") {
                return true;
            }
            labels
                .iter()
                .any(|(k, v)| (key == "*" || key == k) && list(values, traits, v, deny))
        })
    }

    fn broken(value: &str) -> bool {
        value.is_empty() || value == "^("
    }

    fn list(values: &[String], traits: &Traits, have: &str, deny: bool) -> bool {
        (deny && values.is_empty()) || values.iter().any(|value| one(value, traits, have, deny))
    }

    fn one(value: &str, traits: &Traits, have: &str, deny: bool) -> bool {
        match value {
            "{{internal.logins}}" => traits
                .get("logins")
                .is_some_and(|l| l.iter().any(|t| !t.is_empty() && t == have)),
            "*" => true,
            "a*" => have.starts_with('a'),
            "^b$" => have == "b",
            value if broken(value) => deny,
            value => value == have,
        }
    }
}

fn value() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "a",
        "b",
        "ab",
        "*",
        "a*",
        "^b$",
        "^(",
        "",
        "{{internal.logins}}",
    ])
    .prop_map(str::to_owned)
}

fn word() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "ab", "c", "*", "^b$"]).prop_map(str::to_owned)
}

fn values() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(value(), 0..3)
}

fn rule() -> impl Strategy<Value = Rule> {
    let key = prop::sample::select(vec!["env", "team", "*"]).prop_map(str::to_owned);
    let principal = prop::sample::select(vec!["logins", "groups"]).prop_map(str::to_owned);
    (
        prop::collection::btree_map(key, values(), 0..3),
        prop::collection::btree_map(principal, values(), 0..3),
    )
        .prop_map(|(labels, principals)| Rule { labels, principals })
}

fn rules() -> impl Strategy<Value = BTreeMap<String, Rule>> {
    let kind = prop::sample::select(vec!["ssh", "tcp", "*"]).prop_map(str::to_owned);
    prop::collection::btree_map(kind, rule(), 0..3)
}

fn any_role() -> impl Strategy<Value = Role> {
    ("[a-z]{1,3}", rules(), rules(), any::<bool>()).prop_map(|(name, allow, mut deny, denies)| {
        if !denies {
            deny.clear(); // else nearly everything would be denied
        }
        Role {
            name,
            allow,
            deny,
            options: Options::default(),
        }
    })
}

#[derive(Debug, Clone)]
struct Question {
    traits: Traits,
    labels: Labels,
    asked: Vec<(String, String)>,
}

impl Question {
    fn asked(&self) -> Vec<(&str, &str)> {
        self.asked
            .iter()
            .map(|(p, v)| (p.as_str(), v.as_str()))
            .collect()
    }
    fn allowed(&self, roles: &[Role]) -> bool {
        ask(roles, &self.traits, &self.labels, &self.asked()).is_allow()
    }
}

fn question() -> impl Strategy<Value = Question> {
    let key = prop::sample::select(vec!["env", "team", "*"]).prop_map(str::to_owned);
    let principal = prop::sample::select(vec!["logins", "groups", "other"]).prop_map(str::to_owned);
    let traits = prop::collection::vec(word(), 0..3);
    (
        traits,
        prop::collection::btree_map(key, word(), 0..3),
        prop::collection::vec((principal, word()), 0..3),
    )
        .prop_map(|(logins, labels, asked)| Question {
            traits: BTreeMap::from([("logins".into(), logins)]),
            labels,
            asked,
        })
}

/// Half of the time with a role that allows everything, else too little would be allowed to notice denials.
fn roles() -> impl Strategy<Value = Vec<Role>> {
    let everything = role(
        r#"{"name":"all","allow":{"*":{"labels":{"*":["*"]},"logins":["*"],"groups":["*"],"other":["*"]}}}"#,
    );
    (prop::collection::vec(any_role(), 0..4), any::<bool>()).prop_map(move |(mut roles, open)| {
        roles.extend(open.then(|| everything.clone()));
        roles
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn as_the_reference_reads_them(roles in roles(), q in question()) {
        let want = reference::decide(&roles, &q.traits, "ssh", &q.labels, &q.asked());
        prop_assert_eq!(q.allowed(&roles), want);
    }

    #[test]
    fn another_deny_never_widens(roles in roles(), deny in rules(), n in any::<prop::sample::Index>(), q in question()) {
        let before = q.allowed(&roles);
        let mut more = roles.clone();
        more.push(Role { name: "new".into(), deny: deny.clone(), ..Role::default() });
        prop_assert!(before || !q.allowed(&more));
        if !roles.is_empty() {
            let mut inside = roles.clone();
            let role = n.get(&roles).name.clone();
            for r in inside.iter_mut().filter(|r| r.name == role && r.deny.is_empty()) {
                r.deny = deny.clone();
            }
            prop_assert!(before || !q.allowed(&inside));
        }
    }

    #[test]
    fn another_allow_never_narrows(roles in roles(), allow in rules(), q in question()) {
        let mut more = roles.clone();
        more.push(Role { name: "new".into(), allow, ..Role::default() });
        prop_assert!(!q.allowed(&roles) || q.allowed(&more));
    }

    #[test]
    fn order_and_repetition_do_not_matter(roles in roles(), q in question(), by in 0usize..4) {
        let decide = |roles: &[Role]| ask(roles, &q.traits, &q.labels, &q.asked());
        let mut turned = roles.clone();
        let by = by % roles.len().max(1);
        turned.rotate_left(by);
        prop_assert_eq!(decide(&roles).is_allow(), decide(&turned).is_allow());
        let twice: Vec<Role> = roles.iter().chain(&roles).cloned().collect();
        prop_assert_eq!(q.allowed(&roles), q.allowed(&twice));
    }

    #[test]
    fn asking_more_never_widens(roles in roles(), q in question(), p in "logins|groups", v in word()) {
        let mut more = q.clone();
        more.asked.push((p, v));
        prop_assert!(q.allowed(&roles) || !more.allowed(&roles));
    }

    #[test]
    fn traits_are_never_patterns(
        values in prop::collection::vec("[*?^.$a{}\\[\\]|()]{0,4}", 0..4),
        login in "[*?^.$a{}\\[\\]|()]{0,4}",
        prefix in "(x-)?",
    ) {
        let role = role(&format!(
            r#"{{"name":"r","allow":{{"ssh":{{"labels":{{"*":["*"]}},"logins":["{prefix}{{{{internal.logins}}}}"]}}}}}}"#
        ));
        role.validate().unwrap();
        let traits = BTreeMap::from([("logins".to_owned(), values.clone())]);
        let want = values.iter().any(|v| !v.is_empty() && format!("{prefix}{v}") == login);
        prop_assert_eq!(ask(&[role], &traits, &labels(&[]), &[("logins", &login)]).is_allow(), want);
    }

    #[test]
    fn what_certificates_name_is_what_would_be_allowed_somewhere(roles in roles(), q in question()) {
        // Every literal principal is allowed by some rule on a resource that has just the labels it wants,
        // unless a deny rule with labels is in the way.
        let who = Subject { user: "alice", roles: &roles, traits: &q.traits };
        let without: Vec<Role> = roles.iter().cloned().map(|mut r| {
            r.deny.clear();
            r
        }).collect();
        let open = Subject { user: "alice", roles: &without, traits: &q.traits };
        let all = allowed_principals(&open, "ssh", "logins");
        for login in allowed_principals(&who, "ssh", "logins") {
            prop_assert!(all.contains(&login), "a deny added {}", login);
        }
    }
}

#[test]
fn what_is_recorded_is_said_by_the_roles_that_allow_it() {
    let json = |name: &str, env: &str, options: &str| -> Role {
        let text = format!(
            r#"{{"name":"{name}","allow":{{"tcp":{{"labels":{{"env":["{env}"]}}}}}},"options":{options}}}"#
        );
        serde_json::from_str(&text).unwrap()
    };
    let roles = [
        json("a", "prod", "{}"),
        json("b", "prod", r#"{"recording":"strict"}"#),
        json("c", "dev", r#"{"record_parameters":true}"#),
    ];
    let traits = BTreeMap::new();
    let who = Subject {
        user: "alice",
        roles: &roles,
        traits: &traits,
    };
    for (env, strict, parameters) in [
        ("prod", true, false),
        ("dev", false, true),
        ("test", false, false),
    ] {
        let labels = [("env".to_owned(), env.to_owned())].into();
        let target = Target {
            kind: "tcp",
            name: "x",
            labels: &labels,
        };
        let wanted = crate::Recorded { strict, parameters };
        assert_eq!(crate::recorded(&who, &target, &[]), wanted, "{env}");
    }
    let written = serde_json::to_string(&roles[0]).unwrap();
    assert!(!written.contains("record"), "{written}");
}
