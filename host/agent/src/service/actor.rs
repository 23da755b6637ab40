//! The owner of one service: brings what is there to what shall be. Joining, tunnel and sessions go on side by side,
//! and a new [`Desired`] may come at any moment; every part that still fits is kept, the others are replaced, and what
//! is replaced goes on until the new one stands.

mod drain;
mod rollback;
mod show;

use super::beat::Beat;
use super::front::Front;
use super::health::Probes;
use super::leave;
use super::member::{Home, Member};
use super::spec::{Common, Spec};
use super::trial::Trial;
use super::{Shared, of_service};
use crate::AgentError;
use crate::decide::Decider;
use crate::session::{Served, Sessions};
use crate::status::{ServiceState, ServiceStatus};
use postern_audit::Event;
use postern_membership::{Cache, Credentials, Holding};
use postern_tunnel::TunnelState;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// At an orderly end, for Auth to take the last events.
const LAST_EVENTS: Duration = Duration::from_secs(2);
/// How often the number of sessions in the status is made current.
const COUNT: Duration = Duration::from_secs(1);

/// What a service shall be.
#[derive(Clone)]
pub enum Desired {
    Run(Arc<Spec>),
    /// Removed or disabled: sessions drain, the cluster is told, the keys rest for a while and are deleted.
    Gone(Arc<Common>),
    /// Another process takes over: serves on, but asks Auth for nothing and writes nothing but what its sessions do.
    HandedOver(Arc<Spec>),
    /// The process ends: sessions drain, everything else stays for the next start.
    Stop,
    /// It can't wait for them any longer.
    Cut,
}

/// What others see of the service.
pub struct Outlet {
    pub status: watch::Sender<ServiceStatus>,
    pub served: watch::Sender<Option<Arc<Spec>>>,
}

impl Outlet {
    pub fn state(&self, state: ServiceState, reason: Option<String>) {
        self.status.send_if_modified(|s| {
            let differs = s.state != state || s.reason != reason;
            s.state = state;
            s.reason = reason;
            differs
        });
    }
}

/// Runs until the service is gone or stopped.
pub async fn run(
    name: &str,
    shared: Arc<Shared>,
    mut desired: watch::Receiver<Desired>,
    notes: mpsc::Receiver<Event>,
    outlet: &Outlet,
) -> Result<(), AgentError> {
    let home = Home::open(&shared.data_dir, name).await?;
    let mut actor = Actor {
        name,
        shared,
        home,
        notes,
        outlet,
        sessions: None,
        trial: None,
        retiring: JoinSet::new(),
    };
    loop {
        let now = desired.borrow_and_update().clone();
        match now {
            Desired::Run(spec) => actor.serve(spec, &mut desired).await?,
            // It was not serving: nothing is left to be done here.
            Desired::HandedOver(_) => return Ok(()),
            Desired::Gone(common) => {
                tokio::select! {
                    () = leave::leave(name, &actor.home, &actor.shared, &common, outlet) => return Ok(()),
                    // Put back in time, or the process ends; what was begun is taken up again.
                    changed = desired.changed() => if changed.is_err() { return Ok(()) },
                }
                if matches!(*desired.borrow(), Desired::Run(_)) {
                    leave::returned(&actor.home);
                }
            }
            Desired::Stop | Desired::Cut => {
                // What the last sessions ended with shall not wait on disk for the next start.
                let _ = tokio::time::timeout(LAST_EVENTS, actor.home.audit.drained()).await;
                return Ok(());
            }
        }
    }
}

struct Actor<'a> {
    name: &'a str,
    shared: Arc<Shared>,
    home: Home,
    notes: mpsc::Receiver<Event>,
    outlet: &'a Outlet,
    /// From the first time it serves, through changes and drains.
    sessions: Option<Sessions>,
    trial: Option<(Trial, Arc<Spec>)>,
    /// Tunnels that finish what they carry.
    retiring: JoinSet<()>,
}

/// The parts of a service that serves.
struct Parts {
    spec: Arc<Spec>,
    sessions: Sessions,
    /// `None`: another process has taken over.
    member: Option<Member>,
    /// The credentials that front and channel use.
    seen: Option<Arc<Credentials>>,
    beat: Option<Beat>,
    probes: Probes,
    /// Carries new streams.
    front: Option<Front>,
    /// Replaces it once it is up.
    next: Option<Front>,
    /// Roles have been heard at least once: before that who came in would be refused for no reason.
    roles_known: bool,
    /// The certificate names more than was announced: that is said once a control connection made after this
    /// authenticates by it.
    announce_after: Option<Instant>,
}

impl Actor<'_> {
    /// Serves, and follows changes, until the service shall no longer run and has drained (or shall run again).
    async fn serve(
        &mut self,
        spec: Arc<Spec>,
        desired: &mut watch::Receiver<Desired>,
    ) -> Result<(), AgentError> {
        let mut parts = self.begin(spec);
        let mut held = self.home.held();
        held.mark_changed();
        let mut cache = self.shared.cache.clone();
        let mut count = tokio::time::interval(COUNT);
        let mut notes_open = true;
        loop {
            // Seen before it is acted on: what changes meanwhile is seen by the select.
            let seen = [parts.front.as_ref(), parts.next.as_ref()].map(|f| f.map(Front::state));
            if self.advance(&mut parts) {
                continue;
            }
            self.show(&parts);
            let [front, next] =
                [parts.front.as_ref(), parts.next.as_ref()].map(|f| f.map(Front::watch));
            let [front_seen, next_seen] = seen;
            tokio::select! {
                changed = desired.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let now = desired.borrow_and_update().clone();
                    match now {
                        Desired::Run(spec) => self.adopt(&mut parts, spec).await,
                        Desired::HandedOver(_) => {
                            Member::stop(&mut parts.member).await;
                            parts.beat = None;
                            parts.probes.stop();
                            parts.front.iter().for_each(Front::stay);
                            parts.next = None;
                        }
                        Desired::Gone(_) | Desired::Stop | Desired::Cut => break,
                    }
                }
                _ = held.changed() => self.renewed(&mut parts)?,
                () = roles_heard(&mut cache), if !parts.roles_known => parts.roles_known = true,
                () = moved(front, front_seen) => {}
                () = moved(next, next_seen) => {}
                () = parts.sessions.ended() => self.judge(&mut parts),
                () = parts.probes.changed() => self.health_changed(&parts),
                note = self.notes.recv(), if notes_open => match note {
                    Some(event) => self.home.audit.emit_later(event),
                    None => notes_open = false,
                },
                Some(_) = self.retiring.join_next() => {}
                _ = count.tick() => {}
            }
        }
        self.drain(parts, desired).await;
        Ok(())
    }

    fn begin(&mut self, spec: Arc<Spec>) -> Parts {
        let sessions = match self.sessions.take() {
            // Some are open still, of before it was removed and put back.
            Some(sessions) => {
                sessions.serve(self.served(&spec));
                sessions
            }
            None => Sessions::new(self.served(&spec)),
        };
        self.sessions = Some(sessions.clone());
        let us = (self.shared.cluster.as_str(), &self.shared.host_key);
        let left = leave::has_left(&self.home);
        if left {
            self.home.holding.send_replace(Holding::default());
        }
        Parts {
            member: Some(Member::start(&self.home, &spec, us, left)),
            sessions,
            probes: Probes::start(&spec),
            spec,
            seen: None,
            beat: None,
            front: None,
            next: None,
            roles_known: self.shared.cache.borrow().heard_unix > 0,
            announce_after: None,
        }
    }

    fn served(&self, spec: &Spec) -> Served {
        Served {
            decider: Decider {
                cluster: self.shared.cluster.clone(),
                host_id: self.shared.host_key.host_id(),
                service: spec.name.clone(),
                lock_mode: spec.common.lock_mode,
                cache: self.shared.cache.clone(),
            },
            plugin: spec.plugin.clone(),
            settings: spec.settings.clone(),
            offered: spec.offered.clone(),
            held: self.home.held(),
            audit: self.home.audit.clone(),
            auth: self.home.auth.subscribe(),
            options: spec.service.clone(),
            own_sockets: spec.common.own_sockets.clone(),
        }
    }

    /// Dials what is missing, and lets a tunnel that came up replace the one before. True: a tunnel came or went.
    fn advance(&mut self, parts: &mut Parts) -> bool {
        let fits = |f: &Option<Front>| f.as_ref().is_some_and(|f| f.fits(&parts.spec));
        if let (Some(front), Some(after)) = (&parts.front, parts.announce_after)
            && let TunnelState::Up { since, .. } = front.state()
            && since > after
        {
            parts.announce_after = None;
            self.announce(parts);
        }
        if fits(&parts.front) {
            return parts.next.take().is_some();
        }
        if !fits(&parts.next) {
            let held = self.home.credentials();
            let usable = held.filter(|held| held.kind == parts.spec.kind && parts.roles_known);
            let Some(held) = usable else {
                return parts.next.take().is_some();
            };
            let (cluster, host_key) = (&self.shared.cluster, &self.shared.host_key);
            let health = parts.probes.report();
            let sessions = &parts.sessions;
            let dialled = Front::dial(&parts.spec, &held, cluster, host_key, sessions, &health);
            parts.next = Some(dialled);
            if parts.front.is_some() {
                return true;
            }
        }
        if parts.front.is_some() && !parts.next.as_ref().is_some_and(Front::is_up) {
            return false;
        }
        let Some(new) = parts.next.take() else {
            return false;
        };
        let elsewhere = |f: &Front| f.proxy_addr() != new.proxy_addr();
        let moved = parts.front.as_ref().is_some_and(elsewhere);
        if let Some(old) = parts.front.replace(new) {
            let timeout = parts.spec.common.drain_timeout;
            self.retiring.spawn(old.retire(timeout));
        }
        if moved && let Err(e) = self.reach_auth(parts) {
            tracing::error!("{e}");
        }
        true
    }

    fn announce(&self, parts: &Parts) {
        let Some(held) = self.home.credentials() else {
            return;
        };
        let health = parts.probes.report();
        for front in parts.front.iter().chain(&parts.next) {
            if front.kind() == parts.spec.kind {
                front.announce(parts.spec.announcement(&held.names, &health));
            }
        }
    }

    /// A resource is reached no longer, or again.
    fn health_changed(&self, parts: &Parts) {
        // Otherwise it is said with the announcement that waits for a connection with the new certificate.
        if parts.announce_after.is_none() {
            self.announce(parts);
        }
        self.tell_auth(parts);
    }

    /// The configuration has changed. Open sessions keep what they began with.
    async fn adopt(&mut self, parts: &mut Parts, spec: Arc<Spec>) {
        let old = std::mem::replace(&mut parts.spec, spec);
        let spec = &parts.spec;
        if spec.plugin.digest() != old.plugin.digest() {
            // Back to the one before, or where that was on trial and has not shown that it works, to the one it replaced.
            let good = match self.trial.take() {
                Some((trial, good)) if !trial.looks_good() => good,
                _ => old,
            };
            let good = Some(good).filter(|good| good.plugin.digest() != spec.plugin.digest());
            self.trial = good.map(|good| {
                let rule = spec.service.rollback.clone();
                let trial = Trial::new(spec.plugin.clone(), good.plugin.clone(), rule);
                (trial, good)
            });
        }
        if !spec.held_back {
            self.outlet.status.send_modify(|s| s.rolled_back = None);
        }
        if !parts.member.as_ref().is_some_and(|m| m.fits(spec)) {
            let us = (self.shared.cluster.as_str(), &self.shared.host_key);
            Member::stop(&mut parts.member).await;
            let left = leave::has_left(&self.home);
            parts.member = Some(Member::start(&self.home, spec, us, left));
        }
        parts.sessions.serve(self.served(spec));
        parts.probes.follow(spec);
        self.announce(parts);
        self.tell_auth(parts);
    }

    fn tell_auth(&self, parts: &Parts) {
        if let (Some(beat), Some(held)) = (&parts.beat, self.home.credentials()) {
            beat.says(&parts.spec, &held.names, &parts.probes.report());
        }
    }

    /// Joining went on: new credentials, or a new reason why there are none.
    fn renewed(&mut self, parts: &mut Parts) -> Result<(), AgentError> {
        let Some(held) = self.home.credentials() else {
            return Ok(());
        };
        let known = |seen: &Arc<Credentials>| Arc::ptr_eq(seen, &held);
        if parts.seen.as_ref().is_some_and(known) {
            // Only a new reason why there are no others.
            return Ok(());
        }
        parts.seen = Some(held.clone());
        leave::joined_again(&self.home);
        self.reach_auth(parts)?;
        for front in parts.front.iter().chain(&parts.next) {
            if front.kind() == held.kind {
                front.renewed(&held);
            }
        }
        parts.announce_after = Some(Instant::now());
        Ok(())
    }

    /// Opens the channel to Auth anew: by the credentials held now, through the proxy that the tunnel leads to.
    fn reach_auth(&self, parts: &mut Parts) -> Result<(), AgentError> {
        let Some(held) = self.home.credentials() else {
            return Ok(());
        };
        let configured = parts.spec.common.proxy_addr.as_str();
        let addr = parts.front.as_ref().map_or(configured, Front::proxy_addr);
        let channel = held
            .auth_channel(addr, &self.shared.cluster)
            .map_err(|e| of_service(self.name, e))?;
        self.home.auth.send_replace(Some(channel.clone()));
        self.shared.auth.send_modify(|ways| {
            ways.insert(self.name.to_owned(), channel.clone());
        });
        match &parts.beat {
            Some(beat) => beat.through(channel),
            None => {
                let rejoin = self.home.rejoin.clone();
                let health = parts.probes.report();
                let beat = Beat::start(channel, rejoin, &parts.spec, &held.names, &health);
                parts.beat = Some(beat);
            }
        }
        self.tell_auth(parts);
        Ok(())
    }
}

async fn roles_heard(cache: &mut Cache) {
    if cache.wait_for(|s| s.heard_unix > 0).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Resolves when the tunnel's state is no longer the one seen.
async fn moved(tunnel: Option<watch::Receiver<TunnelState>>, seen: Option<TunnelState>) {
    if let (Some(mut tunnel), Some(seen)) = (tunnel, seen)
        && tunnel.wait_for(|now| *now != seen).await.is_ok()
    {
        return;
    }
    std::future::pending().await
}
