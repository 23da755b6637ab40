//! The Proxy Service as a whole: starting it, draining it, asking how it is.

use crate::anonymous::Budget;
use crate::error::ProxyError;
use crate::live::Live;
use crate::serve;
use crate::shared::{Deriving, Shared, web_identity};
use crate::{JoinSource, ProxyOptions};
use postern_api::v1::HeartbeatRequest;
use postern_identity::{HostKey, TrustBundle};
use postern_membership::{
    Cache, Feed, Holding, Joiner, MemberDir, RootOfTrust, TokenSource, Ways, heartbeat, hold,
    hostname,
};
use postern_tunnel::{AgentView, HostCredentials, Registry, TunnelServer, TunnelServerOptions};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tracing::{info, warn};

/// The proxy's service and kind, as Auth knows it.
const PROXY: &str = "proxy";
/// After a take-over, how long a resource that is not there yet is waited for.
const AGENTS_COME: Duration = Duration::from_secs(8);
/// How long a start waits for the first answer of Auth, before it goes on without.
const FIRST_JOIN: Duration = Duration::from_secs(5);

/// A running Proxy Service.
pub struct ProxyServer {
    local_addr: SocketAddr,
    shared: Arc<Shared>,
    holding: watch::Receiver<Holding>,
    /// No new connections.
    closing: CancellationToken,
    /// Another process renews and writes.
    handed_over: CancellationToken,
    /// The listener, once it is closed here for another process.
    heir: Option<oneshot::Receiver<TcpListener>>,
    tasks: JoinHandle<()>,
}

impl ProxyServer {
    /// Binds, joins Auth (or takes the credentials on disk) and serves until `shutdown`. A join that fails is no
    /// error: it is tried again, and [`ProxyServer::readiness`] says why.
    pub async fn start(
        opts: ProxyOptions,
        shutdown: CancellationToken,
    ) -> Result<Self, ProxyError> {
        Self::start_on(opts, None, shutdown).await
    }

    /// The same, on the listener of the process before, where there is one. The agents have tunnels to that process
    /// and come at once: until then who asks for a resource waits for it.
    pub async fn start_on(
        opts: ProxyOptions,
        inherited: Option<std::net::TcpListener>,
        shutdown: CancellationToken,
    ) -> Result<Self, ProxyError> {
        let public_host = host_of(&opts.public_addr)
            .ok_or_else(|| ProxyError::PublicAddr(opts.public_addr.clone()))?;
        let web = opts.tls.as_ref().map(web_identity).transpose()?;
        let dir = MemberDir::open(opts.data_dir.join(PROXY))?;
        let host_key = Arc::new(HostKey::load_or_create(&opts.data_dir.join("host.key"))?);
        let cannot = |source| ProxyError::Listen {
            addr: opts.listen.clone(),
            source,
        };
        let taking_over = inherited.is_some();
        let listener = match inherited {
            Some(listener) => listener
                .set_nonblocking(true)
                .and_then(|()| TcpListener::from_std(listener)),
            None => TcpListener::bind(&opts.listen).await,
        }
        .map_err(cannot)?;
        let local_addr = listener.local_addr().map_err(cannot)?;

        let (feed, snapshot) = Feed::open(dir.path().join("cache.json"));
        let (holding_tx, mut holding) = watch::channel(Holding::default());
        let (host_tx, host) = watch::channel(HostCredentials {
            ssh_key: String::new().into(),
            ssh_host_cert: String::new(),
        });
        let (trust_tx, trust) = watch::channel(match &opts.join {
            JoinSource::Local { trust, .. } => trust.clone(),
            JoinSource::Remote { .. } => TrustBundle {
                cluster: opts.cluster.clone(),
                cas: Vec::new(),
            },
        });
        let (tls_tx, tls) = watch::channel(None);
        let locks = snapshot.clone();
        let tunnel = TunnelServer::new(
            TunnelServerOptions::new(&opts.cluster),
            host,
            trust.clone(),
            Arc::new(move |agent| {
                let targets = [
                    format!("host:{}", agent.host_id),
                    format!("service:{}/{}", agent.host_id, agent.service),
                ];
                Some(locks.borrow().locked(&targets)?.reason.clone())
            }),
        );
        let shared = Arc::new(Shared {
            cluster: opts.cluster.clone(),
            public_host: public_host.to_ascii_lowercase(),
            auth_addr: opts.auth_addr.clone(),
            tunnel,
            budget: Budget::new(),
            passed: Budget::passed(),
            live: Live::default(),
            snapshot: snapshot.clone(),
            trust,
            tls,
            sessions: watch::channel(0).0,
            patience: taking_over.then(|| tokio::time::Instant::now() + AGENTS_COME),
            shutdown: shutdown.clone(),
        });
        let deriving = Deriving {
            files: opts.tls.clone(),
            web,
            holding: holding.clone(),
            snapshot: snapshot.clone(),
            host: host_tx,
            trust: trust_tx,
            tls: tls_tx,
        };
        let joiner = joiner(&opts, host_key, dir, public_host);

        let rejoin = Arc::new(Notify::new());
        let closing = shutdown.child_token();
        let handed_over = feed.handed_over();
        let (give, heir) = oneshot::channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(deriving.run());
        tasks.spawn(follow(opts.clone(), holding.clone(), rejoin.clone(), feed));
        tasks.spawn(enforce(shared.clone(), snapshot));
        let (accepting, mut identified) = (
            accept(
                listener,
                shared.clone(),
                closing.clone(),
                (handed_over.clone(), give),
            ),
            shared.tls.clone(),
        );
        tasks.spawn(async move {
            // Who comes while processes change shall wait rather than be sent away.
            if taking_over {
                let _ = timeout(AGENTS_COME, identified.wait_for(Option::is_some)).await;
            }
            accepting.await;
        });
        let renewing = handed_over.clone();
        tasks.spawn(async move {
            // What it holds stays published after that.
            let holding = hold(joiner, holding_tx.clone(), rejoin);
            renewing.run_until_cancelled(holding).await;
            holding_tx.closed().await;
        });
        let stop = shutdown.clone();
        let tasks = tokio::spawn(async move {
            stop.cancelled().await;
            tasks.shutdown().await;
        });

        let mut ready = shared.tls.clone();
        let first = async {
            tokio::select! {
                ready = ready.wait_for(Option::is_some) => drop(ready),
                failed = holding.wait_for(|h| h.failed.is_some()) => drop(failed),
            }
        };
        if timeout(FIRST_JOIN, first).await.is_err() {
            warn!("the proxy has not joined yet; it goes on trying");
        }
        info!(addr = %local_addr, "the proxy listens");
        Ok(ProxyServer {
            local_addr,
            shared,
            holding,
            closing,
            handed_over,
            heir: Some(heir),
            tasks,
        })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The agents' tunnels.
    pub fn registry(&self) -> Registry {
        self.shared.tunnel.registry()
    }

    /// The agents' tunnels, for an operator.
    pub fn agents(&self) -> Vec<AgentView> {
        self.registry().agents()
    }

    /// Another process takes over: accepts nothing more here, and gives the listener away. Tunnels and sessions go on
    /// until [`ProxyServer::drain`].
    pub async fn hand_over(&mut self) -> Option<OwnedFd> {
        self.handed_over.cancel();
        self.closing.cancel();
        let listener = self.heir.take()?.await.ok()?;
        Some(listener.into_std().ok()?.into())
    }

    /// Sends the agents elsewhere; their live streams go on.
    pub async fn say_goodbye(&self) {
        self.shared.tunnel.drain().await;
    }

    /// Stops listening, sends the agents elsewhere, and waits until the sessions have ended, or for `limit`.
    pub async fn drain(&self, limit: Duration) {
        self.closing.cancel();
        self.say_goodbye().await;
        let mut sessions = self.shared.sessions.subscribe();
        if timeout(limit, sessions.wait_for(|n| *n == 0))
            .await
            .is_err()
        {
            warn!(
                sessions = *sessions.borrow(),
                "sessions are cut after the drain's time"
            );
        }
    }

    /// Why the proxy can't do its work; empty if it can. Auth being away is no reason: it works from what it has.
    pub fn readiness(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        let holding = self.holding.borrow();
        let unusable = match &holding.credentials {
            None => Some("the proxy has not joined"),
            Some(c) if c.expired() => Some("the proxy's certificates have expired"),
            Some(_) => None,
        };
        reasons.extend(unusable.map(|why| match &holding.failed {
            Some(failed) => format!("{why}: {failed}"),
            None => why.to_owned(),
        }));
        if self.closing.is_cancelled() {
            reasons.push("the proxy is draining".to_owned());
        }
        reasons
    }

    /// After shutdown: everything is closed.
    pub async fn stopped(self) {
        let _ = self.tasks.await;
    }
}

fn joiner(
    opts: &ProxyOptions,
    host_key: Arc<HostKey>,
    dir: MemberDir,
    public_host: String,
) -> Joiner {
    let (token, root) = match &opts.join {
        JoinSource::Local { token, trust } => (
            TokenSource::Minted(token.clone().into()),
            RootOfTrust::Local(trust.clone()),
        ),
        JoinSource::Remote { params, pins } => (
            params
                .clone()
                .map_or(TokenSource::None, TokenSource::Params),
            RootOfTrust::Pins(pins.clone()),
        ),
    };
    Joiner {
        cluster: opts.cluster.clone(),
        addr: opts.auth_addr.clone(),
        service: PROXY.to_owned(),
        kind: PROXY.to_owned(),
        names: vec![public_host],
        host_key,
        token,
        root,
        dir,
        ask_first: false,
    }
}

/// As a client of Auth: what it publishes, and a heartbeat, through a channel with the newest credentials.
async fn follow(
    opts: ProxyOptions,
    mut holding: watch::Receiver<Holding>,
    rejoin: Arc<Notify>,
    feed: Feed,
) {
    let (addr, cluster) = (&opts.auth_addr, &opts.cluster);
    let first = loop {
        let credentials = Holding::first(&mut holding).await;
        match credentials.auth_channel(addr, cluster) {
            Ok(channel) => break channel,
            Err(e) => {
                warn!(error = %e, "the proxy's client certificate can't be used");
                Holding::next(&mut holding).await;
            }
        }
    };
    let (tx, channel) = watch::channel(first.clone());
    let (ways_tx, ways) = watch::channel(Ways::from([(PROXY.to_owned(), first)]));
    let renewed = async {
        loop {
            let credentials = Holding::next(&mut holding).await;
            match credentials.auth_channel(addr, cluster) {
                Ok(channel) => {
                    tx.send_replace(Channel::clone(&channel));
                    ways_tx.send_modify(|ways| {
                        ways.insert(PROXY.to_owned(), channel);
                    });
                }
                Err(e) => warn!(error = %e, "the proxy's new client certificate can't be used"),
            }
        }
    };
    let beat = || HeartbeatRequest {
        kind: PROXY.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        hostname: hostname(),
        public_addr: opts.public_addr.clone(),
        ..Default::default()
    };
    tokio::select! {
        () = renewed => {}
        () = heartbeat(channel, rejoin, beat) => {}
        () = feed.run(ways) => {}
    }
}

fn host_of(addr: &str) -> Option<String> {
    let (host, port) = addr.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then(|| host.to_owned())
}

async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    closing: CancellationToken,
    (handed_over, give): (CancellationToken, oneshot::Sender<TcpListener>),
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((tcp, peer)) => {
                    connections.spawn(serve::connection(shared.clone(), tcp, peer));
                }
                Err(e) => {
                    // Out of descriptors, most likely: no use in spinning.
                    warn!(error = %e, "cannot accept a connection");
                    sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = closing.cancelled() => break,
        }
    }
    if handed_over.is_cancelled() {
        let _ = give.send(listener);
    } else {
        drop(listener);
    }
    tokio::select! {
        () = shared.shutdown.cancelled() => {}
        () = async { while connections.join_next().await.is_some() {} } => {}
    }
}

/// Cuts what a new lock is about.
async fn enforce(shared: Arc<Shared>, mut snapshot: Cache) {
    let mut known = BTreeMap::new();
    loop {
        let locks = snapshot.borrow_and_update().locks.clone();
        for target in locks.keys().filter(|t| known.get(*t) != locks.get(*t)) {
            cut(&shared, target);
        }
        known = locks;
        if snapshot.changed().await.is_err() {
            return;
        }
    }
}

fn cut(shared: &Shared, target: &str) {
    match target.split_once(':') {
        Some(("user", user)) => {
            let sessions = shared.live.cut(user);
            info!(user, sessions, "user locked");
        }
        Some(("host", host)) => shared.tunnel.registry().disconnect(host, None),
        Some(("service", id)) => {
            if let Some((host, service)) = id.split_once('/') {
                shared.tunnel.registry().disconnect(host, Some(service));
            }
        }
        _ => warn!(target, "a lock of an unknown form"),
    }
}

#[cfg(test)]
mod tests {
    use super::host_of;

    #[test]
    fn hosts_of_addresses() {
        assert_eq!(
            host_of("proxy.example.com:443").as_deref(),
            Some("proxy.example.com")
        );
        assert_eq!(host_of("[::1]:443").as_deref(), Some("::1"));
        assert_eq!(host_of("127.0.0.1:3080").as_deref(), Some("127.0.0.1"));
        for bad in ["", "x", ":443", "x:y", "x:70000"] {
            assert_eq!(host_of(bad), None, "{bad}");
        }
    }
}
