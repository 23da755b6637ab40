//! Joining without a secret: ID tokens of an issuer, and bound key pairs. Every way to cheat is refused, with words.

use postern_api::status::reasons;
use postern_api::v1::create_token_request::Method;
use postern_api::v1::{
    BoundKeypairMethod, CreateTokenRequest, CreateTokenResponse, IdTokenMethod, JoinRequest,
    RemoveRequest, StringMap,
};
use postern_api::{join, status};
use postern_identity::HostKey;
use serde_json::{Value, json};
use tonic::Status;

use super::issuer::{Issuer, Key};
use super::{Host, Lab, assert_refused, strings};

fn rule(claims: &[(&str, &str)]) -> StringMap {
    let claims = claims
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    StringMap {
        values: claims.collect(),
    }
}

fn oidc(issuer: &str, must_match: &[&[(&str, &str)]]) -> IdTokenMethod {
    IdTokenMethod {
        preset: "oidc".into(),
        issuer: issuer.into(),
        must_match: must_match.iter().map(|claims| rule(claims)).collect(),
        ..IdTokenMethod::default()
    }
}

async fn create(
    lab: &Lab,
    name: &str,
    kinds: &[&str],
    method: Method,
) -> Result<CreateTokenResponse, Status> {
    let request = CreateTokenRequest {
        kinds: strings(kinds),
        name: name.into(),
        method: Some(method),
        ..CreateTokenRequest::default()
    };
    let created = lab.admin().create_token(request).await;
    created.map(tonic::Response::into_inner)
}

/// A host that shows an ID token for the token `ci`.
fn shows(host: &Host, service: &str, id_token: &str) -> JoinRequest {
    host.ask_with(service, "ssh", &[service], "", |r| {
        r.token_name = "ci".into();
        r.id_token = id_token.into();
    })
}

fn changed(mut claims: Value, change: impl FnOnce(&mut Value)) -> Value {
    change(&mut claims);
    claims
}

#[tokio::test]
async fn an_id_token_lets_a_host_in_and_no_other_after_it() {
    let lab = Lab::start().await;
    let key = Key::new("a");
    let issuer = Issuer::start(&[&key]).await;
    let method = Method::IdToken(oidc(&issuer.url, &[&[("sub", "job:*")]]));
    let created = create(&lab, "ci", &["ssh"], method).await.unwrap();
    assert_eq!((created.token.as_str(), created.expires_unix), ("", 0));

    let (host, thief) = (Host::new(), Host::new());
    let id_token = key.sign(&issuer.claims());
    lab.joins()
        .join(shows(&host, "web-1", &id_token))
        .await
        .unwrap();
    // The next service of the host is within its grant; and after `agents rm` it may show the same token again.
    lab.joins()
        .join(host.ask("web-2", "ssh", &["web-2"], ""))
        .await
        .unwrap();
    let refused = lab.joins().join(shows(&thief, "web-9", &id_token)).await;
    assert_refused(
        &refused.unwrap_err(),
        reasons::PROOF_INVALID,
        &format!(
            "service \"web-9\": token ci: host {} has joined with this ID token already",
            host.id()
        ),
    );
    // One of its own is as good.
    lab.joins()
        .join(shows(&thief, "web-9", &key.sign(&issuer.claims())))
        .await
        .unwrap();
    assert_eq!(issuer.fetched(), 1, "keys are kept");

    let events = lab.audited("agent.join").await;
    assert_eq!(
        (&events[0]["token"], &events[0]["method"]),
        (&json!("ci"), &json!("oidc"))
    );
}

#[tokio::test]
async fn id_tokens_that_do_not_hold() {
    let lab = Lab::start().await;
    let (key, other) = (Key::new("a"), Key::new("a"));
    let issuer = Issuer::start(&[&key]).await;
    let rules: &[&[(&str, &str)]] = &[&[("sub", "job:*"), ("env", "prod")]];
    create(
        &lab,
        "ci",
        &["ssh"],
        Method::IdToken(oidc(&issuer.url, rules)),
    )
    .await
    .unwrap();
    let claims = || changed(issuer.claims(), |c| c["env"] = json!("prod"));
    let good = key.sign(&claims());
    let unsigned = |alg: &str| {
        use base64::Engine as _;
        let b64 = |v: &Value| {
            base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(v.to_string().as_bytes())
        };
        let header = json!({ "alg": alg, "kid": "a", "typ": "JWT" });
        format!("{}.{}.", b64(&header), b64(&claims()))
    };
    let cases = [
        (String::new(), "it needs an ID token of http://127.0.0.1"),
        ("hunter2".into(), "the ID token is no signed JWT"),
        (
            other.sign(&claims()),
            "signature does not hold under the issuer's key",
        ),
        (unsigned("none"), "is signed with \"none\""),
        // The public key as an HMAC secret: keys decide which algorithm is theirs.
        (unsigned("HS256"), "is signed with HS256"),
        (
            key.sign(&changed(claims(), |c| c["aud"] = json!("other"))),
            "is for audience \"other\"",
        ),
        (
            key.sign(&changed(claims(), |c| {
                c["iss"] = json!("https://evil.example")
            })),
            "comes from issuer \"https://evil.example\"",
        ),
        (
            key.sign(&changed(claims(), |c| {
                c["exp"] = json!(crate::time::now() - 3600)
            })),
            "expired",
        ),
        (
            key.sign(&changed(claims(), |c| {
                c["nbf"] = json!(crate::time::now() + 3600)
            })),
            "becomes valid in",
        ),
        (
            key.sign(&changed(claims(), |c| c["env"] = json!("test"))),
            "no rule of this join token matches",
        ),
        (
            key.sign(&changed(claims(), |c| c["sub"] = json!("user:1"))),
            "no rule of this join token matches",
        ),
    ];
    for (shown, says) in cases {
        let host = Host::new();
        let refused = lab.joins().join(shows(&host, "web-1", &shown)).await;
        let refused = refused.unwrap_err();
        assert_refused(&refused, reasons::PROOF_INVALID, says);
        assert!(
            refused
                .message()
                .starts_with("service \"web-1\": token ci: ")
        );
        if shown.len() > 40 {
            assert!(!refused.message().contains(&shown[..40]), "{refused:?}");
        }
    }
    // The token's name is no secret of its own, and the id of a secret token no name.
    let host = Host::new();
    let secret = lab.token(&["ssh"], &[], 0).await;
    let by_id = host.ask_with("x", "ssh", &["x"], "", |r| {
        r.token_name = secret.split('_').nth(1).unwrap().into();
        r.id_token = good.clone();
    });
    let refused = lab.joins().join(by_id).await.unwrap_err();
    assert_refused(&refused, reasons::TOKEN_INVALID, "is unknown here");
    let elsewhere = host.ask_with("x", "ssh", &["x"], "", |r| {
        r.token_name = "nope".into();
        r.id_token = good.clone();
    });
    let refused = lab.joins().join(elsewhere).await.unwrap_err();
    assert_refused(
        &refused,
        reasons::TOKEN_INVALID,
        "token nope is unknown here",
    );
    // Nothing of it kept the good one from serving.
    lab.joins().join(shows(&host, "x", &good)).await.unwrap();
    // What was refused tells which token it was for.
    let events = lab.audited("agent.join.refused").await;
    assert_eq!(events[0]["token"], "ci");
    let log = serde_json::to_string(&events).unwrap();
    assert!(!log.contains(&good[..40]), "no ID token is written down");
}

#[tokio::test]
async fn the_issuer_changes_its_keys_or_is_gone() {
    let lab = Lab::start().await;
    let (old, new) = (Key::new("old"), Key::new("new"));
    let issuer = Issuer::start(&[&old]).await;
    let rules: &[&[(&str, &str)]] = &[&[("sub", "job:1")]];
    create(
        &lab,
        "ci",
        &["ssh"],
        Method::IdToken(oidc(&issuer.url, rules)),
    )
    .await
    .unwrap();
    *issuer.keys.lock().unwrap() = vec![new.jwk()];
    lab.joins()
        .join(shows(&Host::new(), "a", &new.sign(&issuer.claims())))
        .await
        .unwrap();
    assert_eq!(issuer.fetched(), 2, "an unknown key id asks again");
    // The old key is withdrawn, and who invents key ids does not make us ask for ever.
    for _ in 0..10 {
        let refused = lab
            .joins()
            .join(shows(&Host::new(), "b", &old.sign(&issuer.claims())))
            .await;
        let refused = refused.unwrap_err();
        assert_refused(
            &refused,
            reasons::PROOF_INVALID,
            "not among the issuer's keys",
        );
    }
    assert!(issuer.fetched() <= 3, "{}", issuer.fetched());

    // An issuer that says it is another one, or does not answer, is told of when the token is made.
    *issuer.says.lock().unwrap() = Some("https://other.example".into());
    let another = oidc(&format!("{}/", issuer.url), rules);
    let refused = create(&lab, "ci-2", &["ssh"], Method::IdToken(another)).await;
    let refused = refused.unwrap_err();
    assert_refused(
        &refused,
        reasons::BAD_REQUEST,
        "answers for issuer \"https://other.example\"",
    );
    let gone = oidc("http://127.0.0.1:1", rules);
    let refused = create(&lab, "ci-2", &["ssh"], Method::IdToken(gone)).await;
    let refused = refused.unwrap_err();
    assert_refused(
        &refused,
        reasons::BAD_REQUEST,
        "give its keys as a file (--jwks)",
    );
    // Static keys ask nobody.
    let still = IdTokenMethod {
        jwks_json: json!({ "keys": [old.jwk()] }).to_string(),
        ..oidc("https://offline.example", rules)
    };
    create(&lab, "offline", &["tcp"], Method::IdToken(still))
        .await
        .unwrap();
    let shown = old.sign(&changed(issuer.claims(), |c| {
        c["iss"] = json!("https://offline.example")
    }));
    let request = Host::new().ask_with("t", "tcp", &["t"], "", |r| {
        r.token_name = "offline".into();
        r.id_token = shown;
    });
    lab.joins().join(request).await.unwrap();
}

#[tokio::test]
async fn tokens_that_would_let_strangers_in_are_not_made() {
    let lab = Lab::start().await;
    let key = Key::new("a");
    let issuer = Issuer::start(&[&key]).await;
    let any = IdTokenMethod {
        allow_any: true,
        ..oidc(&issuer.url, &[])
    };
    let github = |must_match: &[&[(&str, &str)]], allow_any| IdTokenMethod {
        preset: "github".into(),
        allow_any,
        jwks_json: json!({ "keys": [key.jwk()] }).to_string(),
        ..oidc("", must_match)
    };
    let cases = [
        ("ci", oidc(&issuer.url, &[]), "there is no rule"),
        ("ci", oidc(&issuer.url, &[&[("sub", "*")]]), "only stars"),
        (
            "ci",
            oidc("http://issuer.example", &[&[("sub", "a")]]),
            "https",
        ),
        ("ci", oidc("", &[&[("sub", "a")]]), "--issuer"),
        ("ci", github(&[], true), "everybody can get a token"),
        (
            "ci",
            github(&[&[("ref", "refs/heads/main")]], false),
            "names no owner",
        ),
        (
            "c1",
            oidc(&issuer.url, &[&[("sub", "a")]]),
            "looks like the id",
        ),
        ("C I", oidc(&issuer.url, &[&[("sub", "a")]]), "token name"),
        (
            "ci",
            IdTokenMethod {
                preset: "jenkins".into(),
                ..any.clone()
            },
            "no join method",
        ),
        (
            "ci",
            IdTokenMethod {
                jwks_json: "{}".into(),
                ..any.clone()
            },
            "no JWK set",
        ),
        (
            "ci",
            IdTokenMethod {
                ca_pem: "no certificate".into(),
                ..any.clone()
            },
            "no certificate in PEM form",
        ),
    ];
    for (name, method, says) in cases {
        let refused = create(&lab, name, &["ssh"], Method::IdToken(method)).await;
        assert_refused(&refused.unwrap_err(), reasons::BAD_REQUEST, says);
    }
    create(&lab, "ci", &["ssh"], Method::IdToken(any.clone()))
        .await
        .unwrap();
    let twice = create(&lab, "ci", &["ssh"], Method::IdToken(any)).await;
    assert_refused(&twice.unwrap_err(), reasons::EXISTS, "exists");
    // It is removed by its name.
    let remove = RemoveRequest {
        kind: "token".into(),
        name: "ci".into(),
    };
    lab.admin().remove(remove).await.unwrap();
}

/// A host that shows a bound key for the token `edge-1`.
fn bound(host: &Host, key: &HostKey, names: &[&str], secret: &str) -> JoinRequest {
    host.ask_with("s", "ssh", names, "", |r| {
        r.token_name = "edge-1".into();
        r.registration_secret = secret.into();
        join::sign_bound(r, key, host.key.public());
    })
}

fn keypair(public_key: &str, recoveries: u32) -> Method {
    Method::BoundKeypair(BoundKeypairMethod {
        public_key: public_key.into(),
        recoveries,
    })
}

#[tokio::test]
async fn a_bound_key_pair_outlives_the_hosts_disk() {
    let lab = Lab::start().await;
    let key = HostKey::generate();
    create(&lab, "edge-1", &["ssh"], keypair(&key.openssh_public(), 1))
        .await
        .unwrap();
    let first = Host::new();
    let request = bound(&first, &key, &["edge"], "");
    let joined = lab
        .joins()
        .join(request.clone())
        .await
        .unwrap()
        .into_inner();
    // The answer got lost: the same again, and no recovery is used up.
    lab.joins().join(request).await.unwrap();

    // The disk is gone, and with it the host's id. The name goes over, the old certificates stop working.
    let second = Host::new();
    lab.joins()
        .join(bound(&second, &key, &["edge"], ""))
        .await
        .unwrap();
    let old = lab
        .agents(&first.tls(&joined))
        .leave(postern_api::v1::LeaveRequest {})
        .await;
    assert_refused(
        &old.unwrap_err(),
        reasons::LOCKED,
        "has joined with its key pair",
    );
    let again = lab.joins().join(bound(&first, &key, &["edge"], "")).await;
    assert_refused(
        &again.unwrap_err(),
        reasons::LOCKED,
        "has joined with its key pair (token edge-1)",
    );
    let events = lab.audited("agent.replaced").await;
    assert_eq!(events[0]["host_id"], first.id());
    assert_eq!(events[0]["by"], second.id());

    // Not even when its lock has expired.
    let unlock = RemoveRequest {
        kind: "lock".into(),
        name: format!("host:{}", first.id()),
    };
    lab.admin().remove(unlock).await.unwrap();
    let again = lab.joins().join(bound(&first, &key, &["edge"], "")).await;
    assert_refused(
        &again.unwrap_err(),
        reasons::PROOF_INVALID,
        "was replaced by another one",
    );

    // One recovery was allowed.
    let third = lab
        .joins()
        .join(bound(&Host::new(), &key, &["edge"], ""))
        .await;
    assert_refused(
        &third.unwrap_err(),
        reasons::TOKEN_USED_UP,
        "token edge-1 is used up (after its first join, its key allowed 1 more)",
    );
}

#[tokio::test]
async fn a_key_pair_is_registered_once_by_its_secret() {
    let lab = Lab::start().await;
    let created = create(&lab, "edge-1", &["ssh"], keypair("", 5))
        .await
        .unwrap();
    let (secret, key, thief) = (created.token, HostKey::generate(), HostKey::generate());
    assert_eq!(secret.len(), 32);
    let refused = |request: JoinRequest| {
        let mut joins = lab.joins();
        async move { joins.join(request).await.unwrap_err() }
    };
    let host = Host::new();
    let none = host.ask_with("s", "ssh", &["edge"], "", |r| {
        r.token_name = "edge-1".into()
    });
    assert_refused(
        &refused(none).await,
        reasons::PROOF_INVALID,
        "it needs a key pair",
    );
    let unregistered = bound(&host, &key, &["edge"], "");
    assert_refused(
        &refused(unregistered).await,
        reasons::PROOF_INVALID,
        "needs its registration secret",
    );
    let wrong = bound(&host, &key, &["edge"], &"0".repeat(32));
    assert_refused(
        &refused(wrong).await,
        reasons::PROOF_INVALID,
        "registration secret is wrong",
    );
    // The key that is shown has to be the asker's.
    let foreign = host.ask_with("s", "ssh", &["edge"], "", |r| {
        r.token_name = "edge-1".into();
        r.registration_secret = secret.clone();
        join::sign_bound(r, &thief, host.key.public());
        r.bound_public_key = key.public();
    });
    assert_refused(
        &refused(foreign).await,
        reasons::BAD_SIGNATURE,
        "bound key's signature",
    );
    lab.joins()
        .join(bound(&host, &key, &["edge"], &secret))
        .await
        .unwrap();
    // The secret registers no second key.
    let late = bound(&Host::new(), &thief, &["edge"], &secret);
    assert_refused(
        &refused(late).await,
        reasons::PROOF_INVALID,
        "is not the one that is registered",
    );
    // A host that is locked out does not come back under another id.
    let lock = json!({ "target": format!("host:{}", host.id()), "reason": "stolen" }).to_string();
    let put = postern_api::v1::PutLockRequest { lock_json: lock };
    lab.admin().put_lock(put).await.unwrap();
    let back = bound(&Host::new(), &key, &["edge"], "");
    let refused = refused(back).await;
    assert_refused(&refused, reasons::PROOF_INVALID, "is locked (stolen)");
    assert!(refused.message().contains("postern locks rm host:"));
    assert_eq!(status::reason(&refused), Some(reasons::PROOF_INVALID));
}

#[tokio::test]
async fn locking_a_former_host_stops_whoever_has_its_key() {
    let lab = Lab::start().await;
    let key = HostKey::generate();
    create(&lab, "edge-1", &["ssh"], keypair(&key.openssh_public(), 5))
        .await
        .unwrap();
    let (stolen, recovered) = (Host::new(), Host::new());
    for host in [&stolen, &recovered] {
        lab.joins()
            .join(bound(host, &key, &["edge"], ""))
            .await
            .unwrap();
    }
    let lock = json!({ "target": format!("host:{}", stolen.id()), "reason": "stolen" });
    let put = postern_api::v1::PutLockRequest {
        lock_json: lock.to_string(),
    };
    lab.admin().put_lock(put).await.unwrap();
    let thief = lab
        .joins()
        .join(bound(&Host::new(), &key, &["edge"], ""))
        .await;
    assert_refused(
        &thief.unwrap_err(),
        reasons::PROOF_INVALID,
        "is locked (stolen)",
    );
    // Who has recovered goes on within its grant.
    let more = recovered.ask("more", "ssh", &["more"], "");
    lab.joins().join(more).await.unwrap();
}

#[tokio::test]
async fn an_issuer_that_is_away_keeps_no_member_out() {
    let lab = Lab::start().await;
    let key = Key::new("a");
    let issuer = Issuer::start(&[&key]).await;
    let rules: &[&[(&str, &str)]] = &[&[("sub", "job:1")]];
    create(
        &lab,
        "ci",
        &["ssh"],
        Method::IdToken(oidc(&issuer.url, rules)),
    )
    .await
    .unwrap();
    let host = Host::new();
    let id_token = key.sign(&issuer.claims());
    lab.joins()
        .join(shows(&host, "a", &id_token))
        .await
        .unwrap();
    drop(issuer);
    // A token with an unknown key would make Auth ask the issuer; within the grant it is not looked at.
    let unknown = Key::new("b").sign(&json!({ "iss": "x" }));
    lab.joins().join(shows(&host, "b", &unknown)).await.unwrap();
    let stranger = lab.joins().join(shows(&Host::new(), "c", &unknown)).await;
    let refused = stranger.unwrap_err();
    assert_refused(
        &refused,
        reasons::ISSUER_UNREACHABLE,
        "the log of the Auth Service",
    );
    // The keys that were known are still good.
    let another = Host::new();
    let fresh = key.sign(&json!({
        "iss": id_token_issuer(&id_token), "aud": super::CLUSTER, "sub": "job:1", "exp": crate::time::now() + 60,
    }));
    lab.joins()
        .join(shows(&another, "d", &fresh))
        .await
        .unwrap();
    let events = lab.audited("agent.join").await;
    assert_eq!(events[0]["subject"], "job:1");
}

fn id_token_issuer(token: &str) -> String {
    use base64::Engine as _;
    let claims = token.split('.').nth(1).unwrap();
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(claims)
        .unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    claims["iss"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn key_pairs_that_can_not_be_bound() {
    let lab = Lab::start().await;
    let request = CreateTokenRequest {
        kinds: strings(&["ssh"]),
        name: "edge-1".into(),
        ttl_seconds: 60,
        method: Some(keypair(&HostKey::generate().openssh_public(), 1)),
        ..CreateTokenRequest::default()
    };
    let refused = lab.admin().create_token(request).await.unwrap_err();
    assert_refused(&refused, reasons::BAD_REQUEST, "does not expire");
    for (public_key, says) in [
        ("hunter2", "this is no public key"),
        (
            "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBHwf2HMM5TRXvo2SQJjsNkiDD5KqiiNjrGVv3UUh+mMT5RHxiRtOnlqvjhQtBq0VpmpCV/PwUdhOig4vkbqAcEc=",
            "ssh-ed25519 is needed",
        ),
    ] {
        let refused = create(&lab, "edge-1", &["ssh"], keypair(public_key, 1)).await;
        assert_refused(&refused.unwrap_err(), reasons::BAD_REQUEST, says);
    }
}
