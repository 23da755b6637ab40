//! Keeps one link up: reconnects with jitter, at once after a goodbye, and before the old one is given up where
//! there is time for that (goodbye, renewed credentials).

use super::dial::Dialer;
use super::link::{Context, Link, LinkState};
use super::{Credentials, Incoming, TunnelClientOptions, TunnelState};
use crate::wire::Announcement;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Longest pause while the proxy's host says that nobody listens there: such an attempt costs nobody anything, and who
/// waits for a proxy that restarts shall not wait for us besides.
const RESTARTING: Duration = Duration::from_secs(3);
/// How long the connection that took our place is left alone. It is another process of the same service, which took over
/// from this one; to connect again at once would only take the streams back, and the other one would do the same.
const SUPERSEDED: Duration = Duration::from_secs(60);

/// Pauses between attempts: decorrelated jitter (each is random between the shortest and three times the one
/// before), so that a thousand agents do not come back in step.
pub(crate) struct Jitter {
    min: Duration,
    max: Duration,
    last: Duration,
}

impl Jitter {
    pub fn new((min, max): (Duration, Duration)) -> Self {
        Jitter {
            min,
            max,
            last: min,
        }
    }

    pub fn next(&mut self) -> Duration {
        let top = (self.last * 3).clamp(self.min, self.max);
        self.last = self.min + (top - self.min).mul_f64(rand::random::<f64>());
        self.last
    }

    pub fn reset(&mut self) {
        self.last = self.min;
    }
}

/// The link that carries new streams.
struct Current {
    state: watch::Receiver<LinkState>,
    retire: CancellationToken,
    since: Instant,
}

pub(crate) struct Supervisor {
    context: Context,
    credentials: watch::Receiver<Credentials>,
    state: watch::Sender<TunnelState>,
    drain: CancellationToken,
    /// No new links.
    still: CancellationToken,
    stop: CancellationToken,
    links: JoinSet<()>,
}

/// Why a new link is needed.
#[derive(PartialEq)]
enum Need {
    /// The proxy asked for it, or the credentials are new.
    AtOnce,
    Lost(String),
    /// Another process of this service has taken over.
    Superseded,
    Drained,
}

impl Supervisor {
    pub fn new(
        opts: TunnelClientOptions,
        credentials: watch::Receiver<Credentials>,
        announce: watch::Receiver<Announcement>,
        incoming: mpsc::Sender<Incoming>,
        state: watch::Sender<TunnelState>,
        (drain, still, stop): (CancellationToken, CancellationToken, CancellationToken),
    ) -> Self {
        let context = Context {
            dialer: Arc::new(Dialer::new(opts)),
            incoming,
            announce,
        };
        Supervisor {
            context,
            credentials,
            state,
            drain,
            still,
            stop,
            links: JoinSet::new(),
        }
    }

    pub async fn run(mut self) {
        let opts = self.context.dialer.opts.clone();
        let mut jitter = Jitter::new(opts.timing.backoff);
        let mut current: Option<Current> = None;
        let mut attempt = 1;
        while !self.drain.is_cancelled() {
            if self.still.is_cancelled() {
                self.drain.cancelled().await;
                break;
            }
            let credentials = self.credentials.borrow_and_update().clone();
            let connected = tokio::select! {
                connected = Link::connect(self.context.clone(), credentials) => connected,
                () = self.drain.cancelled() => break,
            };
            match connected {
                Ok(link) => {
                    info!(service = opts.service, proxy = opts.proxy_addr, rtt = ?link.rtt(), "tunnel up");
                    metrics::counter!("postern_tunnel_connects_total", "outcome" => "ok")
                        .increment(1);
                    let fresh = self.start(link);
                    if let Some(old) = current.replace(fresh) {
                        old.retire.cancel();
                    }
                    attempt = 1;
                    let up_since = Instant::now();
                    match self.follow(current.as_mut()).await {
                        Need::Drained => break,
                        Need::Superseded => {
                            info!(
                                service = opts.service,
                                "another connection of this service took over"
                            );
                            current = None;
                            self.connecting(
                                attempt,
                                Some("another connection of this service took over".into()),
                            );
                            self.pause(SUPERSEDED).await;
                        }
                        Need::AtOnce => {
                            // A proxy that says goodbye again and again must not make us spin.
                            if up_since.elapsed() > opts.timing.heartbeat {
                                jitter.reset();
                            } else {
                                self.pause(jitter.next()).await;
                            }
                        }
                        Need::Lost(why) => {
                            warn!(service = opts.service, error = why, "tunnel lost");
                            current = None;
                            if up_since.elapsed() > opts.timing.heartbeat {
                                jitter.reset();
                            }
                            self.connecting(attempt, Some(why));
                            self.pause(jitter.next().min(RESTARTING)).await;
                        }
                    }
                }
                Err(e) => {
                    let why = e.to_string();
                    metrics::counter!("postern_tunnel_connects_total", "outcome" => "error")
                        .increment(1);
                    warn!(
                        service = opts.service,
                        attempt,
                        error = why,
                        "cannot bring the tunnel up"
                    );
                    let up = current
                        .as_ref()
                        .is_some_and(|c| !matches!(*c.state.borrow(), LinkState::Lost(_)));
                    if !up {
                        current = None;
                        self.connecting(attempt + 1, Some(why));
                    }
                    attempt += 1;
                    let pause = jitter.next();
                    self.pause(if e.nobody_listens() {
                        pause.min(RESTARTING)
                    } else {
                        pause
                    })
                    .await;
                }
            }
            while self.links.try_join_next().is_some() {}
        }
        self.state.send_replace(TunnelState::Draining);
        if let Some(current) = &mut current {
            let gone = |s: &LinkState| matches!(s, LinkState::Drained | LinkState::Lost(_));
            let _ = current.state.wait_for(gone).await;
            current.retire.cancel();
        }
        while self.links.join_next().await.is_some() {}
        debug!(service = opts.service, "tunnel drained");
    }

    fn connecting(&self, attempt: u32, last_error: Option<String>) {
        self.state.send_replace(TunnelState::Connecting {
            attempt,
            last_error,
        });
    }

    fn start(&mut self, link: Link) -> Current {
        let rtt = link.rtt();
        let (tx, state) = watch::channel(LinkState::Up { rtt });
        let retire = self.stop.child_token();
        self.links
            .spawn(link.run(tx, self.drain.clone(), retire.clone()));
        let since = Instant::now();
        self.state.send_replace(TunnelState::Up { rtt, since });
        Current {
            state,
            retire,
            since,
        }
    }

    /// Follows the current link until another one is needed.
    async fn follow(&mut self, current: Option<&mut Current>) -> Need {
        let Some(current) = current else {
            return Need::AtOnce;
        };
        loop {
            tokio::select! {
                changed = current.state.changed() => {
                    let state = current.state.borrow_and_update().clone();
                    match state {
                        LinkState::Up { rtt } if changed.is_ok() => {
                            self.state.send_replace(TunnelState::Up { rtt, since: current.since });
                        }
                        LinkState::Goodbye(_) if changed.is_ok() => return Need::AtOnce,
                        LinkState::Superseded if changed.is_ok() => return Need::Superseded,
                        LinkState::Drained => return Need::Drained,
                        LinkState::Lost(why) => return Need::Lost(why),
                        _ => return Need::Lost("its task ended".into()),
                    }
                }
                changed = self.credentials.changed() => {
                    if changed.is_err() {
                        // The service that renews them is gone; it will drop us.
                        std::future::pending::<()>().await;
                    }
                    debug!("new credentials: connecting anew");
                    return Need::AtOnce;
                }
                () = self.drain.cancelled() => return Need::Drained,
            }
        }
    }

    /// Waits before the next attempt; new credentials end the wait, they may be what was missing.
    async fn pause(&mut self, time: Duration) {
        let renewed = async {
            if self.credentials.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = sleep(time) => {}
            () = renewed => {}
            () = self.drain.cancelled() => {}
            () = self.still.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_stay_within_bounds_and_differ() {
        let (min, max) = (Duration::from_millis(200), Duration::from_secs(8));
        let mut jitter = Jitter::new((min, max));
        let pauses: Vec<_> = (0..200).map(|_| jitter.next()).collect();
        assert!(pauses.iter().all(|p| (min..=max).contains(p)), "{pauses:?}");
        assert!(pauses.iter().any(|p| *p > Duration::from_secs(3)));
        jitter.reset();
        assert!(jitter.next() <= min * 3);
    }
}
