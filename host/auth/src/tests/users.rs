//! Enrolment, logins, and what users see.

use std::time::{Duration, Instant};

use postern_access::{Lock, Options, Role};
use postern_api::status::reasons;
use postern_api::v1::{
    AnnouncedResource, CreateUserRequest, EnrollRequest, HeartbeatRequest, ListRequest,
    ListResourcesRequest, LoginRequest, PutLockRequest, PutRoleRequest, RemoveRequest,
    StatusRequest, Unreachable,
};
use postern_identity::{CaKind, ServiceKeys, tls, verify_user_cert};
use tokio_stream::StreamExt;

use super::{CLUSTER, Host, Lab, PASSWORD, assert_refused, strings};

fn login(user: &str, password: &str) -> LoginRequest {
    let keys = ServiceKeys::generate();
    LoginRequest {
        user: user.into(),
        password: password.into(),
        spki: keys.spki(),
        ssh_public_key: keys.ssh_public(),
        ttl_seconds: 0,
    }
}

fn enroll(user: &str, code: &str, password: &str) -> EnrollRequest {
    let keys = ServiceKeys::generate();
    EnrollRequest {
        user: user.into(),
        code: code.into(),
        new_password: password.into(),
        spki: keys.spki(),
        ssh_public_key: keys.ssh_public(),
        ttl_seconds: 0,
    }
}

fn create(name: &str) -> CreateUserRequest {
    CreateUserRequest {
        name: name.into(),
        roles: strings(&["access"]),
        ..CreateUserRequest::default()
    }
}

#[tokio::test]
async fn a_code_sets_the_password_once() {
    let mut lab = Lab::start().await;
    let created = lab
        .admin()
        .create_user(create("alice@example.com"))
        .await
        .unwrap()
        .into_inner();
    let pin = lab.server().trust().host_pins()[0];
    assert_eq!(
        created.link,
        format!(
            "https://proxy.example.com:443/enroll?cluster={CLUSTER}&user=alice%40example.com&code={}&ca_pin={pin}",
            created.code
        )
    );
    let mut logins = lab.logins();
    let name = "alice@example.com";
    let weak = logins
        .enroll(enroll(name, &created.code, "short"))
        .await
        .unwrap_err();
    assert_refused(&weak, reasons::WEAK_PASSWORD, "at least 8 characters");
    let wrong = logins
        .enroll(enroll(name, "0000", PASSWORD))
        .await
        .unwrap_err();
    assert_refused(&wrong, reasons::CODE_INVALID, "ask an administrator");
    let unknown = logins
        .enroll(enroll("bob", &created.code, PASSWORD))
        .await
        .unwrap_err();
    assert_eq!(
        unknown.message(),
        wrong.message(),
        "nobody learns which users exist"
    );
    logins
        .enroll(enroll(name, &created.code, PASSWORD))
        .await
        .unwrap();
    let again = logins
        .enroll(enroll(name, &created.code, PASSWORD))
        .await
        .unwrap_err();
    assert_refused(&again, reasons::CODE_INVALID, "was used");
    lab.restart().await;
    lab.logins().login(login(name, PASSWORD)).await.unwrap();

    // A reset keeps the password until the new code is used.
    let reset = CreateUserRequest {
        name: name.into(),
        reset: true,
        ..CreateUserRequest::default()
    };
    let code = lab
        .admin()
        .create_user(reset)
        .await
        .unwrap()
        .into_inner()
        .code;
    lab.logins().login(login(name, PASSWORD)).await.unwrap();
    lab.logins()
        .enroll(enroll(name, &code, "another pass phrase"))
        .await
        .unwrap();
    assert_refused(
        &lab.logins().login(login(name, PASSWORD)).await.unwrap_err(),
        reasons::LOGIN_FAILED,
        "wrong",
    );
}

#[tokio::test]
async fn credentials_say_what_the_roles_say() {
    let lab = Lab::start().await;
    let user = lab.user("alice", &["root", "app"]).await;
    assert_eq!(user.credentials.logins, ["app", "root"]);
    let trust = lab.server().trust();
    let certificate: ssh_key::Certificate = user.credentials.ssh_cert.parse().unwrap();
    let cas = trust.ssh_keys(CaKind::User);
    let now = std::time::SystemTime::now();
    let identity = verify_user_cert(&certificate, &cas, Some("app"), None, now).unwrap();
    assert_eq!(
        (identity.name.as_str(), &identity.roles[..]),
        ("alice", &strings(&["access"])[..])
    );
    assert!(verify_user_cert(&certificate, &cas, Some("postgres"), None, now).is_err());
    let life = user.credentials.not_after_unix - crate::time::now();
    assert!((12 * 3600 - 60..=12 * 3600).contains(&life), "{life}");

    let status = lab
        .users(&user.tls())
        .status(StatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (
            status.user.as_str(),
            status.cluster.as_str(),
            status.logins.len()
        ),
        ("alice", CLUSTER, 2)
    );

    // A user without a login by name: the certificate must not be one that is good for all of them.
    let nobody = lab.user("bob", &[]).await;
    let certificate: ssh_key::Certificate = nobody.credentials.ssh_cert.parse().unwrap();
    assert_eq!(certificate.valid_principals(), ["user:bob"]);

    // Shorter by request, never longer than the roles allow.
    let short = Role {
        name: "short".into(),
        options: Options {
            max_session_ttl_secs: 600,
            ..Options::default()
        },
        ..Role::default()
    };
    let put = PutRoleRequest {
        role_json: serde_json::to_string(&short).unwrap(),
        replace: false,
    };
    lab.admin().put_role(put).await.unwrap();
    let change = CreateUserRequest {
        name: "alice".into(),
        roles: strings(&["access", "short"]),
        reset: true,
        ..CreateUserRequest::default()
    };
    lab.admin().create_user(change).await.unwrap();
    for (asked, lives) in [(0, 600), (3600, 600), (120, 120), (1, 60)] {
        let request = LoginRequest {
            ttl_seconds: asked,
            ..login("alice", PASSWORD)
        };
        let given = lab.logins().login(request).await.unwrap().into_inner();
        let life = given.not_after_unix - crate::time::now();
        assert!(
            (lives - 5..=lives).contains(&life),
            "asked {asked}, got {life}"
        );
    }
}

#[tokio::test]
async fn wrong_and_unknown_sound_and_cost_the_same() {
    let lab = Lab::start().await;
    lab.user("alice", &[]).await;
    let mut logins = lab.logins();
    let mut cost = Vec::new();
    for user in ["alice", "nobody", "../../etc"] {
        let began = Instant::now();
        let refused = logins
            .login(login(user, "wrong password"))
            .await
            .unwrap_err();
        cost.push(began.elapsed());
        assert_refused(
            &refused,
            reasons::LOGIN_FAILED,
            "user name or password is wrong",
        );
    }
    let (fast, slow) = (cost.iter().min().unwrap(), cost.iter().max().unwrap());
    assert!(
        *fast > Duration::from_millis(2),
        "no argon2 was run: {cost:?}"
    );
    assert!(slow.as_secs_f64() / fast.as_secs_f64() < 20.0, "{cost:?}");
    let failures = lab.audited("user.login").await;
    let failures: Vec<_> = failures.iter().filter(|e| e["success"] == false).collect();
    assert_eq!(failures.len(), 3);
    assert_eq!(failures[0]["user"], "alice");
    assert!(
        failures[2].get("user").is_none(),
        "what is no user name is not logged: it may be a password"
    );
}

#[tokio::test]
async fn guessing_is_slowed_down_and_one_user_does_not_block_another() {
    let lab = Lab::start().await;
    lab.user("alice", &[]).await;
    lab.user("bob", &[]).await;
    let mut logins = lab.logins();
    for _ in 0..5 {
        assert_refused(
            &logins.login(login("alice", "guess")).await.unwrap_err(),
            reasons::LOGIN_FAILED,
            "",
        );
    }
    let refused = logins.login(login("alice", PASSWORD)).await.unwrap_err();
    assert_refused(&refused, reasons::RATE_LIMITED, "try again in");
    for _ in 0..8 {
        logins.login(login("bob", PASSWORD)).await.unwrap();
    }
}

#[tokio::test]
async fn a_flood_of_refused_joins_stops_no_login() {
    let lab = Lab::start().await;
    lab.user("alice", &[]).await;
    let mut joins = lab.joins();
    let mut limited = false;
    for n in 0..400 {
        // Each with a name of its own, as long as it likes: none of it is kept.
        let junk = postern_api::v1::JoinRequest {
            cluster: "other".into(),
            service: format!("{n}-{}", "x".repeat(10_000)),
            ..Default::default()
        };
        let refused = joins.join(junk).await.unwrap_err();
        limited |= postern_api::status::reason(&refused) == Some(reasons::RATE_LIMITED);
    }
    assert!(limited);
    assert!(lab.audited("agent.join.refused").await.len() <= 210);
    lab.logins().login(login("alice", PASSWORD)).await.unwrap();
}

/// The lock that a removed user leaves behind holds as long as any of his certificates, whatever roles say now.
#[tokio::test]
async fn a_removed_users_lock_outlives_his_certificates() {
    let lab = Lab::start().await;
    let role = async |hours: u64| {
        let role = format!(
            r#"{{"name":"access","options":{{"max_session_ttl_secs":{}}}}}"#,
            hours * 3600
        );
        let role = PutRoleRequest {
            role_json: role,
            replace: true,
        };
        lab.admin().put_role(role).await.unwrap();
    };
    role(100).await;
    let alice = lab.user("alice", &[]).await;
    assert!(alice.credentials.not_after_unix > crate::time::now() + 99 * 3600);
    role(1).await;
    lab.logins().login(login("alice", PASSWORD)).await.unwrap();
    let remove = RemoveRequest {
        kind: "user".into(),
        name: "alice".into(),
    };
    let expires = async || {
        lab.admin().remove(remove.clone()).await.unwrap();
        let get = postern_api::v1::GetRequest {
            kind: "lock".into(),
            name: "user:alice".into(),
        };
        let lock = lab.admin().get(get).await.unwrap().into_inner().json;
        serde_json::from_str::<Lock>(&lock).unwrap().expires_unix
    };
    let first = expires().await.unwrap();
    assert!(first >= alice.credentials.not_after_unix as u64);
    // The next one of that name, removed as well, does not shorten it.
    let create = postern_api::v1::CreateUserRequest {
        name: "alice".into(),
        roles: strings(&["access"]),
        ..Default::default()
    };
    lab.admin().create_user(create).await.unwrap();
    assert_eq!(expires().await, Some(first));
}

#[tokio::test]
async fn locked_and_removed_users_are_out_at_once() {
    let lab = Lab::start().await;
    let (alice, bob) = (lab.user("alice", &[]).await, lab.user("bob", &[]).await);
    let lock = Lock {
        target: "user:alice".into(),
        reason: "lost laptop".into(),
        expires_unix: None,
    };
    let lock = PutLockRequest {
        lock_json: serde_json::to_string(&lock).unwrap(),
    };
    lab.admin().put_lock(lock).await.unwrap();
    lab.admin()
        .remove(RemoveRequest {
            kind: "user".into(),
            name: "bob".into(),
        })
        .await
        .unwrap();
    for (user, why) in [(&alice, "lost laptop"), (&bob, "was removed")] {
        let refused = lab
            .users(&user.tls())
            .status(StatusRequest {})
            .await
            .unwrap_err();
        assert_refused(&refused, reasons::LOCKED, why);
    }
    let refused = lab
        .logins()
        .login(login("alice", PASSWORD))
        .await
        .unwrap_err();
    assert_refused(&refused, reasons::LOCKED, "lost laptop");
    let refused = lab
        .logins()
        .login(login("alice", "wrong"))
        .await
        .unwrap_err();
    assert_refused(&refused, reasons::LOGIN_FAILED, "wrong");
    let refused = lab
        .logins()
        .login(login("bob", PASSWORD))
        .await
        .unwrap_err();
    assert_refused(&refused, reasons::LOGIN_FAILED, "wrong");
}

#[tokio::test]
async fn users_see_what_their_roles_let_them_reach() {
    let lab = Lab::start().await;
    let dev = r#"{"name":"dev","allow":{"ssh":{"labels":{"env":["dev"]},"logins":["app"]}}}"#;
    lab.admin()
        .put_role(PutRoleRequest {
            role_json: dev.into(),
            replace: false,
        })
        .await
        .unwrap();
    let change = CreateUserRequest {
        roles: strings(&["dev"]),
        ..create("dora")
    };
    let code = lab
        .admin()
        .create_user(change)
        .await
        .unwrap()
        .into_inner()
        .code;
    let request = enroll("dora", &code, PASSWORD);
    let keys = ServiceKeys::generate();
    let request = EnrollRequest {
        spki: keys.spki(),
        ssh_public_key: keys.ssh_public(),
        ..request
    };
    let credentials = lab.logins().enroll(request).await.unwrap().into_inner();
    let dora = super::User { keys, credentials };
    let alice = lab.user("alice", &["root"]).await;

    let host = Host::new();
    let id = host.tls(&host.join(&lab, "ssh", "ssh", &["web-1", "dev-1"]).await);
    let resource = |name: &str, env: &str| AnnouncedResource {
        name: name.into(),
        labels: [("env".into(), env.into())].into(),
        direct: false,
        unreachable: None,
    };
    let beat = HeartbeatRequest {
        kind: "ssh".into(),
        resources: vec![resource("web-1", "prod"), resource("dev-1", "dev")],
        ..HeartbeatRequest::default()
    };
    lab.agents(&id).heartbeat(beat).await.unwrap();
    // Joined and never heard of: not there.
    Host::new().join(&lab, "tcp", "tcp", &["silent"]).await;

    let list = async |user: &super::User, request: ListResourcesRequest| {
        lab.users(&user.tls())
            .list_resources(request)
            .await
            .unwrap()
            .into_inner()
            .resources
    };
    let all = list(&alice, ListResourcesRequest::default()).await;
    assert_eq!(
        all.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(),
        ["dev-1", "web-1"]
    );
    assert!(
        all.iter()
            .all(|r| r.healthy && r.agents == 1 && r.logins == ["root"])
    );
    assert_eq!(all[1].dns, format!("web-1.ssh.{CLUSTER}"));
    let prod = ListResourcesRequest {
        kind: "ssh".into(),
        labels: [("env".into(), "prod".into())].into(),
    };
    assert_eq!(list(&alice, prod).await.len(), 1);
    assert!(
        list(
            &alice,
            ListResourcesRequest {
                kind: "tcp".into(),
                ..ListResourcesRequest::default()
            }
        )
        .await
        .is_empty()
    );
    let seen = list(&dora, ListResourcesRequest::default()).await;
    assert_eq!(
        (seen.len(), seen[0].name.as_str(), &seen[0].logins[..]),
        (1, "dev-1", &strings(&["app"])[..])
    );

    let refused = lab.users(&id).status(StatusRequest {}).await.unwrap_err();
    assert_refused(
        &refused,
        reasons::WRONG_CALLER,
        "UserService/Status is for users",
    );
    let mut stranger =
        postern_api::v1::user_service_client::UserServiceClient::new(lab.channel(None));
    let refused = stranger
        .list_resources(ListResourcesRequest::default())
        .await
        .unwrap_err();
    assert_refused(
        &refused,
        reasons::NO_CERTIFICATE,
        "needs the certificate of a user",
    );
    assert_eq!(lab.audited("auth.refused").await.len(), 2);
}

#[tokio::test]
async fn a_resource_is_healthy_while_one_of_its_agents_reaches_it() {
    let lab = Lab::start().await;
    let alice = lab.user("alice", &[]).await;
    let token = lab.token(&["tcp"], &["orders"], 0).await;
    let (one, other) = (Host::new(), Host::new());
    let mut services = Vec::new();
    for host in [&one, &other] {
        let request = host.ask("db", "tcp", &["orders"], &token);
        let joined = lab.joins().join(request).await.unwrap().into_inner();
        services.push(host.tls(&joined));
    }
    let beat = async |service: usize, unreachable: Option<(&str, i64)>| {
        let resource = AnnouncedResource {
            name: "orders".into(),
            unreachable: unreachable.map(|(reason, since_unix)| Unreachable {
                reason: reason.into(),
                since_unix,
            }),
            ..AnnouncedResource::default()
        };
        let request = HeartbeatRequest {
            kind: "tcp".into(),
            resources: vec![resource],
            ..HeartbeatRequest::default()
        };
        lab.agents(&services[service])
            .heartbeat(request)
            .await
            .unwrap();
    };
    let seen = async || {
        let request = ListResourcesRequest::default();
        let list = lab.users(&alice.tls()).list_resources(request).await;
        let r = list.unwrap().into_inner().resources.remove(0);
        let why = r.unreachable.map(|u| (u.reason, u.since_unix));
        (r.healthy, r.agents, r.agents_failing, why)
    };
    beat(0, None).await;
    beat(1, None).await;
    assert_eq!(seen().await, (true, 2, 0, None));
    beat(1, Some(("connection refused", 2000))).await;
    let why = Some(("connection refused".to_owned(), 2000));
    assert_eq!(seen().await, (true, 2, 1, why));
    beat(0, Some((&"x".repeat(10_000), 1000))).await;
    assert_eq!(seen().await, (false, 2, 2, Some(("x".repeat(200), 1000))));
    let request = ListRequest {
        kind: "agent".into(),
    };
    let objects = lab.admin().list(request).await.unwrap().into_inner();
    let objects: Vec<_> = objects.collect().await;
    let name = format!("{}/db", other.id());
    let mut objects = objects.into_iter().map(Result::unwrap);
    let agent = objects.find(|o| o.name == name).unwrap();
    let agent: serde_json::Value = serde_json::from_str(&agent.json).unwrap();
    assert_eq!(
        agent["resources"][0]["unreachable"],
        serde_json::json!({"reason": "connection refused", "since": "1970-01-01T00:33:20Z"})
    );
    beat(0, None).await;
    beat(1, None).await;
    assert_eq!(seen().await, (true, 2, 0, None));
}

#[tokio::test]
async fn a_client_that_knows_only_the_pin_can_log_in() {
    let lab = Lab::start().await;
    lab.user("alice", &[]).await;
    let pinned = |pins: &[postern_identity::CaPin]| {
        let tls = tls::client_pinned(pins, &[]).unwrap();
        let channel = postern_api::connect_lazy(&lab.addr().to_string(), CLUSTER, tls);
        postern_api::v1::login_service_client::LoginServiceClient::new(channel)
    };
    pinned(&lab.server().trust().host_pins())
        .login(login("alice", PASSWORD))
        .await
        .unwrap();
    let wrong = pinned(&[postern_identity::CaPin([7; 32])])
        .login(login("alice", PASSWORD))
        .await
        .unwrap_err();
    assert_eq!(wrong.code(), tonic::Code::Unavailable);
    assert!(
        postern_api::status::describe(&wrong).contains("pin"),
        "{}",
        postern_api::status::describe(&wrong)
    );
}
