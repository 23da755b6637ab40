//! Which agents serve what, and their idle data connections (the proxy's end).
//!
//! One short lock over plain maps: every operation is a few map accesses, none waits, and none holds the lock
//! over an await. Connections belong to their own tasks; here are only their idle streams and a token to cut them.

use crate::cut::Heard;
use crate::error::OpenError;
use crate::stream::TunnelStream;
use crate::wire::{Frame, MAX_HEADER, StreamHeader, encode};
use postern_identity::{AgentIdentity, ResourceId};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

/// How long a client waits for a data connection.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it waits at one agent where others serve the resource, too.
const TRY_NEXT: Duration = Duration::from_millis(1500);
/// Idle connections beyond the warm ones are cut after this time without use.
const SURPLUS_AFTER: Duration = Duration::from_secs(60);
/// An idle connection that was silent for so long is not trusted: agents ping every 15 s.
const STALE_AFTER: Duration = Duration::from_secs(45);
/// Control connections of one service: one, and a few that are being replaced.
const MAX_LINKS: usize = 8;
/// Names of resources that were here once, kept to tell "gone" from "never heard of".
const REMEMBERED: usize = 10_000;

/// What is known of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteInfo {
    /// Whether anonymous ClientHellos may be passed through; all agents that serve it must agree.
    pub direct: bool,
    /// Agents that serve it now.
    pub agents: usize,
}

/// One tunnel, as an operator sees it.
#[derive(Debug, Clone)]
pub struct AgentView {
    pub identity: AgentIdentity,
    pub kind: String,
    pub resources: Vec<String>,
    /// Of posternd.
    pub version: String,
    pub peer: SocketAddr,
    pub since: SystemTime,
    /// Round trip through the control connection, once measured.
    pub rtt: Option<Duration>,
    pub idle: usize,
    pub live: usize,
    pub draining: bool,
}

/// The tunnels of one proxy. Cheap to clone.
#[derive(Clone, Default)]
pub struct Registry {
    state: Arc<Mutex<State>>,
}

pub(crate) type LinkId = u64;

#[derive(Default)]
struct State {
    next: u64,
    links: HashMap<LinkId, Link>,
    /// The link that serves a service now; an older one of the same service only finishes its streams.
    current: HashMap<AgentIdentity, LinkId>,
    routes: HashMap<ResourceId, Route>,
    remembered: HashMap<ResourceId, ()>,
}

#[derive(Default)]
struct Route {
    links: Vec<(LinkId, Offer)>,
    turn: usize,
}

/// How a service offers one of its resources.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Offer {
    pub direct: bool,
    /// The agent says that the resource's own address does not answer.
    pub unhealthy: bool,
}

struct Link {
    identity: AgentIdentity,
    instance: String,
    kind: String,
    version: String,
    peer: SocketAddr,
    since: SystemTime,
    heard: Instant,
    /// Beyond this silence other agents are preferred.
    suspect_after: Duration,
    rtt: Option<Duration>,
    warm: usize,
    announced: BTreeMap<String, Offer>,
    idle: VecDeque<Idle>,
    waiting: VecDeque<oneshot::Sender<Idle>>,
    data: HashMap<u64, CancellationToken>,
    control: mpsc::Sender<Frame>,
    cut: CancellationToken,
    draining: bool,
    superseded: bool,
}

/// A parked stream.
pub(crate) struct Idle {
    pub connection: u64,
    pub stream: TunnelStream,
    pub heard: Heard,
    pub since: Instant,
}

/// What a new control connection brings.
pub(crate) struct NewLink {
    pub identity: AgentIdentity,
    pub instance: String,
    pub kind: String,
    pub peer: SocketAddr,
    pub control: mpsc::Sender<Frame>,
    pub cut: CancellationToken,
    pub suspect_after: Duration,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The maps are consistent between any two statements that can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a stream to an agent that serves `id`, after writing `header` ahead of it. Waits up to 5 s for a
    /// data connection; agents take turns, silent ones and those that don't reach the resource come last, and where
    /// one fails the next is asked.
    pub async fn open(
        &self,
        id: &ResourceId,
        header: StreamHeader,
    ) -> Result<TunnelStream, OpenError> {
        let header = encode(&header, MAX_HEADER).map_err(|e| OpenError::Header(e.to_string()))?;
        let started = Instant::now();
        let result = self.open_within(id, &header, started + OPEN_TIMEOUT).await;
        let outcome = result.as_ref().map_or_else(OpenError::code, |_| "ok");
        metrics::counter!("postern_tunnel_opens_total", "outcome" => outcome).increment(1);
        metrics::histogram!("postern_tunnel_open_seconds").record(started.elapsed().as_secs_f64());
        result
    }

    async fn open_within(
        &self,
        id: &ResourceId,
        header: &[u8],
        deadline: Instant,
    ) -> Result<TunnelStream, OpenError> {
        let busy = || OpenError::Busy {
            id: id.clone(),
            after: OPEN_TIMEOUT,
        };
        loop {
            let candidates = self.lock().candidates(id);
            if candidates.is_empty() {
                return Err(match self.lock().remembered.contains_key(id) {
                    true => OpenError::NoAgent(id.clone()),
                    false => OpenError::Unknown(id.clone()),
                });
            }
            let alone = candidates.len() == 1;
            for link in candidates {
                let patience = if alone {
                    deadline
                } else {
                    deadline.min(Instant::now() + TRY_NEXT)
                };
                let Some(mut stream) = self.take(link, patience).await else {
                    continue;
                };
                let write = async {
                    stream.write_all(header).await?;
                    stream.flush().await
                };
                match timeout(TRY_NEXT, write).await {
                    Ok(Ok(())) => return Ok(stream),
                    failed => debug!(
                        ?failed,
                        "a parked data connection was dead; trying the next"
                    ),
                }
            }
            if Instant::now() >= deadline {
                return Err(busy());
            }
            // All links vanished or failed within the time: look again, but not in a tight loop.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Opens a stream to each service whose cancel keys begin with `route` (nearly always one), after writing `header` ahead of
    /// it, with the kind of the service.
    pub async fn open_cancel(&self, route: u32, header: StreamHeader) -> Vec<TunnelStream> {
        let of_route: Vec<(LinkId, String)> = {
            let state = self.lock();
            let mine = state.current.iter();
            let mine = mine.filter(|(identity, _)| identity.cancel_route() == route);
            mine.filter_map(|(_, id)| Some((*id, state.links.get(id)?.kind.clone())))
                .collect()
        };
        let mut streams = Vec::new();
        for (link, kind) in of_route {
            let header = StreamHeader {
                kind,
                ..header.clone()
            };
            let Ok(header) = encode(&header, MAX_HEADER) else {
                continue;
            };
            let opened = async {
                let mut stream = self.take(link, Instant::now() + OPEN_TIMEOUT).await?;
                stream.write_all(&header).await.ok()?;
                Some(stream)
            };
            if let Ok(Some(stream)) = timeout(OPEN_TIMEOUT, opened).await {
                streams.push(stream);
            }
        }
        streams
    }

    /// An idle stream of this link, at once or as soon as the agent has dialled one.
    async fn take(&self, link: LinkId, until: Instant) -> Option<TunnelStream> {
        let waiting = {
            let mut state = self.lock();
            let link = state.links.get_mut(&link)?;
            loop {
                match link.idle.pop_back() {
                    Some(idle) if idle.heard.ago() > STALE_AFTER => link.cut_data(idle.connection),
                    Some(idle) => return Some(idle.stream),
                    None => break,
                }
            }
            let (tx, rx) = oneshot::channel();
            link.waiting.retain(|w| !w.is_closed());
            link.waiting.push_back(tx);
            // Full only if the agent does not read; then it is about to be found dead.
            let _ = link.control.try_send(Frame::WantData {
                n: link.waiting.len(),
            });
            rx
        };
        let idle = tokio::time::timeout_at(until, waiting).await.ok()?.ok()?;
        Some(idle.stream)
    }

    /// What is known of a resource; `None` if no connected agent serves it.
    pub fn lookup(&self, id: &ResourceId) -> Option<RouteInfo> {
        let state = self.lock();
        let route = state.routes.get(id)?;
        (!route.links.is_empty()).then(|| RouteInfo {
            direct: route.links.iter().all(|(_, offer)| offer.direct),
            agents: route.links.len(),
        })
    }

    /// Whether an agent that serves `id` was connected at some time, though none may be now.
    pub fn is_known(&self, id: &ResourceId) -> bool {
        self.lock().remembered.contains_key(id)
    }

    /// Cuts the tunnels of a host, or of one of its services, with every stream in them.
    pub fn disconnect(&self, host_id: &str, service: Option<&str>) {
        let mut state = self.lock();
        let hit: Vec<_> = state
            .links
            .iter()
            .filter(|(_, l)| {
                l.identity.host_id == host_id && service.is_none_or(|s| s == l.identity.service)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in hit {
            if let Some(link) = state.links.get(&id) {
                info!(
                    host = host_id,
                    service = link.identity.service,
                    "cutting the tunnel"
                );
                link.cut.cancel();
                link.data.values().for_each(CancellationToken::cancel);
            }
            state.unroute(id);
        }
    }

    /// Every tunnel that has announced what it serves, one per service.
    pub fn agents(&self) -> Vec<AgentView> {
        let state = self.lock();
        let mut views: Vec<_> = state
            .current
            .values()
            .filter_map(|id| state.links.get(id))
            .map(|l| AgentView {
                identity: l.identity.clone(),
                kind: l.kind.clone(),
                resources: l.announced.keys().cloned().collect(),
                version: l.version.clone(),
                peer: l.peer,
                since: l.since,
                rtt: l.rtt,
                idle: l.idle.len(),
                live: l.data.len().saturating_sub(l.idle.len()),
                draining: l.draining,
            })
            .collect();
        views.sort_by_key(|v| {
            (
                v.identity.host_id.clone(),
                v.identity.service.clone(),
                v.since,
            )
        });
        views
    }

    // ---- for the connections' tasks

    /// `None`: the service has too many control connections.
    pub(crate) fn add_link(&self, new: NewLink) -> Option<LinkId> {
        let mut state = self.lock();
        let of_service = |l: &&Link| l.identity == new.identity && !l.control.is_closed();
        if state.links.values().filter(of_service).count() >= MAX_LINKS {
            return None;
        }
        state.next += 1;
        let id = state.next;
        let link = Link {
            identity: new.identity,
            instance: new.instance,
            kind: new.kind,
            version: String::new(),
            peer: new.peer,
            since: SystemTime::now(),
            heard: Instant::now(),
            suspect_after: new.suspect_after,
            rtt: None,
            warm: 1,
            announced: BTreeMap::new(),
            idle: VecDeque::new(),
            waiting: VecDeque::new(),
            data: HashMap::new(),
            control: new.control,
            cut: new.cut,
            draining: false,
            superseded: false,
        };
        state.links.insert(id, link);
        metrics::gauge!("postern_tunnels").increment(1);
        Some(id)
    }

    /// Replaces what a link offers.
    pub(crate) fn announce(
        &self,
        id: LinkId,
        version: &str,
        warm: usize,
        resources: BTreeMap<String, Offer>,
    ) {
        let mut state = self.lock();
        state.unroute(id);
        let Some(link) = state.links.get_mut(&id) else {
            return;
        };
        link.version = version.to_owned();
        link.warm = warm.clamp(1, 64);
        link.announced = resources.clone();
        if link.superseded || link.draining || link.cut.is_cancelled() {
            return;
        }
        let (kind, identity) = (link.kind.clone(), link.identity.clone());
        for (name, offer) in resources {
            let resource = ResourceId {
                kind: kind.clone(),
                name,
            };
            if state.remembered.len() >= REMEMBERED {
                state.remembered.clear();
            }
            state.remembered.insert(resource.clone(), ());
            state
                .routes
                .entry(resource)
                .or_default()
                .links
                .push((id, offer));
        }
        // Only now, so that there is no gap between two connections of one service.
        match state.current.insert(identity, id) {
            Some(old) if old != id => {
                state.unroute(old);
                if let Some(old) = state.links.get_mut(&old) {
                    old.superseded = true;
                    old.drop_idle();
                    let _ = old.control.try_send(Frame::Superseded);
                }
            }
            _ => {}
        }
    }

    pub(crate) fn heard(&self, id: LinkId, rtt: Option<Duration>) {
        if let Some(link) = self.lock().links.get_mut(&id) {
            link.heard = Instant::now();
            link.rtt = rtt.or(link.rtt);
            link.trim();
        }
    }

    /// No new streams to this link.
    pub(crate) fn drain_link(&self, id: LinkId) {
        let mut state = self.lock();
        state.unroute(id);
        if let Some(link) = state.links.get_mut(&id) {
            link.draining = true;
            link.drop_idle();
        }
    }

    /// The control connection ended. `dead`: by silence, so the data connections are dead, too.
    pub(crate) fn remove_link(&self, id: LinkId, dead: bool) {
        let mut state = self.lock();
        state.unroute(id);
        let Some(mut link) = state.links.remove(&id) else {
            return;
        };
        metrics::gauge!("postern_tunnels").decrement(1);
        if state.current.get(&link.identity) == Some(&id) {
            state.current.remove(&link.identity);
        }
        link.drop_idle();
        if dead {
            // What is left of earlier connections of this service went the same way.
            let earlier = state
                .links
                .values()
                .filter(|l| l.superseded && l.identity == link.identity);
            for l in earlier.chain([&link]) {
                l.data.values().for_each(CancellationToken::cancel);
            }
        } else if !link.data.is_empty() {
            // Live streams go on without control; keep the tokens, so that a lock still reaches them.
            link.superseded = true;
            state.links.insert(id, link);
        }
    }

    /// A data connection of the control connection `instance`. `None`: there is none (any more), or it has too many.
    pub(crate) fn add_data(
        &self,
        identity: &AgentIdentity,
        instance: &str,
        max: usize,
        cut: CancellationToken,
    ) -> Option<(LinkId, u64)> {
        let mut state = self.lock();
        state.next += 1;
        let connection = state.next;
        let of_service = state.links.values().filter(|l| l.identity == *identity);
        if of_service.map(|l| l.data.len()).sum::<usize>() >= max {
            return None;
        }
        let (id, link) = state
            .links
            .iter_mut()
            .find(|(_, l)| l.identity == *identity && l.instance == instance)?;
        if link.superseded || link.draining || link.cut.is_cancelled() {
            return None;
        }
        link.data.insert(connection, cut);
        Some((*id, connection))
    }

    pub(crate) fn remove_data(&self, id: LinkId, connection: u64) {
        let mut state = self.lock();
        let Some(link) = state.links.get_mut(&id) else {
            return;
        };
        link.data.remove(&connection);
        link.idle.retain(|i| i.connection != connection);
        if link.data.is_empty() && link.superseded && link.control.is_closed() {
            state.links.remove(&id);
        }
    }

    /// Offers an idle stream to who waits, or to the pool. `false`: the link takes no more streams.
    pub(crate) fn park(&self, id: LinkId, idle: Idle) -> bool {
        let mut state = self.lock();
        let Some(link) = state.links.get_mut(&id) else {
            return false;
        };
        if link.superseded || link.draining {
            return false;
        }
        let mut idle = idle;
        while let Some(waiting) = link.waiting.pop_front() {
            match waiting.send(idle) {
                Ok(()) => {
                    link.waiting.retain(|w| !w.is_closed());
                    if !link.waiting.is_empty() {
                        let n = link.waiting.len();
                        let _ = link.control.try_send(Frame::WantData { n });
                    }
                    return true;
                }
                Err(back) => idle = back,
            }
        }
        link.idle.push_back(idle);
        true
    }

    /// Whether streams may still come through this link.
    pub(crate) fn takes_streams(&self, id: LinkId) -> bool {
        let state = self.lock();
        state
            .links
            .get(&id)
            .is_some_and(|l| !l.superseded && !l.draining)
    }

    /// Links to say goodbye to.
    pub(crate) fn controls(&self) -> Vec<mpsc::Sender<Frame>> {
        self.lock()
            .links
            .values()
            .map(|l| l.control.clone())
            .collect()
    }

    pub(crate) fn streams(&self) -> usize {
        let state = self.lock();
        state
            .links
            .values()
            .map(|l| l.data.len() - l.idle.len().min(l.data.len()))
            .sum()
    }
}

impl State {
    /// Links that announce `id`: first those that reach it and were heard of lately. The best take turns.
    fn candidates(&mut self, id: &ResourceId) -> Vec<LinkId> {
        let Some(route) = self.routes.get_mut(id) else {
            return Vec::new();
        };
        route.turn = route.turn.wrapping_add(1);
        let suspect = |id: &LinkId| {
            self.links
                .get(id)
                .is_none_or(|l| l.heard.elapsed() > l.suspect_after)
        };
        // A silent agent may be slow and still serve; one that does not reach the resource surely fails now. Where no
        // other is left it is asked all the same: its probe may be wrong, or late.
        let ranked = route.links.iter();
        let mut ranked: Vec<_> = ranked
            .map(|(id, offer)| ((offer.unhealthy, suspect(id)), *id))
            .collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        let best = ranked.first().map(|(rank, _)| *rank);
        let best = ranked.partition_point(|(rank, _)| Some(*rank) <= best);
        ranked[..best].rotate_left(route.turn % best.max(1));
        ranked.into_iter().map(|(_, id)| id).collect()
    }

    fn unroute(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let kind = link.kind.clone();
        for name in std::mem::take(&mut link.announced).into_keys() {
            let resource = ResourceId {
                kind: kind.clone(),
                name,
            };
            if let Some(route) = self.routes.get_mut(&resource) {
                route.links.retain(|(l, _)| *l != id);
                if route.links.is_empty() {
                    self.routes.remove(&resource);
                }
            }
        }
    }
}

impl Link {
    fn cut_data(&self, connection: u64) {
        if let Some(token) = self.data.get(&connection) {
            token.cancel();
        }
    }

    fn drop_idle(&mut self) {
        // Streams that wait here go elsewhere.
        self.waiting.clear();
        for idle in std::mem::take(&mut self.idle) {
            self.cut_data(idle.connection);
        }
    }

    /// Cuts idle connections that a burst has left.
    fn trim(&mut self) {
        while self.idle.len() > self.warm
            && self
                .idle
                .front()
                .is_some_and(|i| i.since.elapsed() > SURPLUS_AFTER)
        {
            if let Some(idle) = self.idle.pop_front() {
                self.cut_data(idle.connection);
            }
        }
    }
}

#[cfg(test)]
mod tests;
