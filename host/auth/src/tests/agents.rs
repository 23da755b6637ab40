//! Watch, heartbeats, audit events, and who may call them.

use std::time::Duration;

use postern_access::{Lock, Role};
use postern_api::status::reasons;
use postern_api::v1::watch_event::Change;
use postern_api::v1::{
    AnnouncedResource, HeartbeatRequest, ListRequest, PutLockRequest, PutRoleRequest,
    RemoveRequest, SubmitEventsRequest, WatchEvent, WatchRequest,
};
use postern_audit::Event;
use tokio_stream::StreamExt;
use tonic::Streaming;

use super::{CLUSTER, Host, Lab, assert_refused, strings};

async fn next(stream: &mut Streaming<WatchEvent>) -> WatchEvent {
    tokio::time::timeout(Duration::from_secs(10), stream.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap()
}

/// The next event that is no sign of life.
async fn change(stream: &mut Streaming<WatchEvent>) -> (u64, Change) {
    loop {
        let event = next(stream).await;
        match event.change.unwrap() {
            Change::Alive(_) => {}
            change => return (event.revision, change),
        }
    }
}

fn role(name: &str) -> PutRoleRequest {
    let role = Role {
        name: name.into(),
        ..Role::default()
    };
    PutRoleRequest {
        role_json: serde_json::to_string(&role).unwrap(),
        replace: true,
    }
}

fn lock(target: &str) -> PutLockRequest {
    let lock = Lock {
        target: target.into(),
        reason: "test".into(),
        expires_unix: None,
    };
    PutLockRequest {
        lock_json: serde_json::to_string(&lock).unwrap(),
    }
}

#[tokio::test]
async fn a_watch_is_a_snapshot_and_then_every_change() {
    let lab = Lab::start().await;
    let host = Host::new();
    let id = host.tls(&host.join(&lab, "ssh", "ssh", &["web-1"]).await);
    let mut admin = lab.admin();
    admin.put_lock(lock("user:mallory")).await.unwrap();

    let mut watch = lab
        .agents(&id)
        .watch(WatchRequest { from_revision: 0 })
        .await
        .unwrap()
        .into_inner();
    assert!(matches!(change(&mut watch).await.1, Change::Reset(_)));
    assert!(
        matches!(change(&mut watch).await.1, Change::TrustJson(json) if json.contains(CLUSTER))
    );
    let mut snapshot = Vec::new();
    loop {
        match change(&mut watch).await.1 {
            Change::SnapshotEnd(_) => break,
            other => snapshot.push(other),
        }
    }
    assert!(
        matches!(&snapshot[..], [Change::LockJson(lock), Change::RoleJson(role)]
        if lock.contains("mallory") && role.contains("internal.logins")),
        "{snapshot:?}"
    );
    assert!(matches!(
        next(&mut watch).await.change,
        Some(Change::Alive(_))
    ));

    admin.put_role(role("ops")).await.unwrap();
    let (revision, added) = change(&mut watch).await;
    assert!(matches!(added, Change::RoleJson(json) if json.contains("\"ops\"")));
    admin
        .remove(RemoveRequest {
            kind: "role".into(),
            name: "ops".into(),
        })
        .await
        .unwrap();
    assert_eq!(
        change(&mut watch).await.1,
        Change::RoleRemoved("ops".into())
    );
    admin
        .remove(RemoveRequest {
            kind: "lock".into(),
            name: "user:mallory".into(),
        })
        .await
        .unwrap();
    assert_eq!(
        change(&mut watch).await.1,
        Change::LockRemoved("user:mallory".into())
    );

    // A watch that goes on where another was cut off misses nothing.
    let mut again = lab
        .agents(&id)
        .watch(WatchRequest {
            from_revision: revision,
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        change(&mut again).await.1,
        Change::RoleRemoved("ops".into())
    );
    assert_eq!(
        change(&mut again).await.1,
        Change::LockRemoved("user:mallory".into())
    );

    // From a future that this Auth Service does not know: a snapshot.
    let mut reset = lab
        .agents(&id)
        .watch(WatchRequest {
            from_revision: 1 << 40,
        })
        .await
        .unwrap()
        .into_inner();
    assert!(matches!(change(&mut reset).await.1, Change::Reset(_)));
}

#[tokio::test]
async fn locks_that_expire_lift_themselves() {
    let lab = Lab::start().await;
    let host = Host::new();
    let id = host.tls(&host.join(&lab, "ssh", "ssh", &[]).await);
    let mut watch = lab
        .agents(&id)
        .watch(WatchRequest { from_revision: 0 })
        .await
        .unwrap()
        .into_inner();
    while !matches!(change(&mut watch).await.1, Change::SnapshotEnd(_)) {}
    let soon = u64::try_from(crate::time::now()).unwrap() + 2;
    let short = Lock {
        target: "user:bob".into(),
        reason: "tea".into(),
        expires_unix: Some(soon),
    };
    let short = PutLockRequest {
        lock_json: serde_json::to_string(&short).unwrap(),
    };
    lab.admin().put_lock(short).await.unwrap();
    assert!(matches!(change(&mut watch).await.1, Change::LockJson(_)));
    assert_eq!(
        change(&mut watch).await.1,
        Change::LockRemoved("user:bob".into())
    );
}

#[tokio::test]
async fn proxies_watch_locks_but_no_roles() {
    let lab = Lab::start().await;
    let proxy = Host::new();
    let token = lab.server().mint_proxy_token().await.unwrap();
    let joined = lab
        .joins()
        .join(proxy.ask("proxy", "proxy", &["p.example.com"], &token))
        .await
        .unwrap()
        .into_inner();
    let mut watch = lab
        .agents(&proxy.tls(&joined))
        .watch(WatchRequest { from_revision: 0 })
        .await
        .unwrap()
        .into_inner();
    let mut kinds = Vec::new();
    loop {
        match change(&mut watch).await.1 {
            Change::SnapshotEnd(_) => break,
            Change::RoleJson(role) => panic!("a proxy needs no role: {role}"),
            other => kinds.push(other),
        }
    }
    // Removing an agent reaches the proxy as a lock.
    let host = Host::new();
    host.join(&lab, "ssh", "ssh", &["web-1"]).await;
    let name = format!("{}/ssh", host.id());
    lab.admin()
        .remove(RemoveRequest {
            kind: "agent".into(),
            name: name.clone(),
        })
        .await
        .unwrap();
    assert!(
        matches!(change(&mut watch).await.1, Change::LockJson(json) if json.contains(&format!("service:{name}")))
    );
}

#[tokio::test]
async fn a_locked_agent_is_told_and_cut_off() {
    let lab = Lab::start().await;
    let host = Host::new();
    let id = host.tls(&host.join(&lab, "ssh", "ssh", &["web-1"]).await);
    let mut watch = lab
        .agents(&id)
        .watch(WatchRequest { from_revision: 0 })
        .await
        .unwrap()
        .into_inner();
    while !matches!(change(&mut watch).await.1, Change::SnapshotEnd(_)) {}
    lab.admin()
        .put_lock(lock(&format!("host:{}", host.id())))
        .await
        .unwrap();
    assert!(matches!(change(&mut watch).await.1, Change::LockJson(_)));
    let end = tokio::time::timeout(Duration::from_secs(10), watch.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    assert_refused(&end, reasons::LOCKED, "is locked: test");
    let refused = lab
        .agents(&id)
        .watch(WatchRequest { from_revision: 0 })
        .await
        .unwrap_err();
    assert_refused(&refused, reasons::LOCKED, "is locked: test");
    let audited = lab.audited("auth.refused").await;
    assert_eq!(audited[0]["reason"], "locked");
    assert_eq!(audited[0]["caller"], format!("service:{}/ssh", host.id()));
}

#[tokio::test]
async fn heartbeats_fill_the_inventory_within_the_certificate() {
    let mut lab = Lab::start().await;
    let host = Host::new();
    let id = host.tls(&host.join(&lab, "ssh", "ssh", &["web-1"]).await);
    let resource = |name: &str| AnnouncedResource {
        name: name.into(),
        labels: [("env".into(), "prod".into())].into(),
        direct: false,
        unreachable: None,
    };
    let beat = HeartbeatRequest {
        kind: "ssh".into(),
        version: "0.1.0".into(),
        hostname: "web".into(),
        plugin: "ssh".into(),
        resources: vec![resource("web-1"), resource("db-1")],
        tunnel_rtt_ms: 1.5,
        ..HeartbeatRequest::default()
    };
    let answer = lab
        .agents(&id)
        .heartbeat(beat.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.refused, ["db-1"]);
    assert!(
        answer.reasons[0].contains("certificate does not name it"),
        "{:?}",
        answer.reasons
    );
    let other_kind = HeartbeatRequest {
        kind: "tcp".into(),
        ..beat.clone()
    };
    let refused = lab.agents(&id).heartbeat(other_kind).await.unwrap_err();
    assert_refused(&refused, reasons::BAD_REQUEST, "joined as kind \"ssh\"");

    let agent = async |lab: &Lab| -> serde_json::Value {
        let objects = lab
            .admin()
            .list(ListRequest {
                kind: "agent".into(),
            })
            .await
            .unwrap()
            .into_inner();
        let objects: Vec<_> = objects.map(|o| o.unwrap()).collect().await;
        serde_json::from_str(&objects[0].json).unwrap()
    };
    let seen = agent(&lab).await;
    assert_eq!(
        (&seen["healthy"], &seen["hostname"], &seen["tunnel_rtt_ms"]),
        (&true.into(), &"web".into(), &1.5.into())
    );
    assert_eq!(seen["resources"].as_array().unwrap().len(), 1);

    // After a restart it is known, and not healthy before it is heard of again.
    lab.restart().await;
    let seen = agent(&lab).await;
    assert_eq!(
        (&seen["healthy"], &seen["hostname"]),
        (&false.into(), &"web".into())
    );
    lab.agents(&id).heartbeat(beat).await.unwrap();
    assert_eq!(agent(&lab).await["healthy"], true);
}

#[tokio::test]
async fn audit_events_are_stored_once_and_say_who_sent_them() {
    let lab = Lab::start().await;
    let host = Host::new();
    let id = host.tls(&host.join(&lab, "ssh", "ssh", &["web-1"]).await);
    let mut agents = lab.agents(&id);
    let event = Event::new("session.start")
        .with("user", "alice")
        .with("host_id", "somebody-else")
        .with("service", "other")
        .with("cluster", "other");
    let json = serde_json::to_string(&event).unwrap();
    let login = Event::new("user.login").with("user", "admin");
    let forged = serde_json::to_string(&login).unwrap();
    let batch = SubmitEventsRequest {
        events_json: vec![
            json.clone(),
            "{}".into(),
            forged.clone(),
            "x".repeat(70_000),
        ],
    };
    for _ in 0..2 {
        let answer = agents
            .submit_events(batch.clone())
            .await
            .unwrap()
            .into_inner();
        // Stored, or stored before; what has no uid of its own gets one.
        let [first, _, third, _] = &answer.stored_uids[..] else {
            panic!("{answer:?}");
        };
        assert_eq!([first, third], [&event.uid, &login.uid]);
    }
    let stored = lab.audited("session.start").await;
    assert_eq!(stored.len(), 1);
    assert_eq!(
        (
            &stored[0]["host_id"],
            &stored[0]["service"],
            &stored[0]["cluster"]
        ),
        (&host.id().into(), &"ssh".into(), &CLUSTER.into())
    );
    assert_eq!(stored[0]["user"], "alice");
    assert!(lab.audited("user.login").await.is_empty());
    let stand_ins = lab.audited("audit.refused").await;
    assert_eq!(
        stand_ins.len(),
        3,
        "each once, though sent twice: {stand_ins:?}"
    );
    assert!(
        stand_ins
            .iter()
            .all(|e| e["host_id"] == host.id() && e["service"] == "ssh")
    );
    assert_eq!(
        (
            &stand_ins[1]["claimed"],
            &stand_ins[1]["text"],
            &stand_ins[1]["uid"]
        ),
        (&"user.login".into(), &forged.into(), &login.uid.into())
    );
    assert_eq!(stand_ins[2]["bytes"], 70_000);
    assert!(stand_ins[2]["text"].as_str().unwrap().starts_with("xxxx"));
    let many = SubmitEventsRequest {
        events_json: vec![json; 1001],
    };
    assert_refused(
        &agents.submit_events(many).await.unwrap_err(),
        reasons::BAD_REQUEST,
        "at most 1000",
    );
}

/// A command of control characters is six times as long in JSON; earlier agents wrote it all into their spools.
#[tokio::test]
async fn an_event_that_is_too_long_is_stored_cut() {
    let lab = Lab::start().await;
    let host = Host::new();
    let id = host.tls(&host.join(&lab, "ssh", "ssh", &["web-1"]).await);
    let mut event = Event::new("exec").with("session_id", "s-1");
    let command = format!("evil #{}", "\u{1}".repeat(40_000));
    event.fields.insert("command".into(), command.into());
    let json = serde_json::to_string(&event).unwrap();
    assert!(json.len() > 240_000);
    let batch = SubmitEventsRequest {
        events_json: vec![json],
    };
    let answer = lab
        .agents(&id)
        .submit_events(batch)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.stored_uids, [event.uid.as_str()]);
    let stored = lab.audited("exec").await;
    assert_eq!((stored.len(), &stored[0]["session_id"]), (1, &"s-1".into()));
    assert!(
        stored[0]["command"].as_str().unwrap().starts_with("evil #"),
        "{stored:?}"
    );
    assert!(stored[0]["truncated"].as_u64().unwrap() > 240_000);
}

#[tokio::test]
async fn a_service_speaks_only_of_what_it_does() {
    let lab = Lab::start().await;
    let submit = async |id, names: &[&str]| {
        let events_json = names
            .iter()
            .map(|n| serde_json::to_string(&Event::new(n)).unwrap())
            .collect();
        let sent = lab
            .agents(id)
            .submit_events(SubmitEventsRequest { events_json })
            .await;
        assert_eq!(sent.unwrap().into_inner().stored_uids.len(), names.len());
    };
    let host = Host::new();
    let id = host.tls(&host.join(&lab, "ssh", "ssh", &["web-1"]).await);
    let own = [
        "session.start",
        "exec",
        "port.forward",
        "plugin.trap",
        "kube.request",
        "db.query",
    ];
    submit(&id, &own).await;
    let others = [
        "auth.refused",
        "resource.conflict",
        "agent.join",
        "proxy.x",
        "execute",
        "audit.refused",
        "session.",
    ];
    submit(&id, &others).await;
    let proxy = Host::new();
    let id = proxy.tls(
        &proxy
            .join(&lab, "proxy", "proxy", &["proxy.example.com"])
            .await,
    );
    submit(&id, &["session.start", "proxy.drain"]).await;
    let of = async |host: &Host, refused: bool| -> Vec<String> {
        let all = lab.audited("").await.into_iter();
        let all = all.filter(|e| e["host_id"] == host.id() && e["event"] != "agent.join");
        let key = if refused { "claimed" } else { "event" };
        all.filter(|e| (e["event"] == "audit.refused") == refused)
            .map(|e| e[key].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(of(&host, false).await, own);
    assert_eq!(of(&host, true).await, others);
    assert_eq!(
        (of(&proxy, false).await, of(&proxy, true).await),
        (strings(&["proxy.drain"]), strings(&["session.start"]))
    );
}

#[tokio::test]
async fn users_and_strangers_are_kept_out() {
    let lab = Lab::start().await;
    let user = lab.user("alice", &["root"]).await;
    let as_user = lab
        .agents(&user.tls())
        .heartbeat(HeartbeatRequest::default())
        .await
        .unwrap_err();
    assert_refused(
        &as_user,
        reasons::WRONG_CALLER,
        "user \"alice\" may not call it",
    );
    let mut stranger =
        postern_api::v1::agent_service_client::AgentServiceClient::new(lab.channel(None));
    let refused = stranger
        .submit_events(SubmitEventsRequest::default())
        .await
        .unwrap_err();
    assert_refused(&refused, reasons::NO_CERTIFICATE, "gave none");
    let refused = stranger.watch(WatchRequest::default()).await.unwrap_err();
    assert_refused(&refused, reasons::NO_CERTIFICATE, "AgentService/Watch");
    let audited = lab.audited("auth.refused").await;
    assert_eq!(
        audited
            .iter()
            .map(|e| e["reason"].as_str().unwrap())
            .collect::<Vec<_>>(),
        strings(&["wrong-caller", "no-certificate", "no-certificate"])
    );
}

#[tokio::test]
async fn expired_certificates_are_refused_on_new_and_old_connections() {
    let lab = Lab::with(|o| o.cert_ttl = Duration::from_secs(4)).await;
    let host = Host::new();
    let joined = host.join(&lab, "ssh", "ssh", &[]).await;
    let id = host.tls(&joined);
    let mut old = lab.agents(&id);
    let mut watch = old
        .watch(WatchRequest { from_revision: 0 })
        .await
        .unwrap()
        .into_inner();
    let end = loop {
        if let Err(end) = tokio::time::timeout(Duration::from_secs(10), watch.next())
            .await
            .unwrap()
            .unwrap()
        {
            break end;
        }
    };
    assert_refused(&end, reasons::BAD_CERTIFICATE, "has expired");
    super::eventually("it expires", || async {
        crate::time::now() > joined.not_after_unix
    })
    .await;
    let refused = old
        .heartbeat(HeartbeatRequest {
            kind: "ssh".into(),
            ..HeartbeatRequest::default()
        })
        .await
        .unwrap_err();
    assert_refused(&refused, reasons::BAD_CERTIFICATE, "expired at");
    let refused = lab
        .agents(&id)
        .heartbeat(HeartbeatRequest::default())
        .await
        .unwrap_err();
    assert!(
        postern_api::status::describe(&refused)
            .to_lowercase()
            .contains("expired"),
        "{refused:?}"
    );
    super::eventually("the refused handshake is audited", || async {
        lab.audited("auth.refused")
            .await
            .iter()
            .any(|e| e["method"] == "TLS")
    })
    .await;
}
