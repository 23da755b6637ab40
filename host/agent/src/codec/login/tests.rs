use super::*;
use postern_config::SecretSource;

fn challenge(method: &str, account: &str, data: &[u8]) -> Challenge {
    Challenge {
        method: method.into(),
        account: account.into(),
        data: data.into(),
    }
}

fn password() -> Result<Secret, String> {
    Ok(Secret::new("pencil".into()))
}

async fn ask(
    e: &mut Exchange,
    c: &Challenge,
    end_point: Option<Vec<u8>>,
) -> Result<String, String> {
    let answer = e.answer(c, end_point, true, password).await?;
    Ok(String::from_utf8(answer).unwrap())
}

#[tokio::test]
async fn the_mechanism_is_the_strongest_that_both_know() {
    let both = b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0".as_slice();
    let plain = b"SCRAM-SHA-256\0".as_slice();
    for (offered, end_point, chosen, gs2) in [
        (
            both,
            Some(vec![1; 32]),
            "SCRAM-SHA-256-PLUS",
            "p=tls-server-end-point,,",
        ),
        (both, None, "SCRAM-SHA-256", "n,,"),
        (plain, Some(vec![1; 32]), "SCRAM-SHA-256", "y,,"),
        (plain, None, "SCRAM-SHA-256", "n,,"),
    ] {
        let c = challenge(SCRAM, "app", offered);
        let first = ask(&mut Exchange::default(), &c, end_point).await.unwrap();
        let (mechanism, message) = first.split_once('\0').unwrap();
        assert_eq!(mechanism, chosen);
        assert!(message.starts_with(gs2), "{message}");
    }
    let c = challenge(SCRAM, "app", b"OAUTHBEARER\0");
    let why = ask(&mut Exchange::default(), &c, None).await.unwrap_err();
    assert!(why.contains("OAUTHBEARER"), "{why}");
}

#[tokio::test]
async fn one_exchange_and_no_second() {
    let offer = challenge(SCRAM, "app", b"SCRAM-SHA-256\0");
    let mut e = Exchange::default();
    ask(&mut e, &offer, None).await.unwrap();
    assert!(ask(&mut e, &offer, None).await.is_err(), "begun twice");
    let why = ask(&mut e, &offer, None).await.unwrap_err();
    assert!(why.contains("second login"), "{why}");

    let md5 = challenge(MD5, "app", &[1, 2, 3, 4]);
    let mut e = Exchange::default();
    let hash = ask(&mut e, &md5, None).await.unwrap();
    assert!(hash.starts_with("md5") && hash.len() == 35, "{hash}");
    assert!(ask(&mut e, &md5, None).await.is_err(), "salt after salt");
}

#[tokio::test]
async fn where_nobody_knows_the_server_md5_is_not_answered() {
    let md5 = challenge(MD5, "app", &[1, 2, 3, 4]);
    let unread = || -> Result<Secret, String> { panic!("the password is not even read") };
    let answer = Exchange::default().answer(&md5, None, false, unread).await;
    let why = answer.unwrap_err();
    for words in ["by MD5", "scram-sha-256", "verify-full"] {
        assert!(why.contains(words), "{why}");
    }
    // SCRAM gives nothing away that is of use elsewhere.
    let scram = challenge(SCRAM, "app", b"SCRAM-SHA-256\0");
    let first = Exchange::default()
        .answer(&scram, None, false, password)
        .await;
    assert!(first.is_ok());
}

#[tokio::test]
async fn another_account_does_not_go_on_with_it() {
    let mut e = Exchange::default();
    let offer = challenge(SCRAM, "app", b"SCRAM-SHA-256\0");
    let first = ask(&mut e, &offer, None).await.unwrap();
    let nonce = first.rsplit("r=").next().unwrap();
    let server = format!("r={nonce}x,s=QUJD,i=4096");
    let c = challenge(SCRAM, "root", server.as_bytes());
    assert!(ask(&mut e, &c, None).await.is_err());
}

#[tokio::test]
async fn a_server_can_neither_keep_us_busy_nor_pretend() {
    let offer = challenge(SCRAM, "app", b"SCRAM-SHA-256\0");
    for (i, words) in [("4294967295", "more than"), ("x", "no number")] {
        let mut e = Exchange::default();
        let first = ask(&mut e, &offer, None).await.unwrap();
        let nonce = first.rsplit("r=").next().unwrap();
        let server = format!("r={nonce}x,s=QUJD,i={i}");
        let c = challenge(SCRAM, "app", server.as_bytes());
        let why = ask(&mut e, &c, None).await.unwrap_err();
        assert!(why.contains(words), "{why}");
    }
    let mut e = Exchange::default();
    let first = ask(&mut e, &offer, None).await.unwrap();
    let nonce = first.rsplit("r=").next().unwrap();
    let server = format!("r={nonce}x,s=QUJD,i=4096");
    let c = challenge(SCRAM, "app", server.as_bytes());
    let last = ask(&mut e, &c, None).await.unwrap();
    assert!(last.contains(",p="), "{last}");
    let c = challenge(
        SCRAM,
        "app",
        b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    );
    let why = ask(&mut e, &c, None).await.unwrap_err();
    assert!(why.contains("did not prove"), "{why}");
    let c = challenge(SCRAM, "app", &[b'x'; 9000]);
    assert!(
        ask(&mut Exchange::default(), &c, None)
            .await
            .unwrap_err()
            .contains("8 KiB")
    );
    let c = challenge("gss", "app", b"");
    assert!(
        ask(&mut Exchange::default(), &c, None)
            .await
            .unwrap_err()
            .contains("gss")
    );
}

#[test]
fn where_there_is_no_secret_it_is_said_what_to_do() {
    let auth = UpstreamAuth::Certificate;
    let why = secret(&auth, None, "app").unwrap_err();
    assert!(why.contains("with a certificate"), "{why}");
    let source = SecretSource {
        file: Some("/nonexistent/app.password".into()),
        env: None,
    };
    let auth = UpstreamAuth::Password {
        passwords: [("app".to_owned(), source.clone())].into(),
    };
    let why = secret(&auth, None, "other").unwrap_err();
    assert!(why.contains("no password for account \"other\""), "{why}");
    let why = secret(&auth, None, "app").unwrap_err();
    assert!(
        !why.contains("nonexistent"),
        "users are not told of files: {why}"
    );
}
