//! The agent's end: keeps a tunnel up and delivers the streams that come through it.

mod data;
mod dial;
mod handler;
pub(crate) mod link;
mod supervise;

pub use dial::http_proxy_for;

use crate::stream::TunnelStream;
use crate::wire::{Announcement, StreamHeader};
use postern_identity::TrustBundle;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use zeroize::Zeroizing;

/// How the agent reaches the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// SSH straight on the proxy's port; where that fails, SSH inside TLS. What worked is tried first next time.
    #[default]
    Auto,
    /// SSH straight on the proxy's port.
    Ssh,
    /// SSH inside TLS (ALPN `postern-tunnel`), for networks that let only TLS out.
    Tls,
}

/// When things happen. The defaults are the product's; tests shorten them.
#[derive(Debug, Clone)]
pub struct Timing {
    /// Between pings on the control connection, both ways.
    pub heartbeat: Duration,
    /// A control connection that was silent for so long is dead, and its data connections with it.
    pub dead_after: Duration,
    /// For reaching the proxy, each of TCP, TLS and SSH with authentication.
    pub dial_timeout: Duration,
    /// Shortest and longest pause before a reconnect.
    pub backoff: (Duration, Duration),
    /// Between pings on an idle data connection; keeps it open in NATs and load balancers.
    pub idle_ping: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            heartbeat: Duration::from_secs(5),
            dead_after: Duration::from_secs(12),
            dial_timeout: Duration::from_secs(5),
            backoff: (Duration::from_millis(200), Duration::from_secs(8)),
            idle_ping: Duration::from_secs(15),
        }
    }
}

/// What a tunnel client needs to know.
#[derive(Debug, Clone)]
pub struct TunnelClientOptions {
    /// `host:port`
    pub proxy_addr: String,
    pub transport: Transport,
    pub cluster: String,
    /// For logs; who the agent is follows from its certificate.
    pub host_id: String,
    /// For logs, too.
    pub service: String,
    /// Idle data connections to keep, at least 1.
    pub warm: usize,
    /// Data connections at most, idle and in use.
    pub max_data: usize,
    /// `http://[user:password@]host:port` of an HTTP proxy to CONNECT through; see [`http_proxy_for`].
    pub http_proxy: Option<String>,
    pub timing: Timing,
}

impl Default for TunnelClientOptions {
    fn default() -> Self {
        TunnelClientOptions {
            proxy_addr: String::new(),
            transport: Transport::Auto,
            cluster: String::new(),
            host_id: String::new(),
            service: String::new(),
            warm: 1,
            max_data: 8192,
            http_proxy: None,
            timing: Timing::default(),
        }
    }
}

/// What a service of an agent proves itself with. Delivered by a `watch`, so that renewals apply to new
/// connections; a renewal also makes the control connection anew, since the names that may be announced are in
/// the certificate.
#[derive(Clone)]
pub struct Credentials {
    /// OpenSSH private key.
    pub ssh_key: Zeroizing<String>,
    /// Certificate by the agent CA, one line.
    pub ssh_cert: String,
    pub trust: TrustBundle,
}

/// How the tunnel is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TunnelState {
    /// Not up. `attempt` counts from 1 since the last time it was.
    Connecting {
        attempt: u32,
        last_error: Option<String>,
    },
    /// Up. `rtt`: round trip through the control connection; `since`: when this control connection came up.
    Up { rtt: Duration, since: Instant },
    /// Told the proxy to send no new streams.
    Draining,
}

/// A stream that the proxy opened to this service.
#[derive(Debug)]
pub struct Incoming {
    pub header: StreamHeader,
    pub stream: TunnelStream,
}

/// Holds the tunnel up. Dropping it cuts everything at once; see [`TunnelClient::drain`] for the gentle way.
pub struct TunnelClient {
    state: watch::Receiver<TunnelState>,
    drain: CancellationToken,
    drained: CancellationToken,
    still: CancellationToken,
    _stop: DropGuard,
}

impl TunnelClient {
    /// How the tunnel is now.
    pub fn state(&self) -> TunnelState {
        self.state.borrow().clone()
    }

    /// Follows the state.
    pub fn watch(&self) -> watch::Receiver<TunnelState> {
        self.state.clone()
    }

    /// Another process keeps this service's tunnel up from now on: what is connected stays, nothing is dialled any more.
    pub fn stay(&self) {
        self.still.cancel();
    }

    /// Tells the proxy to send no new streams, and returns when the live ones have finished. The caller puts a
    /// limit on it; it may be called again, and concurrently with the delivery of streams that were on their way.
    pub async fn drain(&self) {
        self.drain.cancel();
        self.drained.cancelled().await;
    }
}

/// Starts a tunnel: dials the proxy, announces `announce`, keeps idle data connections ready, reconnects for as
/// long as the [`TunnelClient`] lives. Streams come from the receiver; whoever drops one closes it.
pub fn client(
    opts: TunnelClientOptions,
    credentials: watch::Receiver<Credentials>,
    announce: watch::Receiver<Announcement>,
) -> (TunnelClient, mpsc::Receiver<Incoming>) {
    let (state_tx, state) = watch::channel(TunnelState::Connecting {
        attempt: 1,
        last_error: None,
    });
    // Small: a stream that nobody takes waits in its own connection.
    let (incoming_tx, incoming) = mpsc::channel(16);
    let (drain, drained, still, stop) = (
        CancellationToken::new(),
        CancellationToken::new(),
        CancellationToken::new(),
        CancellationToken::new(),
    );
    let supervisor = supervise::Supervisor::new(
        opts,
        credentials,
        announce,
        incoming_tx,
        state_tx,
        (drain.clone(), still.clone(), stop.clone()),
    );
    let done = drained.clone().drop_guard();
    let stopped = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = supervisor.run() => {}
            () = stopped.cancelled() => {}
        }
        drop(done);
    });
    let client = TunnelClient {
        state,
        drain,
        drained,
        still,
        _stop: stop.drop_guard(),
    };
    (client, incoming)
}
