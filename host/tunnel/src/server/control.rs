//! One control connection at the proxy: announcements in, heartbeats both ways, requests for data connections out.

use super::TunnelServer;
use super::handler::Events;
use crate::client::link::{Control, framed, parse, send};
use crate::registry::{LinkId, NewLink, Offer};
use crate::stream::{Sending, TunnelStream};
use crate::wire::{Announcement, Frame};
use futures::StreamExt;
use postern_identity::{AgentCertInfo, check_label};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// More than any certificate holds; a bound for lists in several frames.
const MAX_RESOURCES: usize = 20_000;
/// After a goodbye, how long the old connection stays, so that there is no gap.
const FAREWELL: Duration = Duration::from_secs(10);

pub(crate) struct Arrived {
    pub instance: String,
    pub info: AgentCertInfo,
    pub not_after: Option<SystemTime>,
    pub peer: SocketAddr,
    pub token: CancellationToken,
}

/// Why a control connection ended.
enum End {
    /// The agent closed it, or it broke.
    Closed(String),
    /// By silence.
    Dead,
}

pub(crate) async fn serve(
    server: &TunnelServer,
    arrived: Arrived,
    mut events: Events,
) -> Result<(), String> {
    let channel = timeout(server.opts.auth_timeout, events.channels.recv())
        .await
        .ok()
        .flatten()
        .ok_or("no control channel was opened")?;
    let (reading, writing) = channel.split();
    let (stream, _dropped) = TunnelStream::new(
        reading,
        Sending::Server(Arc::new(writing)),
        arrived.token.child_token(),
        arrived.token.clone(),
    );
    let mut control = framed(stream);
    let limit = server.opts.timing.dead_after;
    let identity = arrived.info.identity.clone();
    let (outgoing_tx, outgoing) = mpsc::channel(16);
    let admitted = match (server.locked)(&identity) {
        Some(reason) => Err(format!("this host or service is locked: {reason}")),
        None if server.draining.is_cancelled() => Err("this proxy is shutting down".to_owned()),
        None => server
            .registry
            .add_link(NewLink {
                identity: identity.clone(),
                instance: arrived.instance.clone(),
                kind: arrived.info.kind.clone(),
                peer: arrived.peer,
                control: outgoing_tx,
                cut: arrived.token.clone(),
                suspect_after: server.opts.timing.heartbeat + server.opts.timing.heartbeat / 2,
            })
            .ok_or_else(|| "this service has too many connections here already".to_owned()),
    };
    let link = match admitted {
        Ok(link) => link,
        Err(reason) => {
            let goodbye = Frame::Goodbye {
                reason: reason.clone(),
            };
            let _ = send(&mut control, &goodbye, limit).await;
            // Time to read it.
            let _ = timeout(Duration::from_secs(1), control.next()).await;
            return Err(reason);
        }
    };
    let registered = Registered {
        server,
        link,
        dead: false,
    };
    info!(host = identity.host_id, service = identity.service, peer = %arrived.peer, "tunnel up");
    let end = Served {
        server,
        arrived: &arrived,
        link,
        control,
        outgoing,
        pending: Vec::new(),
    }
    .run()
    .await;
    registered.end(matches!(end, End::Dead));
    match end {
        End::Closed(why) => info!(
            host = identity.host_id,
            service = identity.service,
            why,
            "tunnel closed"
        ),
        End::Dead => {
            warn!(host = identity.host_id, service = identity.service, after = ?limit, "tunnel silent: given up, with its streams")
        }
    }
    Ok(())
}

/// Takes the link out of the registry, also when the future is dropped.
struct Registered<'a> {
    server: &'a TunnelServer,
    link: LinkId,
    dead: bool,
}

impl Registered<'_> {
    fn end(mut self, dead: bool) {
        self.dead = dead;
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.server.registry.remove_link(self.link, self.dead);
    }
}

struct Served<'a> {
    server: &'a TunnelServer,
    arrived: &'a Arrived,
    link: LinkId,
    control: Control,
    outgoing: mpsc::Receiver<Frame>,
    /// Of an announcement that comes in several frames.
    pending: Vec<crate::AnnouncedResource>,
}

impl Served<'_> {
    async fn run(mut self) -> End {
        let timing = self.server.opts.timing.clone();
        let mut beat = interval(timing.heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let mut pinged = (0u64, Instant::now());
        let mut farewell: Option<Instant> = None;
        let expiry = self
            .arrived
            .not_after
            .and_then(|t| t.duration_since(SystemTime::now()).ok())
            .unwrap_or(Duration::from_secs(365 * 24 * 3600));
        let expired = sleep(expiry);
        tokio::pin!(expired);
        loop {
            let sent = tokio::select! {
                frame = self.control.next() => {
                    heard = Instant::now();
                    match parse(frame) {
                        Ok(Frame::Ping { seq }) => {
                            self.server.registry.heard(self.link, None);
                            self.send(&Frame::Pong { seq }).await
                        }
                        Ok(Frame::Pong { seq }) => {
                            let rtt = (seq == pinged.0).then(|| pinged.1.elapsed());
                            self.server.registry.heard(self.link, rtt);
                            Ok(())
                        }
                        Ok(Frame::Announce { announcement, warm, more }) => self.announced(announcement, warm, more).await,
                        Ok(Frame::Drain) => {
                            self.server.registry.drain_link(self.link);
                            self.send(&Frame::Drained).await
                        }
                        Ok(_) => Ok(()),
                        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return End::Closed("the agent closed it".into()),
                        Err(e) => return End::Closed(e.to_string()),
                    }
                }
                _ = beat.tick() => {
                    pinged = (pinged.0 + 1, Instant::now());
                    self.send(&Frame::Ping { seq: pinged.0 }).await
                }
                () = sleep_until(heard + timing.dead_after) => return End::Dead,
                Some(frame) = self.outgoing.recv() => self.send(&frame).await,
                () = &mut expired, if farewell.is_none() => {
                    // Whoever renewed in time connects anew with the new certificate, at once and without a gap.
                    farewell = Some(Instant::now() + FAREWELL);
                    self.send(&Frame::Goodbye { reason: "the service's certificate has expired".into() }).await
                }
                () = sleep_until(farewell.unwrap_or(heard)), if farewell.is_some() => {
                    return End::Closed("the service's certificate has expired".into());
                }
                () = self.arrived.token.cancelled() => return End::Closed("the connection ended".into()),
            };
            if let Err(e) = sent {
                return End::Closed(e.to_string());
            }
        }
    }

    async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        send(&mut self.control, frame, self.server.opts.timing.dead_after).await
    }

    /// What a service may announce is in its certificate, and nowhere else.
    async fn announced(&mut self, part: Announcement, warm: usize, more: bool) -> io::Result<()> {
        self.pending.extend(part.resources);
        if self.pending.len() > MAX_RESOURCES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "too many resources announced",
            ));
        }
        if more {
            return Ok(());
        }
        let info = &self.arrived.info;
        let mut accepted = BTreeMap::new();
        let mut refused = Vec::new();
        for resource in std::mem::take(&mut self.pending) {
            let allowed = part.kind == info.kind
                && check_label("resource", &resource.name).is_ok()
                && info.names.contains(&resource.name);
            match allowed {
                true => {
                    let offer = Offer {
                        direct: resource.direct,
                        unhealthy: resource.unhealthy,
                    };
                    accepted.insert(resource.name, offer);
                }
                // An answer is bounded, whatever was asked.
                false if refused.len() < 100 => {
                    refused.push(resource.name.chars().take(63).collect())
                }
                false => {}
            }
        }
        if !refused.is_empty() {
            warn!(
                host = info.identity.host_id,
                service = info.identity.service,
                kind = part.kind,
                names = refused.join(", "),
                "an agent announces resources that its certificate does not name: not routed to it"
            );
        }
        debug!(
            host = info.identity.host_id,
            service = info.identity.service,
            resources = accepted.len(),
            "announced"
        );
        self.server
            .registry
            .announce(self.link, &part.version, warm, accepted);
        self.send(&Frame::Welcome {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            refused,
        })
        .await
    }
}
