//! The proxy's end: takes SSH connections from agents, and keeps the [`Registry`].

mod control;
mod data;
mod handler;

use crate::client::Timing;
use crate::cut::{Cut, Heard};
use crate::registry::Registry;
use crate::ssh::{self, Role};
use crate::wire::Frame;
use handler::{Authenticated, ServerHandler};
use postern_identity::{AgentIdentity, TrustBundle};
use russh::server;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use zeroize::Zeroizing;

/// What the proxy proves itself with: an SSH host certificate by the host CA for `proxy.<cluster>`.
#[derive(Clone)]
pub struct HostCredentials {
    /// OpenSSH private key.
    pub ssh_key: Zeroizing<String>,
    /// One line.
    pub ssh_host_cert: String,
}

/// Whether an agent is locked, and why.
pub type LockCheck = Arc<dyn Fn(&AgentIdentity) -> Option<String> + Send + Sync>;

/// Limits of a tunnel server. The defaults are the product's.
#[derive(Debug, Clone)]
pub struct TunnelServerOptions {
    pub cluster: String,
    /// Data connections of one service.
    pub max_data: usize,
    /// Connections that have not authenticated yet.
    pub max_unauthenticated: usize,
    /// From the first byte to an authenticated connection that says what it is for.
    pub auth_timeout: Duration,
    /// Heartbeats; the rest does not concern the server.
    pub timing: Timing,
}

impl TunnelServerOptions {
    pub fn new(cluster: &str) -> Self {
        TunnelServerOptions {
            cluster: cluster.to_owned(),
            max_data: 8192,
            max_unauthenticated: 1024,
            auth_timeout: Duration::from_secs(10),
            timing: Timing::default(),
        }
    }
}

/// Serves the proxy's end of every tunnel.
pub struct TunnelServer {
    opts: TunnelServerOptions,
    host: watch::Receiver<HostCredentials>,
    trust: watch::Receiver<TrustBundle>,
    locked: LockCheck,
    registry: Registry,
    unauthenticated: Semaphore,
    draining: CancellationToken,
}

impl TunnelServer {
    pub fn new(
        opts: TunnelServerOptions,
        host: watch::Receiver<HostCredentials>,
        trust: watch::Receiver<TrustBundle>,
        locked: LockCheck,
    ) -> Self {
        TunnelServer {
            unauthenticated: Semaphore::new(opts.max_unauthenticated),
            opts,
            host,
            trust,
            locked,
            registry: Registry::default(),
            draining: CancellationToken::new(),
        }
    }

    /// The tunnels that are up.
    pub fn registry(&self) -> Registry {
        self.registry.clone()
    }

    /// Says goodbye to all agents: they connect elsewhere at once, and send no new connections here. Live streams
    /// go on; the caller decides for how long, by dropping the [`TunnelServer::serve`] futures.
    pub async fn drain(&self) {
        self.draining.cancel();
        let goodbye = Frame::Goodbye {
            reason: "this proxy is shutting down".into(),
        };
        for control in self.registry.controls() {
            let _ = timeout(Duration::from_secs(1), control.send(goodbye.clone())).await;
        }
    }

    /// Streams in use, over all agents.
    pub fn live_streams(&self) -> usize {
        self.registry.streams()
    }

    /// Serves one connection from an agent until it ends. Dropping the future cuts it.
    pub async fn serve<IO>(&self, io: IO, peer: SocketAddr)
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.serve_until(io, peer, Instant::now() + self.opts.auth_timeout, ())
            .await;
    }

    /// The same, where the time until authentication began before. `anonymous` is dropped once the peer has
    /// authenticated: whatever it counts against until then.
    pub async fn serve_until<IO, A>(
        &self,
        io: IO,
        peer: SocketAddr,
        auth_deadline: Instant,
        anonymous: A,
    ) where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        A: Send,
    {
        let outcome = match self.serve_inner(io, peer, auth_deadline, anonymous).await {
            Ok(()) => "ok",
            Err(why) => {
                debug!(%peer, error = why, "tunnel connection refused");
                "refused"
            }
        };
        metrics::counter!("postern_tunnel_connections_total", "outcome" => outcome).increment(1);
    }

    async fn serve_inner<IO, A>(
        &self,
        io: IO,
        peer: SocketAddr,
        auth_deadline: Instant,
        anonymous: A,
    ) -> Result<(), String>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        A: Send,
    {
        let Ok(permit) = self.unauthenticated.try_acquire() else {
            debug!(%peer, limit = self.opts.max_unauthenticated, "too many connections that have not authenticated; dropping one");
            return Err("too many unauthenticated connections".into());
        };
        let host = self.host.borrow().clone();
        let (key, certificate) = ssh::parse_pair(&host.ssh_key, &host.ssh_host_cert)
            .inspect_err(|e| warn!(error = %e, "the proxy's SSH host credentials can't be used; no agent can connect"))?;
        let config = Arc::new(ssh::server_config(key, certificate));
        let token = CancellationToken::new();
        let _cut_on_drop = token.clone().drop_guard();
        let heard = Heard::now();
        let trust = self.trust.borrow().clone();
        let (handler, mut events) = ServerHandler::new(&trust, peer, token.clone());
        let io = Cut::new(ssh::read_ahead(io), token.clone(), heard.clone());
        let authenticate = async {
            let _session = server::run_stream(config, io, handler)
                .await
                .map_err(|e| e.to_string())?;
            // The session runs in a task of its own; the token ends it, and it the token.
            events
                .authenticated
                .recv()
                .await
                .ok_or_else(|| "the SSH session ended before authentication".to_owned())
        };
        let authenticated = timeout_at(auth_deadline, authenticate)
            .await
            .map_err(|_| "not authenticated in time".to_owned())??;
        drop(permit);
        drop(anonymous);
        let Authenticated {
            role,
            info,
            not_after,
        } = authenticated;
        match role {
            Role::Control(instance) => {
                control::serve(
                    self,
                    control::Arrived {
                        instance,
                        info,
                        not_after,
                        peer,
                        token,
                    },
                    events,
                )
                .await
            }
            Role::Data(instance) => {
                data::serve(
                    self,
                    data::Arrived {
                        instance,
                        info,
                        token,
                        heard,
                    },
                    events,
                )
                .await
            }
        }
    }
}
