//! One tunnel of a service, and the task that hands its streams to the sessions. A service has one front at a time,
//! and for a moment two: the new one comes up before the old one is retired.

use super::health::Report;
use super::spec::Spec;
use crate::session::Sessions;
use postern_identity::HostKey;
use postern_membership::Credentials;
use postern_tunnel::{
    Announcement, Credentials as TunnelCredentials, Transport, TunnelClient, TunnelClientOptions,
    TunnelState,
};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// For the proxy to hear that no new streams are wanted.
const TOLD: Duration = Duration::from_secs(1);

/// What a tunnel depends on: where one of these changes, a new one is dialled.
#[derive(Clone, PartialEq)]
struct Wanted {
    proxy_addr: String,
    transport: Transport,
    warm: usize,
    http_proxy: Option<String>,
    kind: String,
}

pub struct Front {
    wanted: Wanted,
    tunnel: TunnelClient,
    announce: watch::Sender<Announcement>,
    credentials: watch::Sender<TunnelCredentials>,
    _accept: AbortOnDropHandle<()>,
}

impl Front {
    pub fn dial(
        spec: &Spec,
        held: &Credentials,
        cluster: &str,
        host_key: &HostKey,
        sessions: &Sessions,
        health: &Report,
    ) -> Self {
        let wanted = Wanted::of(spec);
        let (credentials, credentials_rx) = watch::channel(tunnel_credentials(held));
        let (announce, announced) = watch::channel(spec.announcement(&held.names, health));
        let (tunnel, mut incoming) = postern_tunnel::client(
            TunnelClientOptions {
                proxy_addr: wanted.proxy_addr.clone(),
                transport: wanted.transport,
                cluster: cluster.to_owned(),
                host_id: host_key.host_id(),
                service: spec.name.clone(),
                warm: wanted.warm,
                http_proxy: wanted.http_proxy.clone(),
                ..TunnelClientOptions::default()
            },
            credentials_rx,
            announced,
        );
        let sessions = sessions.clone();
        let accept = tokio::spawn(async move {
            while let Some(stream) = incoming.recv().await {
                sessions.accept(stream.header, stream.stream);
            }
        });
        Front {
            wanted,
            tunnel,
            announce,
            credentials,
            _accept: AbortOnDropHandle::new(accept),
        }
    }

    pub fn fits(&self, spec: &Spec) -> bool {
        self.wanted == Wanted::of(spec)
    }

    pub fn kind(&self) -> &str {
        &self.wanted.kind
    }

    pub fn proxy_addr(&self) -> &str {
        &self.wanted.proxy_addr
    }

    pub fn state(&self) -> TunnelState {
        self.tunnel.state()
    }

    pub fn watch(&self) -> watch::Receiver<TunnelState> {
        self.tunnel.watch()
    }

    pub fn is_up(&self) -> bool {
        matches!(self.tunnel.state(), TunnelState::Up { .. })
    }

    /// The next connections authenticate by these; the control connection is made anew.
    pub fn renewed(&self, held: &Credentials) {
        self.credentials.send_replace(tunnel_credentials(held));
    }

    pub fn announce(&self, new: Announcement) {
        self.announce.send_if_modified(|old| {
            let differs = *old != new;
            *old = new;
            differs
        });
    }

    /// Another process dials from now on.
    pub fn stay(&self) {
        self.tunnel.stay();
    }

    /// Returns when the proxy has been told to send nothing more (or can't be).
    pub async fn told(&self) {
        // Draining also waits for the streams that live; being told is what is waited for here.
        let _ = tokio::time::timeout(TOLD, self.tunnel.drain()).await;
    }

    /// Takes no new streams, and goes when the live ones have finished or the time is up.
    pub async fn retire(self, timeout: Duration) {
        if tokio::time::timeout(timeout, self.tunnel.drain())
            .await
            .is_err()
        {
            tracing::warn!(
                proxy = self.wanted.proxy_addr,
                "sessions on the old tunnel were still open after {timeout:?} and are ended"
            );
        }
    }
}

impl Wanted {
    fn of(spec: &Spec) -> Self {
        Wanted {
            proxy_addr: spec.common.proxy_addr.clone(),
            transport: spec.common.transport,
            warm: spec.common.warm,
            http_proxy: spec.common.http_proxy.clone(),
            kind: spec.kind.clone(),
        }
    }
}

fn tunnel_credentials(c: &Credentials) -> TunnelCredentials {
    TunnelCredentials {
        ssh_key: c.ssh_key(),
        ssh_cert: c.ssh_client_cert.clone(),
        trust: c.trust.clone(),
    }
}
