//! What agents and proxies call: joining, the watch that feeds their caches, heartbeats, and audit events.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use postern_access::{Lock, Role};
use postern_api::status::{reasons, refuse};
use postern_api::v1::agent_service_server::AgentService;
use postern_api::v1::join_service_server::JoinService;
use postern_api::v1::{
    Alive, HeartbeatRequest, HeartbeatResponse, JoinRequest, JoinResponse, LeaveRequest,
    LeaveResponse, Reset, SignDbClientRequest, SignDbClientResponse, SnapshotEnd,
    SubmitEventsRequest, SubmitEventsResponse, WatchEvent, WatchRequest, watch_event,
};
use postern_audit::{Event, names};
use postern_identity::check_label;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tonic::{Code, Request, Response, Status};
use watch_event::Change as What;

use crate::budget::Purpose;
use crate::caller::{self, AgentCaller, anonymous, locked_message};
use crate::error::internal;
use crate::kv::{Change, KvError};
use crate::records::{Agent, Announced, AnnouncedResource, Record, Resource, decode, load};
use crate::state::Shared;

const ALIVE: Duration = Duration::from_secs(10);
const MAX_RESOURCES: usize = 1000;
const MAX_LABELS: usize = 64;
/// Characters of why a resource does not answer.
const MAX_REASON: usize = 200;
const MAX_EVENTS: usize = 1000;
/// Events that an agent tells of: names, and beginnings of names. All others are Auth's, or the proxies'.
const OF_AGENTS: [&str; 8] = [
    names::AGENT_CONFIG,
    names::AGENT_PLUGIN_ROLLBACK,
    "session.",
    "exec",
    "port.forward",
    "plugin.",
    "kube.",
    "db.",
];
const OF_PROXIES: [&str; 1] = ["proxy."];
/// A full batch of a spool fits into a message, with the framing of each event.
const _: () = assert!(
    postern_audit::BATCH <= MAX_EVENTS
        && postern_audit::BATCH_BYTES + 16 * postern_audit::BATCH
            <= postern_api::MAX_MESSAGE * 3 / 4
);

pub struct Join(pub Shared);

#[tonic::async_trait]
impl JoinService for Join {
    async fn join(&self, req: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let from = anonymous(&req, Purpose::Join)?;
        let state = self.0.clone();
        let busy = |e| internal("answer the join", e);
        let permit = state.joining.clone().acquire_owned().await;
        let permit = permit.map_err(|e| busy(e.to_string()))?;
        // A caller that hangs up must not part what is stored from its place in the audit log.
        let joined = tokio::spawn(async move {
            let _permit = permit;
            crate::join::join(&state, req.get_ref(), from).await
        });
        let joined = joined.await.map_err(|e| busy(e.to_string()))?;
        joined.map(Response::new)
    }
}

pub struct Agents(pub Shared);

#[tonic::async_trait]
impl AgentService for Agents {
    type WatchStream = BoxStream<'static, Result<WatchEvent, Status>>;

    async fn watch(
        &self,
        req: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = caller::agent(&self.0, &req, "AgentService/Watch").await?;
        let feed = Feed::new(self.0.clone(), caller, req.get_ref().from_revision);
        Ok(Response::new(
            stream::unfold(feed, |mut feed| async move {
                feed.next().await.map(|e| (e, feed))
            })
            .boxed(),
        ))
    }

    async fn heartbeat(
        &self,
        req: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        let caller = caller::agent(&self.0, &req, "AgentService/Heartbeat").await?;
        heartbeat(&self.0, &caller, req.into_inner())
            .await
            .map(Response::new)
    }

    async fn submit_events(
        &self,
        req: Request<SubmitEventsRequest>,
    ) -> Result<Response<SubmitEventsResponse>, Status> {
        let caller = caller::agent(&self.0, &req, "AgentService/SubmitEvents").await?;
        submit(&self.0, &caller, req.into_inner())
            .await
            .map(Response::new)
    }

    async fn leave(&self, req: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        let caller = caller::agent(&self.0, &req, "AgentService/Leave").await?;
        crate::admin::leave(&self.0, &caller.id).await?;
        Ok(Response::new(LeaveResponse {}))
    }

    async fn sign_db_client(
        &self,
        req: Request<SignDbClientRequest>,
    ) -> Result<Response<SignDbClientResponse>, Status> {
        let caller = caller::agent(&self.0, &req, "AgentService/SignDbClient").await?;
        crate::databases::sign_client(&self.0, &caller, req.into_inner())
            .await
            .map(Response::new)
    }
}

async fn heartbeat(
    state: &Shared,
    caller: &AgentCaller,
    req: HeartbeatRequest,
) -> Result<HeartbeatResponse, Status> {
    let bad = |m: String| refuse(Code::InvalidArgument, reasons::BAD_REQUEST, m);
    let id = &caller.id;
    if req.resources.len() > MAX_RESOURCES {
        return Err(bad(format!(
            "{} resources announced; at most {MAX_RESOURCES}",
            req.resources.len()
        )));
    }
    if [&req.version, &req.hostname, &req.plugin, &req.public_addr]
        .iter()
        .any(|t| t.len() > 255)
    {
        return Err(bad(
            "version, hostname, plugin and public_addr have at most 255 bytes".into(),
        ));
    }
    let record = load::<Agent>(&state.kv, &Agent::key(&id.host_id, &id.service)).await;
    let Some(record) = record.map_err(|e| internal("read the agent's record", e))? else {
        let message = format!(
            "service {:?} of host {} is not known here: join again",
            id.service, id.host_id
        );
        return Err(refuse(Code::PermissionDenied, reasons::NOT_FOUND, message));
    };
    let agent = record.value;
    if req.kind != agent.kind {
        return Err(bad(format!(
            "service {:?} joined as kind {:?}, not {:?}: join again",
            id.service, agent.kind, req.kind
        )));
    }
    let keys = req
        .resources
        .iter()
        .map(|r| Resource::key(&agent.kind, &r.name))
        .collect();
    let held = state
        .kv
        .get_many(keys)
        .await
        .map_err(|e| internal("read the resources", e))?;
    let mut response = HeartbeatResponse::default();
    let mut accepted = BTreeMap::new();
    let mut unreachable = BTreeMap::new();
    for (resource, held) in req.resources.into_iter().zip(held) {
        let held = held
            .as_ref()
            .map(decode::<Resource>)
            .transpose()
            .map_err(|e| internal("read a resource", e))?;
        let ours = held.is_some_and(|h| h.value.held_by(&id.host_id));
        let why = if !agent.names.contains(&resource.name)
            || check_label("resource name", &resource.name).is_err()
        {
            Some("the service's certificate does not name it: join again with it".to_owned())
        } else if !ours {
            Some("it belongs to another host".to_owned())
        } else {
            labels_refused(&resource.labels)
        };
        match why {
            Some(why) => {
                response
                    .reasons
                    .push(format!("resource {:?}: {why}", resource.name));
                response.refused.push(resource.name);
            }
            None => {
                if let Some(mut why) = resource.unreachable {
                    why.reason = why.reason.chars().take(MAX_REASON).collect();
                    unreachable.insert(resource.name.clone(), why);
                }
                let kept = AnnouncedResource {
                    name: resource.name.clone(),
                    labels: resource.labels,
                    direct: resource.direct,
                };
                accepted.insert(resource.name, kept);
            }
        }
    }
    let announced = Announced {
        host_id: id.host_id.clone(),
        service: id.service.clone(),
        kind: agent.kind,
        hostname: req.hostname,
        version: req.version,
        plugin: req.plugin,
        public_addr: req.public_addr,
        resources: accepted.into_values().collect(),
    };
    let rtt = if req.tunnel_rtt_ms.is_finite() {
        req.tunnel_rtt_ms.max(0.0)
    } else {
        0.0
    };
    state
        .inventory
        .heard(id, announced, rtt, unreachable)
        .await
        .map_err(|e| internal("store the announcement", e))?;
    Ok(response)
}

fn labels_refused(labels: &BTreeMap<String, String>) -> Option<String> {
    if labels.len() > MAX_LABELS {
        return Some(format!(
            "it has {} labels; at most {MAX_LABELS}",
            labels.len()
        ));
    }
    let long = labels
        .iter()
        .find(|(k, v)| k.is_empty() || k.len() > 128 || v.len() > 256);
    long.map(|(k, _)| {
        format!(
            "its label {:.40?} is empty or longer than 128 bytes (value: 256)",
            k
        )
    })
}

async fn submit(
    state: &Shared,
    caller: &AgentCaller,
    req: SubmitEventsRequest,
) -> Result<SubmitEventsResponse, Status> {
    if req.events_json.len() > MAX_EVENTS {
        let message = format!(
            "{} events at once; at most {MAX_EVENTS}",
            req.events_json.len()
        );
        return Err(refuse(Code::InvalidArgument, reasons::BAD_REQUEST, message));
    }
    let mut events = Vec::with_capacity(req.events_json.len());
    for json in &req.events_json {
        let event = accept(json, caller).unwrap_or_else(|why| {
            let who = ("event", &caller.id.host_id, &caller.id.service);
            if state.refusal_limit.take(who).is_ok() {
                tracing::warn!(
                    host = caller.id.host_id,
                    service = caller.id.service,
                    "audit event refused, {} is stored in its place: {why}",
                    names::EVENT_REFUSED
                );
            }
            stand_in(json, caller, &why)
        });
        // Whatever the event says: it is about its sender.
        let event = event
            .with("cluster", state.cluster())
            .with("host_id", &caller.id.host_id)
            .with("service", &caller.id.service);
        events.push(event);
    }
    let stored_uids = events.iter().map(|e| e.uid.clone()).collect();
    state
        .audit
        .append(events)
        .await
        .map_err(|e| internal("store the audit events", e))?;
    Ok(SubmitEventsResponse { stored_uids })
}

fn accept(json: &str, caller: &AgentCaller) -> Result<Event, String> {
    let event: Event = serde_json::from_str(json).map_err(|e| e.to_string())?;
    uuid::Uuid::parse_str(&event.uid).map_err(|e| format!("uid: {e}"))?;
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    if event.event.is_empty() || event.event.len() > 64 || !event.event.bytes().all(plain) {
        return Err("its name is not 1 to 64 of a-z 0-9 . _ -".into());
    }
    if event.time.len() > 64 {
        return Err("its time is longer than 64 bytes".into());
    }
    let (who, its): (_, &[&str]) = if caller.is_proxy() {
        ("proxies", &OF_PROXIES)
    } else {
        ("agents", &OF_AGENTS)
    };
    let covers = |own: &&str| {
        event
            .event
            .strip_prefix(*own)
            .is_some_and(|rest| own.ends_with('.') != rest.is_empty())
    };
    if !its.iter().any(covers) {
        return Err(format!("{who} have no event {}", event.event));
    }
    Ok(event)
}

/// For an event that is none, or that its sender may not send. It is stored all the same: as what was said, so that
/// nothing a service recorded is lost for its form. The same again gets the same uid.
fn stand_in(json: &str, caller: &AgentCaller, why: &str) -> Event {
    use aws_lc_rs::digest::{Context, SHA256};
    let mut digest = Context::new(&SHA256);
    for part in [&caller.id.host_id, &caller.id.service, json] {
        digest.update(&(part.len() as u64).to_be_bytes());
        digest.update(part.as_bytes());
    }
    let digest = digest.finish();
    let said: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
    let text = |key: &str| said.get(key).and_then(|v| v.as_str());
    let mut event = Event::new(names::EVENT_REFUSED)
        .with("session_id", text("session_id"))
        .with("claimed", text("event"))
        .with("reason", why)
        .with("bytes", json.len())
        .with("text", json);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.as_ref()[..16]);
    event.uid = match text("uid").filter(|uid| uuid::Uuid::parse_str(uid).is_ok()) {
        Some(uid) => uid.to_owned(),
        None => uuid::Builder::from_random_bytes(bytes)
            .into_uuid()
            .to_string(),
    };
    event
}

/// The watch of one agent or proxy: a snapshot, then every change. It ends when the caller's certificate expires
/// or the caller is locked.
struct Feed {
    state: Shared,
    caller: AgentCaller,
    /// `None`: list again first.
    changes: Option<BoxStream<'static, Result<Change, KvError>>>,
    ready: VecDeque<WatchEvent>,
    revision: u64,
    alive: Interval,
    expires: Instant,
    last: Option<Status>,
    ended: bool,
}

impl Feed {
    fn new(state: Shared, caller: AgentCaller, from: u64) -> Self {
        let left = caller
            .not_after
            .duration_since(SystemTime::now())
            .unwrap_or_default();
        let mut alive = tokio::time::interval(ALIVE);
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut feed = Feed {
            state,
            caller,
            changes: None,
            ready: VecDeque::new(),
            revision: from,
            alive,
            expires: Instant::now() + left,
            last: None,
            ended: false,
        };
        if from > 0 {
            feed.changes = Some(feed.state.kv.watch(feed.prefixes(), from));
        }
        feed
    }

    /// Proxies route and cut; they decide about no session and need no roles.
    fn prefixes(&self) -> Vec<String> {
        let mut prefixes = vec![Lock::PREFIX.to_owned()];
        if !self.caller.is_proxy() {
            prefixes.push(Role::PREFIX.to_owned());
        }
        prefixes
    }

    async fn next(&mut self) -> Option<Result<WatchEvent, Status>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if let Some(status) = self.last.take() {
                self.ended = true;
                return Some(Err(status));
            }
            if self.ended {
                return None;
            }
            let Some(changes) = &mut self.changes else {
                if let Err(e) = self.list().await {
                    self.last = Some(internal("list roles and locks", e));
                }
                continue;
            };
            tokio::select! {
                () = self.state.shutdown.cancelled() => {
                    self.last = Some(refuse(Code::Unavailable, reasons::BUSY, "the Auth Service is stopping; watch again"));
                }
                () = tokio::time::sleep_until(self.expires) => {
                    let message = "the certificate of this connection has expired; connect again with the renewed one";
                    self.last = Some(refuse(Code::Unauthenticated, reasons::BAD_CERTIFICATE, message));
                }
                change = changes.next() => match change {
                    Some(Ok(change)) => self.changed(change),
                    Some(Err(KvError::Compacted { .. })) => self.changes = None,
                    Some(Err(e)) => self.last = Some(internal("watch roles and locks", e)),
                    None => self.ended = true,
                },
                _ = self.alive.tick() => self.push(What::Alive(Alive {})),
            }
        }
    }

    async fn list(&mut self) -> Result<(), KvError> {
        let snapshot = self.state.kv.range(self.prefixes()).await?;
        self.revision = snapshot.revision;
        self.push(What::Reset(Reset {}));
        self.push(What::TrustJson(self.state.authority.trust_json()));
        for entry in snapshot.entries {
            self.changed(Change {
                revision: snapshot.revision,
                key: entry.key,
                value: Some(entry.value),
            });
        }
        self.push(What::SnapshotEnd(SnapshotEnd {}));
        self.changes = Some(self.state.kv.watch(self.prefixes(), snapshot.revision));
        Ok(())
    }

    fn changed(&mut self, change: Change) {
        self.revision = change.revision;
        let json = change
            .value
            .map(String::from_utf8)
            .transpose()
            .unwrap_or_else(|e| {
                tracing::error!(key = change.key, "not text: {e}");
                None
            });
        if let Some(name) = change.key.strip_prefix(Role::PREFIX) {
            self.push(json.map_or_else(|| What::RoleRemoved(name.to_owned()), What::RoleJson));
        } else if let Some(target) = change.key.strip_prefix(Lock::PREFIX) {
            let lock = json
                .as_deref()
                .and_then(|j| serde_json::from_str::<Lock>(j).ok());
            if let Some(lock) =
                lock.filter(|_| self.caller.lock_targets().iter().any(|t| t == target))
            {
                self.last = Some(refuse(
                    Code::PermissionDenied,
                    reasons::LOCKED,
                    locked_message(&lock),
                ));
            }
            self.push(json.map_or_else(|| What::LockRemoved(target.to_owned()), What::LockJson));
        }
    }

    fn push(&mut self, what: What) {
        self.ready.push_back(WatchEvent {
            revision: self.revision,
            change: Some(what),
        });
    }
}
