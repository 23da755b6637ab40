use super::*;
use tokio::sync::watch;

fn decider(snapshot: Snapshot, lock_mode: LockMode) -> (Decider, watch::Sender<Arc<Snapshot>>) {
    let (tx, cache) = watch::channel(Arc::new(snapshot));
    let decider = Decider {
        cluster: "demo".into(),
        host_id: "h1".into(),
        service: "ssh".into(),
        lock_mode,
        cache,
    };
    (decider, tx)
}

fn heard_now() -> Snapshot {
    let role = serde_json::json!({
        "name": "dev",
        "allow": {"ssh": {"labels": {"env": ["dev"]}, "logins": ["{{internal.logins}}"]}}
    });
    let role: postern_access::Role = serde_json::from_value(role).unwrap();
    Snapshot {
        roles: [("dev".to_owned(), role)].into(),
        heard_unix: postern_membership::unix_now(),
        ..Snapshot::default()
    }
}

fn alice() -> UserIdentity {
    UserIdentity {
        name: "alice".into(),
        roles: vec!["dev".into()],
        traits: [("logins".to_owned(), vec!["ubuntu".to_owned()])].into(),
    }
}

fn web() -> Offered {
    Offered {
        id: ResourceId::new("ssh", "web-1").unwrap(),
        labels: [("env".to_owned(), "dev".to_owned())].into(),
        direct: false,
        address: None,
        tls: None,
        auth: Default::default(),
        admin: None,
    }
}

#[test]
fn a_role_allows_its_logins_and_no_other() {
    let (d, _tx) = decider(heard_now(), LockMode::BestEffort);
    assert_eq!(
        d.check(&alice(), &web(), &[("logins", "ubuntu")]),
        Ok("dev".into())
    );
    let refused = d
        .check(&alice(), &web(), &[("logins", "root")])
        .unwrap_err();
    assert!(refused.contains("root"), "{refused}");
}

#[test]
fn another_label_is_another_answer() {
    let (d, _tx) = decider(heard_now(), LockMode::BestEffort);
    let mut prod = web();
    prod.labels.insert("env".into(), "prod".into());
    assert!(d.check(&alice(), &prod, &[("logins", "ubuntu")]).is_err());
}

#[test]
fn a_role_that_is_gone_allows_nothing() {
    let mut snapshot = heard_now();
    snapshot.roles.clear();
    let (d, _tx) = decider(snapshot, LockMode::BestEffort);
    assert!(d.check(&alice(), &web(), &[("logins", "ubuntu")]).is_err());
}

#[test]
fn strict_refuses_what_best_effort_serves_from_an_old_cache() {
    let mut old = heard_now();
    old.heard_unix -= STRICT_AGE.as_secs() + 1;
    let (d, _tx) = decider(old.clone(), LockMode::BestEffort);
    assert!(d.check(&alice(), &web(), &[("logins", "ubuntu")]).is_ok());
    let (d, _tx) = decider(old, LockMode::Strict);
    let refused = d
        .check(&alice(), &web(), &[("logins", "ubuntu")])
        .unwrap_err();
    assert!(refused.contains("lock_mode is \"strict\""), "{refused}");
}

#[tokio::test]
async fn a_lock_refuses_and_ends_what_runs() {
    for target in ["user:alice", "host:h1", "service:h1/ssh"] {
        let (d, tx) = decider(heard_now(), LockMode::BestEffort);
        let waiting = tokio::spawn({
            let d = d.clone();
            async move {
                d.until_refused(&alice(), &web(), &[("logins", "ubuntu")], None)
                    .await
            }
        });
        let mut locked = heard_now();
        locked.locks.insert(
            target.into(),
            postern_access::Lock {
                target: target.into(),
                reason: "stolen laptop".into(),
                expires_unix: None,
            },
        );
        tx.send_replace(Arc::new(locked));
        let why = waiting.await.unwrap();
        assert_eq!(why, format!("{target} is locked: stolen laptop"));
        assert_eq!(d.check(&alice(), &web(), &[("logins", "ubuntu")]), Err(why));
    }
}

#[tokio::test]
async fn a_role_that_is_taken_away_ends_what_runs_under_it() {
    let (d, tx) = decider(heard_now(), LockMode::BestEffort);
    let waiting = tokio::spawn({
        let d = d.clone();
        async move {
            d.until_refused(&alice(), &web(), &[("logins", "ubuntu")], None)
                .await
        }
    });
    let mut without = heard_now();
    without.roles.clear();
    tx.send_replace(Arc::new(without));
    let why = waiting.await.unwrap();
    assert!(why.contains("alice"), "{why}");
}
