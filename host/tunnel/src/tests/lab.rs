//! A cluster's tunnel server with its CAs, agents for it, and a relay in between that can be frozen.

use crate::{
    AnnouncedResource, Announcement, Credentials, HostCredentials, Incoming, Registry,
    StreamHeader, Timing, TunnelClient, TunnelClientOptions, TunnelServer, TunnelServerOptions,
    TunnelState, TunnelStream,
};
use postern_identity::{
    AgentCertInfo, AgentIdentity, Ca, CaKind, ResourceId, ServiceKeys, TrustBundle, Validity,
    proxy_dns, tls,
};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

pub const CLUSTER: &str = "demo";

pub struct Lab {
    pub host_ca: Ca,
    pub agent_ca: Ca,
    pub trust: TrustBundle,
    pub server: Arc<TunnelServer>,
    pub addr: SocketAddr,
    pub accepted: Arc<AtomicUsize>,
    pub locked: Arc<Mutex<HashSet<String>>>,
    pub tls: tokio_rustls::TlsAcceptor,
    host: watch::Sender<HostCredentials>,
    _trust: watch::Sender<TrustBundle>,
    accepting: JoinHandle<()>,
}

/// Fast enough for tests, slow enough for a busy machine.
pub fn timing() -> Timing {
    Timing {
        heartbeat: Duration::from_millis(200),
        dead_after: Duration::from_millis(1500),
        backoff: (Duration::from_millis(20), Duration::from_millis(200)),
        ..Timing::default()
    }
}

pub struct Agent {
    pub client: TunnelClient,
    pub incoming: mpsc::Receiver<Incoming>,
    pub credentials: watch::Sender<Credentials>,
    pub announce: watch::Sender<Announcement>,
}

impl Lab {
    pub async fn start() -> Self {
        Self::with(timing()).await
    }

    pub async fn with(timing: Timing) -> Self {
        let host_ca = Ca::generate(CaKind::Host, CLUSTER).unwrap();
        let agent_ca = Ca::generate(CaKind::Agent, CLUSTER).unwrap();
        let trust = TrustBundle {
            cluster: CLUSTER.into(),
            cas: vec![host_ca.public(), agent_ca.public()],
        };
        let keys = ServiceKeys::generate();
        let names = [proxy_dns(CLUSTER)];
        let day = Validity::for_ttl(Duration::from_secs(86_400));
        let leaf = host_ca.sign_tls_server(&keys.spki(), &names, day).unwrap();
        let id = tls::TlsIdentity::new(&leaf, None, keys.x509_key_pem.clone());
        let tls = tls::server(&id, tls::ClientAuth::None, &[b"postern-tunnel"]).unwrap();
        let (host, host_rx) = watch::channel(HostCredentials {
            ssh_host_cert: host_ca
                .sign_ssh_host(&keys.ssh_public(), &names, day)
                .unwrap(),
            ssh_key: keys.ssh_key.clone(),
        });
        let (trust_tx, trust_rx) = watch::channel(trust.clone());
        let locked = Arc::new(Mutex::new(HashSet::new()));
        let locks = locked.clone();
        let mut opts = TunnelServerOptions::new(CLUSTER);
        opts.timing = timing;
        opts.auth_timeout = Duration::from_secs(2);
        let server = Arc::new(TunnelServer::new(
            opts,
            host_rx,
            trust_rx,
            Arc::new(move |agent| {
                locks
                    .lock()
                    .unwrap()
                    .contains(&agent.host_id)
                    .then(|| "stolen".to_owned())
            }),
        ));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let accepting = tokio::spawn(accept(listener, server.clone(), accepted.clone()));
        Lab {
            host_ca,
            agent_ca,
            trust,
            server,
            addr,
            accepted,
            locked,
            tls: tls.into(),
            host,
            _trust: trust_tx,
            accepting,
        }
    }

    pub fn registry(&self) -> Registry {
        self.server.registry()
    }

    /// Ends the listener and every connection, as a killed proxy does; then listens again on the same port.
    pub async fn kill_and_restart(&mut self) {
        self.accepting.abort();
        let _ = (&mut self.accepting).await;
        let listener = loop {
            match TcpListener::bind(self.addr).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        self.accepting = tokio::spawn(accept(listener, self.server.clone(), self.accepted.clone()));
    }

    /// The proxy presents the certificate of a CA that nobody knows.
    pub fn impostor(&self) {
        let other = Ca::generate(CaKind::Host, CLUSTER).unwrap();
        let keys = ServiceKeys::generate();
        let day = Validity::for_ttl(Duration::from_secs(60));
        self.host.send_replace(HostCredentials {
            ssh_host_cert: other
                .sign_ssh_host(&keys.ssh_public(), &[proxy_dns(CLUSTER)], day)
                .unwrap(),
            ssh_key: keys.ssh_key.clone(),
        });
    }

    pub fn credentials(&self, host: &str, service: &str, names: &[&str]) -> Credentials {
        self.credentials_by(
            &self.agent_ca,
            host,
            service,
            names,
            Validity::for_ttl(Duration::from_secs(3600)),
        )
    }

    pub fn credentials_by(
        &self,
        ca: &Ca,
        host: &str,
        service: &str,
        names: &[&str],
        v: Validity,
    ) -> Credentials {
        let keys = ServiceKeys::generate();
        let info = AgentCertInfo {
            identity: AgentIdentity {
                host_id: host_id(host),
                service: service.into(),
            },
            kind: "tcp".into(),
            names: names.iter().map(|n| (*n).to_owned()).collect(),
        };
        Credentials {
            ssh_cert: ca.sign_ssh_agent(&keys.ssh_public(), &info, v).unwrap(),
            ssh_key: keys.ssh_key.clone(),
            trust: self.trust.clone(),
        }
    }

    pub fn options(&self) -> TunnelClientOptions {
        TunnelClientOptions {
            proxy_addr: self.addr.to_string(),
            cluster: CLUSTER.into(),
            timing: timing(),
            ..TunnelClientOptions::default()
        }
    }

    /// An agent that is allowed what it announces.
    pub fn agent(&self, host: &str, names: &[&str]) -> Agent {
        self.agent_with(self.options(), self.credentials(host, "svc", names), names)
    }

    pub fn agent_with(
        &self,
        opts: TunnelClientOptions,
        credentials: Credentials,
        names: &[&str],
    ) -> Agent {
        let (credentials, credentials_rx) = watch::channel(credentials);
        let (announce, announce_rx) = watch::channel(announcement(names));
        let (client, incoming) = crate::client(opts, credentials_rx, announce_rx);
        Agent {
            client,
            incoming,
            credentials,
            announce,
        }
    }

    pub async fn open(&self, name: &str) -> TunnelStream {
        self.registry().open(&id(name), header(name)).await.unwrap()
    }

    pub async fn routed(&self, name: &str, agents: usize) {
        eventually(|| self.registry().lookup(&id(name)).map_or(0, |r| r.agents) == agents).await;
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Agent {
    pub async fn up(&self) {
        let mut state = self.client.watch();
        let up = state.wait_for(|s| matches!(s, TunnelState::Up { .. }));
        tokio::time::timeout(Duration::from_secs(10), up)
            .await
            .expect("tunnel up")
            .unwrap();
    }

    /// What the last attempt failed with.
    pub async fn failure(&self) -> String {
        let mut state = self.client.watch();
        let failed = state.wait_for(|s| {
            matches!(
                s,
                TunnelState::Connecting {
                    last_error: Some(_),
                    ..
                }
            )
        });
        let state = tokio::time::timeout(Duration::from_secs(10), failed)
            .await
            .expect("a failure")
            .unwrap();
        match &*state {
            TunnelState::Connecting {
                last_error: Some(e),
                ..
            } => e.clone(),
            other => panic!("{other:?}"),
        }
    }

    /// Serves echoes; the client goes on living with the returned guard.
    pub fn echo(self) -> Echo {
        let Agent {
            client,
            mut incoming,
            credentials,
            announce,
        } = self;
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
        Echo {
            client,
            task,
            credentials,
            announce,
        }
    }
}

pub struct Echo {
    pub client: TunnelClient,
    pub task: JoinHandle<()>,
    pub credentials: watch::Sender<Credentials>,
    pub announce: watch::Sender<Announcement>,
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, server: Arc<TunnelServer>, accepted: Arc<AtomicUsize>) {
    let mut connections = JoinSet::new();
    loop {
        let (tcp, peer) = listener.accept().await.unwrap();
        accepted.fetch_add(1, Ordering::Relaxed);
        let server = server.clone();
        connections.spawn(async move { server.serve(tcp, peer).await });
    }
}

pub fn host_id(host: &str) -> String {
    postern_identity::host_id_of(host.as_bytes())
}

pub fn announcement(names: &[&str]) -> Announcement {
    Announcement {
        kind: "tcp".into(),
        resources: names
            .iter()
            .map(|n| AnnouncedResource {
                name: (*n).to_owned(),
                direct: false,
                unhealthy: false,
            })
            .collect(),
        version: "0".into(),
    }
}

pub fn id(name: &str) -> ResourceId {
    ResourceId {
        kind: "tcp".into(),
        name: name.into(),
    }
}

pub fn header(name: &str) -> StreamHeader {
    StreamHeader {
        kind: "tcp".into(),
        resource: name.into(),
        source: "192.0.2.1:1234".into(),
        user: Some("alice".into()),
        direct: false,
        cancel: false,
        trace: "t".into(),
    }
}

pub async fn eventually(mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(15), waiting)
        .await
        .expect("the condition holds in time");
}

pub async fn echoes(stream: &mut TunnelStream, text: &[u8]) {
    stream.write_all(text).await.unwrap();
    stream.flush().await.unwrap();
    let mut got = vec![0; text.len()];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(got, text);
}

/// In the past.
pub fn expired() -> Validity {
    let now = SystemTime::now();
    Validity {
        not_before: now - Duration::from_secs(7200),
        not_after: now - Duration::from_secs(3600),
    }
}

/// Forwards to `to`, until frozen: then it reads and writes nothing, and closes nothing.
pub struct Relay {
    pub addr: SocketAddr,
    pub frozen: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Relay {
    pub async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (frozen, state) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut a, _) = listener.accept().await.unwrap();
                let mut state = state.clone();
                connections.spawn(async move {
                    let Ok(mut b) = TcpStream::connect(to).await else {
                        return;
                    };
                    let frozen = async { drop(state.wait_for(|f| *f).await) };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut a, &mut b) => return,
                        () = frozen => {}
                    }
                    // Hold both open and say nothing.
                    std::future::pending::<()>().await;
                });
            }
        });
        Relay { addr, frozen, task }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}
