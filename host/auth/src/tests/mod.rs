//! A real Auth Service on a loopback port and in a temporary directory, and real gRPC clients.

mod admin;
mod agents;
mod databases;
mod issuer;
mod joining;
mod methods;
mod server;
mod users;

use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt;
use postern_api::v1::admin_service_client::AdminServiceClient;
use postern_api::v1::agent_service_client::AgentServiceClient;
use postern_api::v1::join_service_client::JoinServiceClient;
use postern_api::v1::login_service_client::LoginServiceClient;
use postern_api::v1::user_service_client::UserServiceClient;
use postern_api::v1::{
    AuditRequest, CreateTokenRequest, CreateUserRequest, EnrollRequest, JoinRequest, JoinResponse,
    StringList, UserCredentials,
};
use postern_api::{connect_lazy, connect_unix, join};
use postern_identity::tls::{self, TlsIdentity};
use postern_identity::{CaKind, HostKey, ServiceKeys};
use serde_json::Value;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;

use crate::{AuthOptions, AuthServer, time};

pub const CLUSTER: &str = "demo.test";

/// A cluster's Auth Service; stopped when dropped.
pub struct Lab {
    _dir: TempDir,
    pub opts: AuthOptions,
    server: Option<AuthServer>,
    shutdown: CancellationToken,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Lab {
    pub async fn start() -> Lab {
        Lab::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut AuthOptions)) -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let mut opts = AuthOptions {
            cluster: CLUSTER.into(),
            data_dir: dir.path().join("data"),
            listen: "127.0.0.1:0".into(),
            cert_ttl: Duration::from_secs(24 * 3600),
            rejoin_window: Duration::from_secs(7 * 24 * 3600),
            proxy_public_addr: Some("proxy.example.com:443".into()),
        };
        change(&mut opts);
        let shutdown = CancellationToken::new();
        let server = Some(
            AuthServer::start(opts.clone(), shutdown.clone())
                .await
                .unwrap(),
        );
        Lab {
            _dir: dir,
            opts,
            server,
            shutdown,
        }
    }

    pub async fn stop(&mut self) {
        self.shutdown.cancel();
        let server = self.server.take().unwrap();
        tokio::time::timeout(Duration::from_secs(20), server.stopped())
            .await
            .unwrap();
    }

    pub async fn restart(&mut self) {
        self.stop().await;
        self.shutdown = CancellationToken::new();
        self.server = Some(
            AuthServer::start(self.opts.clone(), self.shutdown.clone())
                .await
                .unwrap(),
        );
    }

    pub fn server(&self) -> &AuthServer {
        self.server.as_ref().unwrap()
    }

    pub fn addr(&self) -> SocketAddr {
        self.server().local_addr()
    }

    pub fn channel(&self, id: Option<&TlsIdentity>) -> Channel {
        let tls = tls::client(&self.server().trust(), CaKind::Host, id, &[]).unwrap();
        connect_lazy(&self.addr().to_string(), CLUSTER, tls)
    }

    pub fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(connect_unix(&self.opts.data_dir.join("admin.sock")))
    }

    pub fn joins(&self) -> JoinServiceClient<Channel> {
        JoinServiceClient::new(self.channel(None))
    }

    pub fn logins(&self) -> LoginServiceClient<Channel> {
        LoginServiceClient::new(self.channel(None))
    }

    pub fn agents(&self, id: &TlsIdentity) -> AgentServiceClient<Channel> {
        AgentServiceClient::new(self.channel(Some(id)))
    }

    pub fn users(&self, id: &TlsIdentity) -> UserServiceClient<Channel> {
        UserServiceClient::new(self.channel(Some(id)))
    }

    pub async fn token(&self, kinds: &[&str], names: &[&str], uses: u32) -> String {
        let request = CreateTokenRequest {
            kinds: strings(kinds),
            names: strings(names),
            ttl_seconds: 0,
            uses,
            ..Default::default()
        };
        self.admin()
            .create_token(request)
            .await
            .unwrap()
            .into_inner()
            .token
    }

    /// All audit events of a name, oldest first.
    pub async fn audited(&self, event: &str) -> Vec<Value> {
        let request = AuditRequest {
            event: event.into(),
            ..AuditRequest::default()
        };
        let events = self.admin().audit(request).await.unwrap().into_inner();
        events
            .map(|e| serde_json::from_str(&e.unwrap().json).unwrap())
            .collect()
            .await
    }

    /// Makes a user with role `access` and the logins, and enrols him.
    pub async fn user(&self, name: &str, logins: &[&str]) -> User {
        let traits = [(
            "logins".to_owned(),
            StringList {
                values: strings(logins),
            },
        )]
        .into();
        let request = CreateUserRequest {
            name: name.into(),
            roles: strings(&["access"]),
            traits,
            ..CreateUserRequest::default()
        };
        let code = self
            .admin()
            .create_user(request)
            .await
            .unwrap()
            .into_inner()
            .code;
        let keys = ServiceKeys::generate();
        let request = EnrollRequest {
            user: name.into(),
            code,
            new_password: PASSWORD.into(),
            spki: keys.spki(),
            ssh_public_key: keys.ssh_public(),
            ttl_seconds: 0,
        };
        let credentials = self.logins().enroll(request).await.unwrap().into_inner();
        User { keys, credentials }
    }
}

pub const PASSWORD: &str = "correct horse battery";

pub struct User {
    pub keys: ServiceKeys,
    pub credentials: UserCredentials,
}

impl User {
    pub fn tls(&self) -> TlsIdentity {
        TlsIdentity {
            chain_pem: self.credentials.tls_cert_pem.clone(),
            key_pem: self.keys.x509_key_pem.clone(),
        }
    }
}

/// A host with its key, and the keys of one of its services.
pub struct Host {
    pub key: HostKey,
    pub keys: ServiceKeys,
}

impl Host {
    pub fn new() -> Host {
        Host {
            key: HostKey::generate(),
            keys: ServiceKeys::generate(),
        }
    }

    pub fn id(&self) -> String {
        self.key.host_id()
    }

    /// A signed request with a fresh nonce.
    pub fn ask(&self, service: &str, kind: &str, names: &[&str], token: &str) -> JoinRequest {
        self.ask_with(service, kind, names, token, |_| {})
    }

    pub fn ask_with(
        &self,
        service: &str,
        kind: &str,
        names: &[&str],
        token: &str,
        change: impl FnOnce(&mut JoinRequest),
    ) -> JoinRequest {
        let mut request = JoinRequest {
            cluster: CLUSTER.into(),
            service: service.into(),
            kind: kind.into(),
            names: strings(names),
            token: token.into(),
            nonce: rand::random::<[u8; 16]>().to_vec(),
            spki: self.keys.spki(),
            ssh_public_key: self.keys.ssh_public(),
            signed_at_unix: time::now(),
            version: "0.1.0".into(),
            ..JoinRequest::default()
        };
        change(&mut request);
        join::sign(&mut request, &self.key);
        request
    }

    pub fn tls(&self, response: &JoinResponse) -> TlsIdentity {
        TlsIdentity {
            chain_pem: response.tls_client_cert_pem.clone(),
            key_pem: self.keys.x509_key_pem.clone(),
        }
    }

    /// Joins with a token made for it.
    pub async fn join(&self, lab: &Lab, service: &str, kind: &str, names: &[&str]) -> JoinResponse {
        let token = lab.token(&[kind], &[], 0).await;
        lab.joins()
            .join(self.ask(service, kind, names, &token))
            .await
            .unwrap()
            .into_inner()
    }
}

pub fn strings(items: &[&str]) -> Vec<String> {
    items.iter().map(|s| (*s).to_owned()).collect()
}

#[track_caller]
pub fn assert_refused(status: &Status, reason: &str, says: &str) {
    assert_eq!(
        postern_api::status::reason(status),
        Some(reason),
        "{status:?}"
    );
    assert!(
        status.message().contains(says),
        "{:?} does not say {says:?}",
        status.message()
    );
}

/// Polls until the condition holds.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let waited = tokio::time::timeout(Duration::from_secs(15), async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "never happened: {what}");
}
