use super::*;
use v1::WatchEvent;

fn event(revision: u64, change: Change) -> WatchEvent {
    WatchEvent {
        revision,
        change: Some(change),
    }
}

fn role(name: &str) -> String {
    serde_json::json!({"name": name, "allow": {"ssh": {"labels": {"*": ["*"]}, "logins": ["root"]}}})
        .to_string()
}

#[test]
fn a_snapshot_holds_what_the_events_said() {
    let mut s = Snapshot::default();
    s.apply(event(1, Change::RoleJson(role("dev"))));
    s.apply(event(2, Change::RoleJson(role("ops"))));
    s.apply(event(3, Change::RoleRemoved("dev".into())));
    let lock = r#"{"target":"user:alice","reason":"left"}"#;
    s.apply(event(4, Change::LockJson(lock.into())));
    assert!(s.apply(event(5, Change::SnapshotEnd(v1::SnapshotEnd {}))));
    assert_eq!(s.revision, 5);
    assert_eq!(s.roles(&["dev".into(), "ops".into()]).len(), 1);
    assert_eq!(s.locked(&["user:alice".into()]).unwrap().reason, "left");
    assert!(s.locked(&["user:bob".into()]).is_none());
    s.apply(event(6, Change::LockRemoved("user:alice".into())));
    assert!(s.locked(&["user:alice".into()]).is_none());
}

#[test]
fn a_reset_forgets_roles_and_locks_but_not_the_trust() {
    let trust = TrustBundle {
        cluster: "demo".into(),
        cas: Vec::new(),
    };
    let mut s = Snapshot {
        trust: Some(trust.clone()),
        ..Snapshot::default()
    };
    s.apply(event(1, Change::RoleJson(role("dev"))));
    s.apply(event(2, Change::Reset(v1::Reset {})));
    assert!(s.roles.is_empty());
    assert_eq!(s.trust, Some(trust));
}

#[test]
fn an_expired_lock_locks_nobody() {
    let mut s = Snapshot::default();
    let lock = r#"{"target":"user:alice","reason":"over","expires_unix":1}"#;
    s.apply(event(1, Change::LockJson(lock.into())));
    assert!(s.locked(&["user:alice".into()]).is_none());
}

#[test]
fn a_role_that_cannot_be_read_denies_everything() {
    let mut s = Snapshot::default();
    let newer = r#"{"name":"dev","allow":{"ssh":{"labels":{"*":["*"]},"logins":["root"]}},"from_the_future":{}}"#;
    s.apply(event(1, Change::RoleJson(newer.into())));
    let roles = s.roles(&["dev".into()]);
    let who = postern_access::Subject {
        user: "alice",
        roles: &roles,
        traits: &BTreeMap::new(),
    };
    let labels = [("env".to_owned(), "prod".to_owned())].into();
    let target = postern_access::Target {
        kind: "ssh",
        name: "web-1",
        labels: &labels,
    };
    let decision = postern_access::decide(&who, &target, &[("logins", "root")]);
    assert!(matches!(decision, postern_access::Decision::Deny { .. }));
}

#[test]
fn a_cache_file_that_is_half_written_is_put_aside() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    postern_identity::store::private_dir(&data).unwrap();
    let path = data.join("cache.json");
    store::write_secret(&path, b"{\"revision\": 4, \"ro").unwrap();
    let (_feed, cache) = Feed::open(path.clone());
    assert_eq!(cache.borrow().revision, 0);
    assert!(path.with_extension("bad").exists());
}

#[tokio::test]
async fn what_is_published_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    postern_identity::store::private_dir(&data).unwrap();
    let path = data.join("cache.json");
    let (feed, cache) = Feed::open(path.clone());
    let mut s = Snapshot::default();
    s.apply(event(7, Change::RoleJson(role("dev"))));
    feed.publish(s, true).await;
    assert_eq!(cache.borrow().revision, 7);
    let (_feed, again) = Feed::open(path);
    assert_eq!(again.borrow().revision, 7);
    assert_eq!(again.borrow().roles(&["dev".into()]).len(), 1);
}

#[test]
fn a_lock_that_cannot_be_read_locks() {
    let mut s = Snapshot::default();
    let newer = r#"{"target":"user:alice","reason":{"code":7}}"#;
    s.apply(event(1, Change::LockJson(newer.into())));
    assert!(s.locked(&["user:alice".into()]).is_some());
}
