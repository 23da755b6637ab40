use super::*;

fn dir() -> (tempfile::TempDir, MemberDir) {
    let temp = tempfile::tempdir().unwrap();
    let dir = MemberDir::open(temp.path().join("services").join("ssh")).unwrap();
    (temp, dir)
}

fn answer(generation: u64) -> postern_api::v1::JoinResponse {
    postern_api::v1::JoinResponse {
        generation,
        not_after_unix: i64::try_from(unix_now()).unwrap() + 3600,
        ..Default::default()
    }
}

fn trust() -> TrustBundle {
    TrustBundle {
        cluster: "demo".into(),
        cas: Vec::new(),
    }
}

#[test]
fn an_unanswered_join_is_the_same_question_after_a_crash() {
    let (_temp, dir) = dir();
    let names = ["web-1".to_owned()];
    let first = dir.pending("ssh", &names, 0).unwrap();
    let again = dir.pending("ssh", &names, 0).unwrap();
    assert_eq!(first.nonce, again.nonce);
    assert_eq!(*first.ssh_key, *again.ssh_key);
}

#[test]
fn other_names_keep_the_nonce_while_the_answer_is_missing() {
    let (_temp, dir) = dir();
    let first = dir.pending("ssh", &["web-1".to_owned()], 3).unwrap();
    let other = dir.pending("ssh", &["web-2".to_owned()], 3).unwrap();
    assert_eq!(first.nonce, other.nonce);
    assert_eq!(other.names, ["web-2"]);
}

#[test]
fn an_answered_join_is_another_question_than_the_next_one() {
    let (_temp, dir) = dir();
    let names = ["web-1".to_owned()];
    let first = dir.pending("ssh", &names, 0).unwrap();
    let held = Credentials::new(&first, answer(1), trust());
    dir.accept(&held).unwrap();
    let next = dir.pending("ssh", &names, 1).unwrap();
    assert_ne!(first.nonce, next.nonce);
    assert_eq!(dir.credentials().unwrap().unwrap().generation, 1);
}

#[test]
fn a_half_written_pending_join_is_replaced_and_half_written_credentials_are_reported() {
    let (_temp, dir) = dir();
    store::write_secret(&dir.path().join("pending.json"), b"{\"nonce\":").unwrap();
    dir.pending("ssh", &[], 0).unwrap();
    store::write_secret(&dir.path().join("credentials.json"), b"{\"kind\":").unwrap();
    let why = dir.credentials().map(drop).unwrap_err().to_string();
    assert!(why.contains("credentials.json"), "{why}");
}

#[test]
fn renewal_is_at_half_of_the_life() {
    let (_temp, dir) = dir();
    let pending = dir.pending("ssh", &[], 0).unwrap();
    let mut held = Credentials::new(&pending, answer(1), trust());
    let until = held.until_renewal().as_secs();
    assert!((1790..=1800).contains(&until), "{until}");
    held.issued_unix -= 3600;
    assert_eq!(held.until_renewal(), Duration::ZERO);
    held.not_after_unix = unix_now();
    assert!(held.expired());
}
