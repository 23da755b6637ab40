use super::*;
use crate::store::StoreError;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

#[test]
fn the_same_key_comes_back_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data/host.key");
    let first = HostKey::load_or_create(&path).unwrap();
    let again = HostKey::load_or_create(&path).unwrap();
    assert_eq!(first.host_id(), again.host_id());
    assert_eq!(first.public(), again.public());
    assert_eq!(first.host_id().len(), 32);
    crate::check_host_id(&first.host_id()).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    // One file, nothing temporary left.
    assert_eq!(
        std::fs::read_dir(dir.path().join("data")).unwrap().count(),
        1
    );
}

#[test]
fn many_that_start_at_once_agree() {
    let dir = tempfile::tempdir().unwrap();
    let path = &dir.path().join("data/host.key");
    let ids: std::collections::HashSet<String> = std::thread::scope(|s| {
        let start = || s.spawn(|| HostKey::load_or_create(path).unwrap().host_id());
        let all: Vec<_> = (0..8).map(|_| start()).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(ids.len(), 1);
}

#[test]
fn signatures_hold_for_key_and_message_only() {
    let (key, other) = (HostKey::generate(), HostKey::generate());
    let signature = key.sign(b"join");
    assert!(verify_host_signature(&key.public(), b"join", &signature));
    assert!(!verify_host_signature(&key.public(), b"joim", &signature));
    assert!(!verify_host_signature(&other.public(), b"join", &signature));
    assert!(!verify_host_signature(
        &key.public(),
        b"join",
        &signature[1..]
    ));
    assert!(!verify_host_signature(b"", b"join", &signature));
    assert_eq!(host_id_of(&key.public()), key.host_id());
    assert_ne!(other.host_id(), key.host_id());
}

#[test]
fn a_damaged_key_is_named_and_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data/host.key");
    HostKey::load_or_create(&path).unwrap();
    let whole = std::fs::read_to_string(&path).unwrap();
    for content in [&whole[..whole.len() / 2], "", "nonsense"] {
        std::fs::write(&path, content).unwrap();
        let e = HostKey::load_or_create(&path).unwrap_err();
        assert!(matches!(e, StoreError::Corrupt { .. }), "{e}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
    }
    // Another kind of key is none either.
    let keys = crate::ServiceKeys::generate();
    std::fs::write(&path, keys.x509_key_pem.as_bytes()).unwrap();
    let e = HostKey::load_or_create(&path).unwrap_err().to_string();
    assert!(e.contains("no Ed25519 key"), "{e}");
}

#[test]
fn openssl_reads_the_file_and_debug_hides_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data/host.key");
    let key = HostKey::load_or_create(&path).unwrap();
    assert_eq!(format!("{key:?}"), format!("HostKey({})", key.host_id()));
    let out = Command::new("openssl")
        .args(["pkey", "-noout", "-text", "-in"])
        .arg(&path)
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.contains("ED25519 Private-Key"), "{text}");
}
