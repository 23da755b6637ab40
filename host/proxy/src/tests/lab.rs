//! A cluster in a temporary directory.

use crate::{JoinSource, ProxyOptions, ProxyServer, SessionReply, SessionRequest};
use postern_api::v1::admin_service_client::AdminServiceClient;
use postern_api::v1::login_service_client::LoginServiceClient;
use postern_api::v1::{
    CreateTokenRequest, CreateUserRequest, EnrollRequest, PutLockRequest, RemoveRequest,
};
use postern_api::{connect_lazy, connect_unix};
use postern_auth::{AuthOptions, AuthServer};
use postern_identity::tls::{self, TlsIdentity};
use postern_identity::{CaKind, CaPin, HostKey, ResourceId, ServiceKeys, TrustBundle};
use postern_membership::{Joiner, MemberDir, RootOfTrust, TokenSource};
use postern_tunnel::{
    AnnouncedResource, Announcement, Credentials, Incoming, Timing, Transport, TunnelClient,
    TunnelClientOptions, TunnelState, read_json, write_json,
};
use rustls::pki_types::ServerName;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

pub const CLUSTER: &str = "demo.test";
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Lab {
    pub dir: TempDir,
    pub auth: Option<AuthServer>,
    pub auth_stop: CancellationToken,
    pub opts: ProxyOptions,
    server: Option<ProxyServer>,
    pub stop: CancellationToken,
    pub trust: TrustBundle,
}

impl Lab {
    pub async fn start() -> Self {
        Self::with(|_, _| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut ProxyOptions, &TempDir)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let auth_stop = CancellationToken::new();
        let options = AuthOptions {
            cluster: CLUSTER.into(),
            data_dir: dir.path().join("auth"),
            listen: "127.0.0.1:0".into(),
            cert_ttl: Duration::from_secs(24 * 3600),
            rejoin_window: Duration::from_secs(7 * 24 * 3600),
            proxy_public_addr: Some("gate.example.com:443".into()),
        };
        let auth = AuthServer::start(options, auth_stop.clone()).await.unwrap();
        let trust = auth.trust();
        let mut opts = ProxyOptions {
            cluster: CLUSTER.into(),
            listen: "127.0.0.1:0".into(),
            public_addr: "gate.example.com:443".into(),
            auth_addr: auth.local_addr().to_string(),
            tls: None,
            data_dir: dir.path().join("proxy-host"),
            join: JoinSource::Local {
                token: auth.mint_proxy_token().await.unwrap(),
                trust: trust.clone(),
            },
        };
        change(&mut opts, &dir);
        let stop = CancellationToken::new();
        let proxy = ProxyServer::start(opts.clone(), stop.clone())
            .await
            .unwrap();
        assert_eq!(proxy.readiness(), Vec::<String>::new());
        // From now on the same port, also after a restart.
        opts.listen = proxy.local_addr().to_string();
        Lab {
            dir,
            auth: Some(auth),
            auth_stop,
            opts,
            server: Some(proxy),
            stop,
            trust,
        }
    }

    pub fn addr(&self) -> SocketAddr {
        self.proxy().local_addr()
    }

    pub async fn stop_auth(&mut self) {
        self.auth_stop.cancel();
        self.auth.take().unwrap().stopped().await;
    }

    pub fn proxy(&self) -> &ProxyServer {
        self.server.as_ref().unwrap()
    }

    pub async fn restart_proxy(&mut self) {
        self.stop.cancel();
        self.server.take().unwrap().stopped().await;
        self.stop = CancellationToken::new();
        self.server = Some(
            ProxyServer::start(self.opts.clone(), self.stop.clone())
                .await
                .unwrap(),
        );
    }

    fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(connect_unix(&self.dir.path().join("auth/admin.sock")))
    }

    pub async fn lock(&self, target: &str) {
        let lock = postern_access::Lock {
            target: target.into(),
            reason: "laptop stolen".into(),
            expires_unix: None,
        };
        let lock_json = serde_json::to_string(&lock).unwrap();
        self.admin()
            .put_lock(PutLockRequest { lock_json })
            .await
            .unwrap();
    }

    pub async fn unlock(&self, target: &str) {
        let request = RemoveRequest {
            kind: "lock".into(),
            name: target.into(),
        };
        self.admin().remove(request).await.unwrap();
    }

    /// Joins through the proxy with a pin alone, and keeps a tunnel.
    pub async fn agent(&self, host: &str, kind: &str, resources: &[(&str, bool)]) -> Agent {
        self.agent_by(host, kind, resources, Transport::Ssh).await
    }

    pub async fn agent_by(
        &self,
        host: &str,
        kind: &str,
        resources: &[(&str, bool)],
        transport: Transport,
    ) -> Agent {
        let names: Vec<String> = resources.iter().map(|(n, _)| (*n).to_owned()).collect();
        let request = CreateTokenRequest {
            kinds: vec![kind.into()],
            names: names.clone(),
            ttl_seconds: 600,
            uses: 1,
            ..Default::default()
        };
        let token = self
            .admin()
            .create_token(request)
            .await
            .unwrap()
            .into_inner()
            .token;
        let data = self.dir.path().join(host);
        postern_identity::store::private_dir(&data).unwrap();
        let host_key = Arc::new(HostKey::load_or_create(&data.join("host.key")).unwrap());
        let pins: Vec<CaPin> = self.trust.of(CaKind::Host).map(|ca| ca.pin()).collect();
        let joiner = Joiner {
            cluster: CLUSTER.into(),
            addr: self.addr().to_string(),
            service: "svc".into(),
            kind: kind.into(),
            names,
            host_key: host_key.clone(),
            token: TokenSource::Minted(token.into()),
            root: RootOfTrust::Pins(pins),
            dir: MemberDir::open(data.join("services/svc")).unwrap(),
            ask_first: false,
        };
        let joined = joiner.join(None).await.unwrap();
        let host_id = host_key.host_id();
        let (credentials, credentials_rx) = watch::channel(Credentials {
            ssh_key: joined.ssh_key(),
            ssh_cert: joined.ssh_client_cert.clone(),
            trust: joined.trust.clone(),
        });
        let (announce, announce_rx) = watch::channel(Announcement {
            kind: kind.into(),
            resources: resources
                .iter()
                .map(|(name, direct)| AnnouncedResource {
                    name: (*name).into(),
                    direct: *direct,
                    unhealthy: false,
                })
                .collect(),
            version: "0".into(),
        });
        let opts = TunnelClientOptions {
            proxy_addr: self.addr().to_string(),
            transport,
            cluster: CLUSTER.into(),
            host_id: host_id.clone(),
            service: "svc".into(),
            timing: Timing {
                backoff: (Duration::from_millis(20), Duration::from_millis(200)),
                ..Timing::default()
            },
            ..TunnelClientOptions::default()
        };
        let (client, incoming) = postern_tunnel::client(opts, credentials_rx, announce_rx);
        let agent = Agent {
            client,
            incoming,
            host_id,
            tls: joined.tls_client(),
            _keep: (credentials, announce),
        };
        agent.up().await;
        let id = ResourceId {
            kind: kind.into(),
            name: resources[0].0.into(),
        };
        eventually(|| self.proxy().registry().lookup(&id).is_some()).await;
        agent
    }

    /// Enrolled through the proxy.
    pub async fn user(&self, name: &str, ttl_seconds: u32) -> TlsIdentity {
        let request = CreateUserRequest {
            name: name.into(),
            roles: vec!["access".into()],
            ttl_seconds: 600,
            ..Default::default()
        };
        let code = self
            .admin()
            .create_user(request)
            .await
            .unwrap()
            .into_inner()
            .code;
        let keys = ServiceKeys::generate();
        let tls = tls::client(&self.trust, CaKind::Host, None, &[b"h2"]).unwrap();
        let channel = connect_lazy(&self.addr().to_string(), CLUSTER, tls);
        let request = EnrollRequest {
            user: name.into(),
            code,
            new_password: "correct horse battery staple".into(),
            spki: keys.spki(),
            ssh_public_key: keys.ssh_public(),
            ttl_seconds,
        };
        let enrolled = LoginServiceClient::new(channel)
            .enroll(request)
            .await
            .unwrap()
            .into_inner();
        TlsIdentity {
            chain_pem: enrolled.tls_cert_pem,
            key_pem: keys.x509_key_pem.clone(),
        }
    }

    /// TLS to the proxy under any name and with any protocol.
    pub async fn tls(
        &self,
        name: &str,
        alpn: &[&[u8]],
        id: Option<&TlsIdentity>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let config = tls::client(&self.trust, CaKind::Host, id, alpn).unwrap();
        let tcp = TcpStream::connect(self.addr()).await.unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(config).connect(name, tcp).await
    }

    pub async fn helper(&self, id: Option<&TlsIdentity>) -> std::io::Result<TlsStream<TcpStream>> {
        self.tls(
            &postern_identity::proxy_dns(CLUSTER),
            &[b"postern-session"],
            id,
        )
        .await
    }

    /// What the proxy answers, and the stream behind it.
    pub async fn session(
        &self,
        id: &TlsIdentity,
        kind: &str,
        name: &str,
    ) -> (SessionReply, TlsStream<TcpStream>) {
        let mut tls = self.helper(Some(id)).await.unwrap();
        let request = SessionRequest {
            kind: kind.into(),
            name: name.into(),
        };
        write_json(&mut tls, &request, 4096).await.unwrap();
        let reply = read_json(&mut tls, 4096).await.unwrap();
        (reply, tls)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop.cancel();
        self.auth_stop.cancel();
    }
}

pub struct Agent {
    pub client: TunnelClient,
    pub incoming: mpsc::Receiver<Incoming>,
    pub host_id: String,
    pub tls: TlsIdentity,
    _keep: (watch::Sender<Credentials>, watch::Sender<Announcement>),
}

/// Serves echoes while it lives.
pub struct Echo {
    pub agent: Agent,
    task: JoinHandle<()>,
}

impl Agent {
    pub async fn up(&self) {
        let mut state = self.client.watch();
        let up = state.wait_for(|s| matches!(s, TunnelState::Up { .. }));
        tokio::time::timeout(PATIENCE, up)
            .await
            .expect("tunnel up")
            .unwrap();
    }

    pub async fn down_with(&self, word: &str) {
        let mut state = self.client.watch();
        let down = state.wait_for(|s| matches!(s, TunnelState::Connecting { last_error: Some(e), .. } if e.contains(word)));
        tokio::time::timeout(PATIENCE, down)
            .await
            .expect("tunnel down")
            .unwrap();
    }

    pub fn echo(mut self) -> Echo {
        let (_, nothing) = mpsc::channel(1);
        let mut incoming = std::mem::replace(&mut self.incoming, nothing);
        let task = tokio::spawn(async move {
            let mut streams = JoinSet::new();
            while let Some(Incoming { stream, .. }) = incoming.recv().await {
                streams.spawn(async move {
                    let (mut r, mut w) = tokio::io::split(stream);
                    let _ = tokio::io::copy(&mut r, &mut w).await;
                    let _ = w.shutdown().await;
                });
            }
        });
        Echo { agent: self, task }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub async fn echoes(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), text: &[u8]) {
    stream.write_all(text).await.unwrap();
    stream.flush().await.unwrap();
    let mut got = vec![0; text.len()];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut got))
        .await
        .expect("an echo")
        .unwrap();
    assert_eq!(got, text);
}

/// Reads until the other end closes, in whatever way.
pub async fn until_closed(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut got = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut got))
        .await
        .expect("the connection is closed");
    got
}

pub async fn eventually(mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .expect("the condition holds in time");
}
