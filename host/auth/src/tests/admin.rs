//! Administration over the socket.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use postern_api::status::reasons;
use postern_api::v1::admin_service_client::AdminServiceClient;
use postern_api::v1::{
    AuditRequest, CreateTokenRequest, CreateUserRequest, Empty, GetRequest, ListRequest,
    PutLockRequest, PutRoleRequest, RemoveRequest,
};
use tokio_stream::StreamExt;

use super::{Host, Lab, assert_refused, strings};

async fn names(lab: &Lab, kind: &str) -> Vec<String> {
    let objects = lab
        .admin()
        .list(ListRequest { kind: kind.into() })
        .await
        .unwrap()
        .into_inner();
    objects.map(|o| o.unwrap().name).collect().await
}

#[tokio::test]
async fn the_socket_is_private_and_the_only_way() {
    let mut lab = Lab::start().await;
    let socket = lab.opts.data_dir.join("admin.sock");
    assert_eq!(
        std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
        0o600
    );
    for file in ["state.db", "state.db-wal", "audit.db"] {
        let mode = std::fs::metadata(lab.opts.data_dir.join("auth").join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let user = lab.user("alice", &[]).await;
    for id in [None, Some(&user.tls())] {
        let refused = AdminServiceClient::new(lab.channel(id))
            .cluster_info(Empty {})
            .await
            .unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unimplemented);
    }
    lab.stop().await;
    assert!(!socket.exists());
}

#[tokio::test]
async fn tokens_users_roles_and_locks_come_and_go() {
    let lab = Lab::start().await;
    assert_eq!(names(&lab, "role").await, ["access"]);
    let token = lab.token(&["ssh", "tcp"], &["web-*"], 3).await;
    let public = format!("pt_{}", token.split('_').nth(1).unwrap());
    assert_eq!(names(&lab, "token").await, std::slice::from_ref(&public));
    let shown = lab
        .admin()
        .get(GetRequest {
            kind: "token".into(),
            name: public.clone(),
        })
        .await
        .unwrap()
        .into_inner()
        .json;
    assert!(
        shown.contains("\"uses\":3") && !shown.contains("hash"),
        "{shown}"
    );
    let other = lab.token(&["ssh"], &[], 0).await;
    // A whole pasted token names the token, too.
    for name in [public.clone(), other] {
        lab.admin()
            .remove(RemoveRequest {
                kind: "token".into(),
                name,
            })
            .await
            .unwrap();
    }
    assert!(names(&lab, "token").await.is_empty());
    let refused = lab
        .joins()
        .join(Host::new().ask("ssh", "ssh", &["web-1"], &token))
        .await
        .unwrap_err();
    assert_refused(&refused, reasons::TOKEN_INVALID, "unknown");

    let gone = lab
        .admin()
        .remove(RemoveRequest {
            kind: "token".into(),
            name: public,
        })
        .await
        .unwrap_err();
    assert_refused(&gone, reasons::NOT_FOUND, "there is no token");
    lab.user("alice", &["root"]).await;
    let shown = lab
        .admin()
        .get(GetRequest {
            kind: "user".into(),
            name: "alice".into(),
        })
        .await
        .unwrap()
        .into_inner()
        .json;
    assert!(
        shown.contains("enrolled") && !shown.contains("argon2"),
        "{shown}"
    );
    let events = lab.audited("token.*").await;
    assert_eq!(events.len(), 4, "{events:?}");
    assert!(events[0]["admin_uid"].is_number());
    assert!(
        !serde_json::to_string(&events)
            .unwrap()
            .contains(token.rsplit('_').next().unwrap())
    );
}

#[tokio::test]
async fn bad_input_is_refused_with_the_reason() {
    let lab = Lab::start().await;
    let mut admin = lab.admin();
    let token = |kinds: &[&str], names: &[&str], ttl| CreateTokenRequest {
        kinds: strings(kinds),
        names: strings(names),
        ttl_seconds: ttl,
        uses: 0,
        ..Default::default()
    };
    for (request, says) in [
        (token(&[], &[], 0), "at least one kind"),
        (token(&["SSH"], &[], 0), "lower-case"),
        (token(&["auth"], &[], 0), "reserved"),
        (token(&["ssh"], &["web-["], 0), "web-["),
        (token(&["ssh"], &[], u64::MAX), "longer than a year"),
    ] {
        let refused = admin.create_token(request).await.unwrap_err();
        assert!(refused.message().contains(says), "{}", refused.message());
    }
    let role = |json: &str, replace| PutRoleRequest {
        role_json: json.into(),
        replace,
    };
    for (json, says) in [
        ("{", "this is no role"),
        (r#"{"name":"x","alow":{}}"#, "alow"),
        (r#"{"name":"X y"}"#, "role name"),
        (
            r#"{"name":"x","allow":{"ssh":{"labels":{"env":["^(bad$"]}}}}"#,
            "env",
        ),
        (r#"{"name":"access"}"#, "the role \"access\" exists"),
    ] {
        let refused = admin.put_role(role(json, false)).await.unwrap_err();
        assert!(refused.message().contains(says), "{}", refused.message());
    }
    admin
        .put_role(role(r#"{"name":"access"}"#, true))
        .await
        .unwrap();
    let user = |name: &str, roles: &[&str], reset| CreateUserRequest {
        name: name.into(),
        roles: strings(roles),
        reset,
        ..CreateUserRequest::default()
    };
    admin
        .create_user(user("alice", &["access"], false))
        .await
        .unwrap();
    for (request, reason, says) in [
        (
            user("a/b", &["access"], false),
            reasons::BAD_REQUEST,
            "user name",
        ),
        (
            user("bob", &["admin"], false),
            reasons::NOT_FOUND,
            "there is no role \"admin\"",
        ),
        (
            user("bob", &[], false),
            reasons::BAD_REQUEST,
            "without a role",
        ),
        (
            user("alice", &["access"], false),
            reasons::EXISTS,
            "--reset",
        ),
        (
            user("bob", &["access"], true),
            reasons::NOT_FOUND,
            "there is no user",
        ),
    ] {
        assert_refused(&admin.create_user(request).await.unwrap_err(), reason, says);
    }
    for (target, says) in [
        ("alice", "no lock target"),
        ("host:xyz", "no lock target"),
        ("user:", "no lock target"),
    ] {
        let lock_json = format!(r#"{{"target":"{target}","reason":"x"}}"#);
        let refused = admin
            .put_lock(PutLockRequest { lock_json })
            .await
            .unwrap_err();
        assert!(refused.message().contains(says), "{}", refused.message());
    }
    let refused = admin
        .list(ListRequest {
            kind: "cheese".into(),
        })
        .await
        .unwrap_err();
    assert_refused(
        &refused,
        reasons::BAD_REQUEST,
        "there are token, user, role",
    );
    let refused = admin
        .remove(RemoveRequest {
            kind: "agent".into(),
            name: "web".into(),
        })
        .await
        .unwrap_err();
    assert_refused(&refused, reasons::BAD_REQUEST, "postern agents ls");
}

#[tokio::test]
async fn removing_one_service_leaves_the_host_its_grant() {
    let lab = Lab::start().await;
    let host = Host::new();
    host.join(&lab, "ssh", "ssh", &["web-1"]).await;
    host.join(&lab, "tcp", "tcp", &["orders"]).await;
    let name = format!("{}/ssh", host.id());
    lab.admin()
        .remove(RemoveRequest {
            kind: "agent".into(),
            name: name.clone(),
        })
        .await
        .unwrap();
    assert_eq!(names(&lab, "agent").await, [format!("{}/tcp", host.id())]);
    assert_eq!(names(&lab, "lock").await, [format!("service:{name}")]);
    assert_eq!(names(&lab, "resource").await, ["tcp/orders"]);
    let refused = lab
        .joins()
        .join(host.ask("ssh", "ssh", &["web-1"], ""))
        .await
        .unwrap_err();
    assert_refused(
        &refused,
        reasons::LOCKED,
        &format!("postern locks rm service:{name}"),
    );
    lab.joins()
        .join(host.ask("ssh2", "ssh", &["web-1"], ""))
        .await
        .unwrap();
    let again = lab
        .admin()
        .remove(RemoveRequest {
            kind: "agent".into(),
            name,
        })
        .await
        .unwrap_err();
    assert_refused(&again, reasons::NOT_FOUND, "there is no agent");
}

#[tokio::test]
async fn the_audit_log_is_read_and_followed() {
    let lab = Lab::start().await;
    for _ in 0..3 {
        lab.token(&["ssh"], &[], 0).await;
    }
    lab.user("alice", &[]).await;
    let mut admin = lab.admin();
    let last = AuditRequest {
        last: 2,
        event: "token.create".into(),
        ..AuditRequest::default()
    };
    let last: Vec<_> = admin
        .audit(last)
        .await
        .unwrap()
        .into_inner()
        .map(|e| e.unwrap().seq)
        .collect()
        .await;
    assert_eq!(last.len(), 2);
    let after = AuditRequest {
        after_seq: last[0],
        event: "token.create".into(),
        ..AuditRequest::default()
    };
    let after: Vec<_> = admin
        .audit(after)
        .await
        .unwrap()
        .into_inner()
        .map(|e| e.unwrap().seq)
        .collect()
        .await;
    assert_eq!(after, [last[1]]);

    let follow = AuditRequest {
        follow: true,
        last: 1,
        event: "token.create".into(),
        ..AuditRequest::default()
    };
    let mut follow = admin.audit(follow).await.unwrap().into_inner();
    assert_eq!(follow.next().await.unwrap().unwrap().seq, last[1]);
    lab.token(&["tcp"], &[], 0).await;
    let new = tokio::time::timeout(Duration::from_secs(10), follow.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(new.seq > last[1] && new.json.contains("tcp"), "{new:?}");
}
