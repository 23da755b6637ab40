//! The decision alone: properties that hold for every combination of grants, tokens, holders and generations.

use std::time::Duration;

use proptest::prelude::*;

use super::decide::{Decision, TokenView, View, decide};
use super::request::Ask;
use crate::records::{Agent, BoundKeypair, Grant, Holder, Host, Method, Resource, Token};

const NOW: i64 = 1_800_000_000;
const WINDOW: Duration = Duration::from_secs(7 * 86_400);

fn ask(kind: &str, names: &[String], generation: u64, nonce: &str) -> Ask {
    Ask {
        host_id: "me".into(),
        service: "s".into(),
        kind: kind.into(),
        names: names.to_vec(),
        token: None,
        named: None,
        nonce: nonce.into(),
        generation,
        spki: vec![],
        ssh_public_key: String::new(),
        signed_at: NOW,
        version: String::new(),
        digest: "d".into(),
    }
}

fn kinds() -> impl Strategy<Value = Vec<String>> {
    proptest::sample::subsequence(vec!["ssh".to_owned(), "tcp".to_owned()], 0..=2)
}

fn names() -> impl Strategy<Value = Vec<String>> {
    proptest::sample::subsequence(vec!["a".to_owned(), "b".to_owned(), "c".to_owned()], 0..=3)
}

fn patterns() -> impl Strategy<Value = Vec<String>> {
    proptest::sample::subsequence(
        vec!["a".to_owned(), "[bc]".to_owned(), "*".to_owned()],
        0..=2,
    )
}

fn grant() -> impl Strategy<Value = Grant> {
    (kinds(), patterns()).prop_map(|(kinds, names)| Grant {
        kinds,
        names,
        token: "t".into(),
    })
}

prop_compose! {
    fn token()(
        kinds in kinds(),
        names in patterns(),
        age in proptest::option::of(-100i64..100),
        uses in proptest::option::of(0u32..3),
        used in 0u32..3,
        bound in proptest::option::of(proptest::option::of("(me|you)")),
    ) -> Token {
        let method = match bound {
            None => Method::Secret(String::new()),
            Some(host_id) => Method::BoundKeypair(BoundKeypair { host_id, public_key: Some("k".into()), ..BoundKeypair::default() }),
        };
        Token { id: "3f9a".into(), method, kinds, names, created_unix: 0, expires_unix: age.map(|age| NOW + age), uses, used }
    }
}

prop_compose! {
    fn agent()(generation in 1u64..5, nonce in "[xy]", asked in "[de]", left in -100i64..100) -> Agent {
        Agent {
            host_id: "me".into(), service: "s".into(), kind: "ssh".into(), names: vec![], generation, nonce, asked,
            answer: String::new(), not_after_unix: NOW + left, joined_unix: 0, version: String::new(),
        }
    }
}

prop_compose! {
    fn view()(
        grants in proptest::option::of(proptest::collection::vec(grant(), 0..3)),
        slept in -100i64..20 * 86_400,
        agent in proptest::option::of(agent()),
        token in proptest::option::of(token()),
        holders in proptest::collection::vec(proptest::option::of("(me|you)"), 3),
        kind in "(ssh|tcp)",
    ) -> (String, View) {
        let resources = ["a", "b", "c"].iter().zip(holders).filter_map(|(name, holder)| {
            let holders = vec![Holder { host_id: holder?, service: "s".into() }];
            Some(Resource { kind: kind.clone(), name: (*name).into(), holders })
        });
        (kind.clone(), View {
            locks: vec![],
            host: grants.map(|grants| Host { host_id: "me".into(), grants, not_after_unix: NOW - slept, created_unix: 0 }),
            agent,
            token: token.map_or(TokenView::None, TokenView::Known),
            resources: resources.collect(),
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_issued_that_was_not_granted((kind, view) in view(), names in names(), generation in 0u64..6, nonce in "[xyz]") {
        let ask = ask(&kind, &names, generation, &nonce);
        let stored = view.host.as_ref().map(|h| h.grants.clone()).unwrap_or_default();
        let lapsed = view.host.as_ref().is_some_and(|h| NOW - h.not_after_unix > 7 * 86_400);
        match decide(&ask, &view, NOW, WINDOW) {
            Decision::Issue(plan) => {
                let usable = match &view.token {
                    TokenView::Known(t) => t.expires_unix.is_none_or(|at| at > NOW) && t.uses.is_none_or(|u| t.used < u),
                    _ => false,
                };
                match &plan.token {
                    None => {
                        prop_assert_eq!(&plan.grants, &stored, "grants grow by tokens only");
                        prop_assert!(!lapsed);
                        prop_assert!(plan.replaces.is_none());
                    }
                    Some(token) => {
                        prop_assert!(usable);
                        let TokenView::Known(before) = &view.token else { unreachable!() };
                        prop_assert_eq!(token.used, before.used + 1);
                        let bound_before = match &before.method {
                            Method::BoundKeypair(b) => b.host_id.clone(),
                            _ => None,
                        };
                        prop_assert_eq!(&plan.replaces, &bound_before.filter(|h| h != "me"), "one key, one host");
                        if let Method::BoundKeypair(b) = &token.method {
                            prop_assert_eq!(b.host_id.as_deref(), Some("me"));
                        }
                        prop_assert!(plan.grants.starts_with(&stored) && plan.grants.len() <= stored.len() + 1);
                    }
                }
                prop_assert!(plan.grants.iter().any(|g| g.covers_kind(&kind)));
                for name in &names {
                    prop_assert!(plan.grants.iter().any(|g| g.covers(&kind, name)), "{name} is not covered");
                    let held = view.resources.iter().find(|r| r.name == *name);
                    let gone = plan.replaces.is_some();
                    prop_assert!(!gone || plan.claims.iter().all(|c| !c.held_by("you")));
                    if held.is_some_and(|r| !r.held_by("me")) && !gone {
                        prop_assert!(plan.grants.iter().any(|g| g.lists(&kind, name)), "{name} was taken");
                    }
                    if held.is_none_or(|r| !r.held_by("me")) {
                        let claim = plan.claims.iter().find(|c| c.name == *name);
                        prop_assert!(claim.is_some_and(|c| c.held_by("me")));
                    }
                }
                let before = view.agent.as_ref().map_or(0, |a| a.generation);
                prop_assert!(plan.generation > before && plan.generation > generation.min(before));
            }
            Decision::Replay(agent) => {
                prop_assert!(agent.nonce == nonce && agent.asked == ask.digest && agent.not_after_unix > NOW);
            }
            Decision::Copied(_) => {
                let agent = view.agent.as_ref().unwrap();
                prop_assert!(generation > 0 && generation < agent.generation && agent.nonce != nonce);
            }
            Decision::Refuse(refusal) => {
                prop_assert!(refusal.message.contains("postern "), "it says what to do: {}", refusal.message);
                // A token is never blamed where the grant was enough.
                let enough = !lapsed && stored.iter().any(|g| g.covers_kind(&kind))
                    && names.iter().all(|n| stored.iter().any(|g| g.covers(&kind, n)))
                    && names.iter().all(|n| view.resources.iter().all(|r| r.name != *n || r.held_by("me")));
                prop_assert!(!enough, "{}", refusal.message);
            }
        }
    }

    #[test]
    fn a_stale_generation_is_a_copy_unless_it_knows_the_nonce(agent in agent(), generation in 1u64..6, nonce in "[xyz]") {
        let grants = vec![Grant { kinds: vec!["ssh".into()], names: vec![], token: "t".into() }];
        let host = Host { host_id: "me".into(), grants, not_after_unix: NOW, created_unix: 0 };
        let view = View { host: Some(host), agent: Some(agent.clone()), ..View::default() };
        let decision = decide(&ask("ssh", &[], generation, &nonce), &view, NOW, WINDOW);
        let copied = generation < agent.generation && nonce != agent.nonce;
        prop_assert_eq!(matches!(decision, Decision::Copied(_)), copied);
    }
}
