//! Tokens made with keys of our own: the good ones, and every way to cheat that we know.

use std::sync::OnceLock;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use crate::{Admit, Keys, KeysError, Policy, Refusal, Rule, verify};

const NOW: i64 = 1_800_000_000;
const ISSUER: &str = "https://issuer.example";

fn rsa() -> EncodingKey {
    let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let der: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().unwrap();
    // The library wants PKCS#1, which PKCS#8 wraps in 26 bytes for keys of this size.
    EncodingKey::from_rsa_der(&der.as_ref()[26..])
}

fn rsa_keys() -> &'static (EncodingKey, EncodingKey) {
    static KEYS: OnceLock<(EncodingKey, EncodingKey)> = OnceLock::new();
    KEYS.get_or_init(|| (rsa(), rsa()))
}

fn ec() -> EncodingKey {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    EncodingKey::from_ec_der(pkcs8.as_ref())
}

fn ed() -> EncodingKey {
    // Of the two PKCS#8 forms the library reads the one without the public key.
    let pkcs8 = Ed25519KeyPair::generate().unwrap().to_pkcs8v1().unwrap();
    EncodingKey::from_ed_der(pkcs8.as_ref())
}

/// The public key as the issuer publishes it.
fn jwk(
    key: &EncodingKey,
    alg: Algorithm,
    id: Option<&str>,
    change: impl FnOnce(&mut Value),
) -> Value {
    let mut value = serde_json::to_value(Jwk::from_encoding_key(key, alg).unwrap()).unwrap();
    let fields = value.as_object_mut().unwrap();
    fields.remove("kid");
    if let Some(id) = id {
        fields.insert("kid".into(), json!(id));
    }
    change(&mut value);
    value
}

fn keys(jwks: &[Value]) -> Keys {
    Keys::parse(&json!({ "keys": jwks }).to_string()).unwrap()
}

fn token(key: &EncodingKey, alg: Algorithm, id: Option<&str>, claims: &Value) -> String {
    let header = Header {
        kid: id.map(str::to_owned),
        ..Header::new(alg)
    };
    encode(&header, claims, key).unwrap()
}

fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": "demo", "sub": "repo:acme/app:ref:refs/heads/main", "jti": "1",
        "iat": NOW - 10, "exp": NOW + 300, "protected": true, "groups": ["ci", "dev"],
        "kubernetes.io": { "namespace": "web" },
    })
}

fn changed(change: impl FnOnce(&mut Value)) -> Value {
    let mut claims = claims();
    change(&mut claims);
    claims
}

fn policy(rules: &[&[(&str, &str)]]) -> Policy {
    let rule = |claims: &&[(&str, &str)]| {
        Rule(
            claims
                .iter()
                .map(|(n, p)| ((*n).to_owned(), (*p).to_owned()))
                .collect(),
        )
    };
    Policy {
        issuer: ISSUER.into(),
        audiences: vec!["demo".into()],
        admit: Admit::MustMatch(rules.iter().map(rule).collect()),
    }
}

fn acme() -> Policy {
    policy(&[&[("sub", "repo:acme/app:*")]])
}

#[test]
fn genuine_tokens_of_every_kind_of_key() {
    let cases = [
        (rsa_keys().0.clone(), Algorithm::RS256),
        (rsa_keys().0.clone(), Algorithm::PS512),
        (ec(), Algorithm::ES256),
        (ed(), Algorithm::EdDSA),
    ];
    for (key, alg) in cases {
        let set = keys(&[jwk(&key, alg, Some("a"), |_| {})]);
        let proof = verify(&set, &acme(), &token(&key, alg, Some("a"), &claims()), NOW).unwrap();
        assert_eq!(proof.subject, "repo:acme/app:ref:refs/heads/main");
        assert_eq!(proof.expires_unix, NOW + 300);
        // A lone key needs no id.
        verify(&set, &acme(), &token(&key, alg, None, &claims()), NOW).unwrap();
    }
}

#[test]
fn wrong_keys_are_refused() {
    let (ours, theirs) = rsa_keys();
    let alg = Algorithm::RS256;
    let set = keys(&[
        jwk(ours, alg, Some("a"), |_| {}),
        jwk(&ec(), Algorithm::ES256, Some("b"), |_| {}),
    ]);
    let check = |token: &str| verify(&set, &acme(), token, NOW).unwrap_err();
    assert_eq!(
        check(&token(theirs, alg, Some("a"), &claims())),
        Refusal::Signature
    );
    assert_eq!(
        check(&token(ours, alg, Some("c"), &claims())),
        Refusal::UnknownKey("\"c\"".into())
    );
    assert_eq!(
        check(&token(ours, alg, None, &claims())),
        Refusal::UnknownKey("(none named)".into())
    );
    // The key of another type under that id.
    assert_eq!(
        check(&token(ours, alg, Some("b"), &claims())),
        Refusal::Algorithm("RS256".into())
    );
    // A key that the token brings along counts for nothing.
    let mut header = Header {
        kid: Some("a".into()),
        ..Header::new(alg)
    };
    header.jwk = Some(Jwk::from_encoding_key(theirs, alg).unwrap());
    assert_eq!(
        check(&encode(&header, &claims(), theirs).unwrap()),
        Refusal::Signature
    );
}

#[test]
fn the_key_decides_about_the_algorithm() {
    let (key, _) = rsa_keys();
    let public = jwk(key, Algorithm::RS256, Some("a"), |j| {
        j.as_object_mut().unwrap().remove("alg");
    });
    let any = keys(std::slice::from_ref(&public));
    // HS256 with everything public as the secret.
    let modulus = public["n"].as_str().unwrap();
    for secret in [
        public.to_string().into_bytes(),
        modulus.as_bytes().to_vec(),
        B64.decode(modulus).unwrap(),
    ] {
        let forged = token(
            &EncodingKey::from_secret(&secret),
            Algorithm::HS256,
            Some("a"),
            &claims(),
        );
        assert_eq!(
            verify(&any, &acme(), &forged, NOW).unwrap_err(),
            Refusal::Algorithm("HS256".into())
        );
    }
    // alg=none, however it is spelt.
    for none in ["none", "None", "NONE", ""] {
        let header = B64.encode(json!({ "alg": none, "kid": "a" }).to_string());
        let forged = format!("{header}.{}.", B64.encode(claims().to_string()));
        assert_eq!(
            verify(&any, &acme(), &forged, NOW).unwrap_err(),
            Refusal::Algorithm(format!("{none:?}"))
        );
    }
    // A key that says RS256 verifies nothing else; one without a word does.
    let strict = keys(&[jwk(key, Algorithm::RS256, Some("a"), |j| {
        j["alg"] = json!("RS256")
    })]);
    let pss = token(key, Algorithm::PS256, Some("a"), &claims());
    assert_eq!(
        verify(&strict, &acme(), &pss, NOW).unwrap_err(),
        Refusal::Algorithm("PS256".into())
    );
    verify(&any, &acme(), &pss, NOW).unwrap();
}

#[test]
fn sets_without_a_usable_key_are_refused() {
    let symmetric = json!({ "kty": "oct", "k": "c2VjcmV0", "kid": "a", "alg": "HS256" });
    let encryption = jwk(&rsa_keys().0, Algorithm::RS256, Some("a"), |j| {
        j["use"] = json!("enc")
    });
    let confused = jwk(&rsa_keys().0, Algorithm::RS256, Some("a"), |j| {
        j["alg"] = json!("HS256")
    });
    for key in [symmetric, encryption, confused] {
        let set = json!({ "keys": [key] }).to_string();
        assert!(matches!(Keys::parse(&set), Err(KeysError::Empty)), "{set}");
    }
    assert!(matches!(Keys::parse("[]"), Err(KeysError::Form(_))));
    assert!(matches!(
        Keys::parse(&" ".repeat(300_000)),
        Err(KeysError::TooLarge(_))
    ));
}

#[test]
fn claims_that_do_not_hold() {
    let key = ec();
    let set = keys(&[jwk(&key, Algorithm::ES256, Some("a"), |_| {})]);
    let check = |claims: &Value| {
        verify(
            &set,
            &acme(),
            &token(&key, Algorithm::ES256, Some("a"), claims),
            NOW,
        )
    };
    type Case = (fn(&mut Value), fn(&Refusal) -> bool);
    let refused: [Case; 14] = [
        (
            |c| c["iss"] = json!("https://issuer.example/"),
            |r| matches!(r, Refusal::Issuer { .. }),
        ),
        (|c| c["iss"] = json!(7), |r| *r == Refusal::Claim("iss")),
        (
            |c| c["aud"] = json!("other"),
            |r| matches!(r, Refusal::Audience { .. }),
        ),
        (
            |c| c["aud"] = json!([]),
            |r| matches!(r, Refusal::Audience { .. }),
        ),
        (|c| c["aud"] = Value::Null, |r| *r == Refusal::Claim("aud")),
        (
            |c| c["exp"] = json!(NOW - 60),
            |r| *r == Refusal::Expired(60),
        ),
        (|c| c["exp"] = Value::Null, |r| *r == Refusal::Claim("exp")),
        (
            |c| c["exp"] = json!("soon"),
            |r| *r == Refusal::Claim("exp"),
        ),
        (|c| c["exp"] = json!(1e300), |r| *r == Refusal::Claim("exp")),
        (
            |c| c["nbf"] = json!(NOW + 61),
            |r| *r == Refusal::NotYet(61),
        ),
        (
            |c| c["iat"] = json!(NOW + 61),
            |r| *r == Refusal::NotYet(61),
        ),
        (|c| c["sub"] = Value::Null, |r| *r == Refusal::Claim("sub")),
        (
            |c| c["sub"] = json!("repo:acme/app-evil:x"),
            |r| matches!(r, Refusal::NoRule(_)),
        ),
        (
            |c| {
                c.as_object_mut().unwrap().remove("exp");
            },
            |r| *r == Refusal::Claim("exp"),
        ),
    ];
    for (change, expected) in refused {
        let claims = changed(change);
        let refusal = check(&claims).unwrap_err();
        assert!(expected(&refusal), "{refusal:?} for {claims}");
    }
    let allowed: [fn(&mut Value); 4] = [
        |c| c["aud"] = json!(["x", "demo"]),
        |c| c["exp"] = json!(NOW - 59),
        |c| c["exp"] = json!(NOW as f64 + 0.5),
        |c| c["nbf"] = json!(NOW + 60),
    ];
    for change in allowed {
        check(&changed(change)).unwrap();
    }
}

#[test]
fn rules_are_or_and_claims_are_and() {
    let key = ec();
    let set = keys(&[jwk(&key, Algorithm::ES256, Some("a"), |_| {})]);
    let shown = token(&key, Algorithm::ES256, Some("a"), &claims());
    let admits = |rules: &[&[(&str, &str)]]| verify(&set, &policy(rules), &shown, NOW).is_ok();
    assert!(admits(&[&[("protected", "true"), ("groups", "ci")]]));
    assert!(!admits(&[&[("protected", "true"), ("groups", "ops")]]));
    assert!(!admits(&[
        &[("groups", "ops")],
        &[("sub", "repo:*:main"), ("groups", "d?v")]
    ]));
    assert!(admits(&[
        &[("groups", "ops")],
        &[("sub", "repo:*main"), ("groups", "d?v")]
    ]));
    assert!(admits(&[&[("/kubernetes.io/namespace", "web")]]));
    assert!(!admits(&[&[("/kubernetes.io/namespace", "other")]]));
    assert!(
        !admits(&[&[("/kubernetes.io", "*web*")]]),
        "an object is no text"
    );
    assert!(!admits(&[&[("missing", "a*")]]));
    assert!(!admits(&[]));
    let any = Policy {
        admit: Admit::AllowAny,
        ..acme()
    };
    assert!(verify(&set, &any, &shown, NOW).is_ok());
}

#[test]
fn a_token_is_recognised_when_it_comes_again() {
    let key = ec();
    let set = keys(&[jwk(&key, Algorithm::ES256, Some("a"), |_| {})]);
    let print = |claims: &Value| {
        let shown = token(&key, Algorithm::ES256, Some("a"), claims);
        verify(&set, &acme(), &shown, NOW).unwrap().fingerprint
    };
    // ECDSA signs differently each time: the same token all the same.
    assert_eq!(print(&claims()), print(&claims()));
    assert_ne!(print(&claims()), print(&changed(|c| c["jti"] = json!("2"))));
    let nameless = changed(|c| {
        c.as_object_mut().unwrap().remove("jti");
    });
    assert_eq!(print(&nameless), print(&nameless));
    assert_ne!(print(&nameless), print(&claims()));
}

#[test]
fn what_is_no_token() {
    let key = ec();
    let set = keys(&[jwk(&key, Algorithm::ES256, Some("a"), |_| {})]);
    let good = token(&key, Algorithm::ES256, Some("a"), &claims());
    for text in [
        "",
        ".",
        "..",
        "a.b.c",
        "pt_3f9a_00",
        &"x".repeat(20_000),
        good.rsplit_once('.').unwrap().0,
    ] {
        assert!(
            matches!(verify(&set, &acme(), text, NOW), Err(Refusal::Malformed(_))),
            "{text:.30}"
        );
    }
    verify(&set, &acme(), &format!("{good}\n"), NOW).unwrap();
    // Extensions marked critical have to be understood; we understand none.
    let header = Header {
        kid: Some("a".into()),
        crit: Some(vec!["b64".into()]),
        ..Header::new(Algorithm::ES256)
    };
    let critical = encode(&header, &claims(), &key).unwrap();
    assert!(matches!(
        verify(&set, &acme(), &critical, NOW),
        Err(Refusal::Malformed(_))
    ));
}
