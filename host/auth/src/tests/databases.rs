//! Certificates for databases: for whom, for what, and how it is told.

use std::time::Duration;

use postern_access::Lock;
use postern_api::status::reasons;
use postern_api::v1::{
    AnnouncedResource, HeartbeatRequest, Principal, PutLockRequest, PutRoleRequest, RemoveRequest,
    SignDbClientRequest, SignDbServerRequest,
};
use postern_identity::tls::{self, TlsIdentity};
use postern_identity::{CaKind, ServiceKeys};

use super::{Host, Lab, User, assert_refused};

struct Setup {
    lab: Lab,
    agent: TlsIdentity,
    alice: User,
}

async fn setup() -> Setup {
    let lab = Lab::start().await;
    let role = r#"{"name":"access","allow":{"postgres":{"labels":{"env":["prod"]},"db_users":["app"],"db_names":["orders"]}}}"#;
    let put = PutRoleRequest {
        role_json: role.into(),
        replace: true,
    };
    lab.admin().put_role(put).await.unwrap();
    let host = Host::new();
    let names = ["orders", "dev"];
    let agent = host.tls(&host.join(&lab, "db", "postgres", &names).await);
    let resource = |name: &str, env: &str| AnnouncedResource {
        name: name.into(),
        labels: [("env".into(), env.into())].into(),
        direct: false,
        unreachable: None,
    };
    let beat = HeartbeatRequest {
        kind: "postgres".into(),
        resources: vec![resource("orders", "prod"), resource("dev", "dev")],
        ..HeartbeatRequest::default()
    };
    lab.agents(&agent).heartbeat(beat).await.unwrap();
    let alice = lab.user("alice", &[]).await;
    Setup { lab, agent, alice }
}

fn principal(name: &str, value: &str) -> Principal {
    Principal {
        r#type: name.into(),
        value: value.into(),
    }
}

impl Setup {
    fn request(&self) -> SignDbClientRequest {
        let chain = tls::certs(&self.alice.credentials.tls_cert_pem).unwrap();
        SignDbClientRequest {
            spki: ServiceKeys::generate().spki(),
            user_chain: chain.iter().map(|c| c.to_vec()).collect(),
            resource: "orders".into(),
            principals: vec![
                principal("db_users", "app"),
                principal("db_names", "orders"),
            ],
            account: "app".into(),
            session_id: "s-1".into(),
        }
    }

    async fn sign(&self, request: SignDbClientRequest) -> Result<Vec<u8>, tonic::Status> {
        let signed = self.lab.agents(&self.agent).sign_db_client(request).await;
        signed.map(|r| r.into_inner().certificate)
    }
}

#[tokio::test]
async fn a_session_gets_a_certificate_of_its_account_for_five_minutes() {
    let s = setup().await;
    let der = s.sign(s.request()).await.unwrap();
    let (_, cert) = x509_parser::parse_x509_certificate(&der).unwrap();
    assert_eq!(cert.subject().to_string(), "CN=app");
    let left = cert.validity().time_to_expiration().unwrap();
    assert!(left <= Duration::from_secs(300), "{left:?}");
    let told = &s.lab.audited("db.certificate").await[0];
    assert_eq!(
        (
            &told["user"],
            &told["account"],
            &told["success"],
            &told["session_id"]
        ),
        (&"alice".into(), &"app".into(), &true.into(), &"s-1".into())
    );
}

#[tokio::test]
async fn an_account_of_ones_own_is_signed_where_a_role_makes_it() {
    let s = setup().await;
    let own = |name: &str| {
        let mut request = s.request();
        request.account = name.into();
        request.principals[0].value = name.into();
        request
    };
    assert_refused(
        &s.sign(own("alice")).await.unwrap_err(),
        reasons::ACCESS_DENIED,
        "alice",
    );
    let role = r#"{"name":"access","allow":{"postgres":{"labels":{"env":["prod"]},"db_names":["orders"]}},"options":{"create_db_user":"keep"}}"#;
    let put = PutRoleRequest {
        role_json: role.into(),
        replace: true,
    };
    s.lab.admin().put_role(put).await.unwrap();
    s.sign(own("alice")).await.unwrap();
    let bob = s.sign(own("bob")).await;
    assert_refused(&bob.unwrap_err(), reasons::ACCESS_DENIED, "bob");
}

#[tokio::test]
async fn what_the_session_could_not_have_is_not_signed() {
    let s = setup().await;
    let with = |change: &dyn Fn(&mut SignDbClientRequest)| {
        let mut request = s.request();
        change(&mut request);
        request
    };
    let other_host = Host::new();
    let stranger = other_host.tls(&other_host.join(&s.lab, "db", "postgres", &["other"]).await);
    let refused = s.lab.agents(&stranger).sign_db_client(s.request()).await;
    assert_refused(
        &refused.unwrap_err(),
        reasons::ACCESS_DENIED,
        "does not hold resource",
    );

    let account = with(&|r| r.account = "root".into());
    // A database of the account's name is not the account.
    let as_database = with(&|r| r.account = "orders".into());
    let as_root = with(&|r| {
        r.account = "root".into();
        r.principals[0].value = "root".into();
    });
    let by_labels = with(&|r| r.resource = "dev".into());
    let unknown = with(&|r| r.resource = "nothing".into());
    let nobody = with(&|r| r.user_chain.clear());
    let no_user = with(&|r| {
        let chain = tls::certs(&s.agent.chain_pem).unwrap();
        r.user_chain = chain.iter().map(|c| c.to_vec()).collect();
    });
    for (request, reason, words) in [
        (account, reasons::BAD_REQUEST, "none of the principals"),
        (as_database, reasons::BAD_REQUEST, "none of the principals"),
        (as_root, reasons::ACCESS_DENIED, "root"),
        (by_labels, reasons::ACCESS_DENIED, ""),
        (unknown, reasons::ACCESS_DENIED, "does not hold resource"),
        (nobody, reasons::BAD_CERTIFICATE, "there is none"),
        (no_user, reasons::BAD_CERTIFICATE, "an agent's certificate"),
    ] {
        assert_refused(&s.sign(request).await.unwrap_err(), reason, words);
    }
    let told = s.lab.audited("db.certificate").await;
    assert!(!told.is_empty() && told.iter().all(|e| e["success"] == false));
}

#[tokio::test]
async fn locks_and_lost_users_count_at_once() {
    let s = setup().await;
    let lock = Lock {
        target: "user:alice".into(),
        reason: "test".into(),
        expires_unix: None,
    };
    let put = PutLockRequest {
        lock_json: serde_json::to_string(&lock).unwrap(),
    };
    s.lab.admin().put_lock(put).await.unwrap();
    assert_refused(
        &s.sign(s.request()).await.unwrap_err(),
        reasons::LOCKED,
        "test",
    );
    let remove = |kind: &str, name: &str| RemoveRequest {
        kind: kind.into(),
        name: name.into(),
    };
    s.lab
        .admin()
        .remove(remove("lock", "user:alice"))
        .await
        .unwrap();
    s.sign(s.request()).await.unwrap();
    s.lab.admin().remove(remove("user", "alice")).await.unwrap();
    assert!(s.sign(s.request()).await.is_err());
}

#[tokio::test]
async fn a_database_gets_its_certificate_from_an_administrator() {
    let lab = Lab::start().await;
    let keys = ServiceKeys::generate();
    let request = SignDbServerRequest {
        spki: keys.spki(),
        names: vec!["db.internal".into(), "10.0.0.1".into()],
        ttl_seconds: 0,
    };
    let signed = lab
        .admin()
        .sign_db_server(request.clone())
        .await
        .unwrap()
        .into_inner();
    let chain = tls::certs(&signed.certificate_pem).unwrap();
    assert_eq!(chain.len(), 2, "leaf and CA");
    let trust = lab.server().trust();
    let client_ca = trust.of(CaKind::DbClient).next().unwrap();
    assert_eq!(signed.client_ca_pem, client_ca.x509_pem);
    assert_eq!(lab.audited("db.server_certificate").await.len(), 1);
    let unnamed = SignDbServerRequest {
        names: vec![],
        ..request
    };
    let refused = lab.admin().sign_db_server(unnamed).await.unwrap_err();
    assert_refused(&refused, reasons::BAD_REQUEST, "0 names");
}
