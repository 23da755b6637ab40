//! Whether the addresses behind a service's resources answer. One task per service probes them all, a few at a time and
//! spread over the interval; it ends with the service. A probe is a connection that is closed at once: what a server
//! says to a login is known only to those who may log in.
//!
//! Unhealthy is an address after two failures in a row, the second one soon after the first: a server that is restarted
//! or a packet that is lost takes no users away. One success makes it healthy: it is worth more than a suspicion, and
//! where no other agent serves the resource nobody gains by waiting.

use super::spec::Spec;
use crate::dial;
use crate::status::{Health, ResourceHealth};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use postern_membership::unix_now;
use postern_plugin::World;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

/// Probes of one service under way at once.
const AT_ONCE: usize = 16;
/// Failures in a row that make a resource unhealthy.
const FAILURES: u32 = 2;
/// The pause after a probe that failed, where the interval is no shorter.
const AGAIN: Duration = Duration::from_secs(5);
/// Changes are told no more often: a network that fails takes many resources with it, and each report is of them all.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// By resource; without those that are not probed.
pub type Report = Arc<BTreeMap<String, ResourceHealth>>;

/// What a report says against a resource.
pub fn unreachable<'r>(report: &'r Report, resource: &str) -> Option<&'r ResourceHealth> {
    let unhealthy = |h: &&ResourceHealth| h.state == Health::Unhealthy;
    report.get(resource).filter(unhealthy)
}

/// The task that probes the resources of a service.
pub struct Probes {
    wanted: watch::Sender<Wanted>,
    report: watch::Receiver<Report>,
    _task: AbortOnDropHandle<()>,
}

impl Probes {
    pub fn start(spec: &Spec) -> Self {
        let probe = |address: String, within| -> BoxFuture<'static, _> {
            Box::pin(async move { dial::probe(&address, within).await })
        };
        Self::with(Wanted::of(spec), Box::new(probe))
    }

    fn with(wanted: Wanted, probe: Probe) -> Self {
        let (wanted, wanted_rx) = watch::channel(wanted);
        let (report_tx, report) = watch::channel(Report::default());
        let task = tokio::spawn(Prober::new(probe, report_tx).run(wanted_rx));
        Probes {
            wanted,
            report,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// The service has changed. What is known of an address stays, where it still is the resource's.
    pub fn follow(&self, spec: &Spec) {
        self.want(Wanted::of(spec));
    }

    /// Nothing is probed from now on.
    pub fn stop(&self) {
        self.want(Wanted::default());
    }

    fn want(&self, new: Wanted) {
        self.wanted.send_if_modified(|old| {
            let differs = *old != new;
            *old = new;
            differs
        });
    }

    pub fn report(&self) -> Report {
        self.report.borrow().clone()
    }

    /// Resolves when the report is another one.
    pub async fn changed(&mut self) {
        if self.report.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// What is probed, and how.
#[derive(Debug, Clone, Default, PartialEq)]
struct Wanted {
    service: String,
    /// By resource.
    addresses: BTreeMap<String, String>,
    interval: Duration,
    timeout: Duration,
}

impl Wanted {
    fn of(spec: &Spec) -> Self {
        let check = &spec.service.health_check;
        let dials = spec.plugin.description().world == World::Codec;
        let probed = spec
            .offered
            .iter()
            .filter(|_| check.enabled && dials)
            .filter_map(|o| Some((o.id.name.clone(), o.address.clone()?)));
        Wanted {
            service: spec.name.clone(),
            addresses: probed.collect(),
            interval: check.interval,
            timeout: check.timeout,
        }
    }
}

/// Tries an address for so long.
type Probe = Box<dyn Fn(String, Duration) -> BoxFuture<'static, Outcome> + Send>;
/// Or why it does not answer.
type Outcome = Result<(), String>;

/// A probe that has come to an end.
struct Found {
    resource: String,
    id: u64,
    outcome: Outcome,
}

struct Prober {
    probe: Probe,
    wanted: Wanted,
    resources: BTreeMap<String, Watched>,
    probing: FuturesUnordered<BoxFuture<'static, Found>>,
    last_id: u64,
    report: watch::Sender<Report>,
    /// There is something to tell.
    news: bool,
    told: Option<Instant>,
}

impl Prober {
    fn new(probe: Probe, report: watch::Sender<Report>) -> Self {
        Prober {
            probe,
            wanted: Wanted::default(),
            resources: BTreeMap::new(),
            probing: FuturesUnordered::new(),
            last_id: 0,
            report,
            news: false,
            told: None,
        }
    }

    async fn run(mut self, mut wanted: watch::Receiver<Wanted>) {
        wanted.mark_changed();
        loop {
            let next = self.begin_due();
            let tell = self.news.then(|| match self.told {
                Some(told) => told + TOLD_EVERY,
                None => Instant::now(),
            });
            tokio::select! {
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = wanted.borrow_and_update().clone();
                    self.adopt(now);
                }
                Some(found) = self.probing.next() => self.found(found),
                () = at(next) => {}
                () = at(tell) => self.tell(),
            }
        }
    }

    /// Begins the probes whose time has come, as many as may be under way; gives when the next one's comes.
    fn begin_due(&mut self) -> Option<Instant> {
        while self.probing.len() < AT_ONCE {
            let idle = self.resources.iter_mut().filter(|(_, w)| !w.probing);
            let (name, watched) = idle.min_by_key(|(_, w)| w.due)?;
            if watched.due > Instant::now() {
                return Some(watched.due);
            }
            watched.probing = true;
            let (resource, id) = (name.clone(), watched.id);
            let probing = (self.probe)(watched.address.clone(), self.wanted.timeout);
            self.probing.push(Box::pin(async move {
                Found {
                    resource,
                    id,
                    outcome: probing.await,
                }
            }));
        }
        // Full: the next one begins when one of them has ended.
        None
    }

    /// Keeps what is known of the addresses that stay. New ones are probed at once.
    fn adopt(&mut self, wanted: Wanted) {
        let now = Instant::now();
        let stays = |name: &String, w: &mut Watched| wanted.addresses.get(name) == Some(&w.address);
        self.resources.retain(stays);
        for watched in self.resources.values_mut() {
            watched.due = watched.due.min(now + about(wanted.interval));
        }
        for (name, address) in &wanted.addresses {
            self.resources.entry(name.clone()).or_insert_with(|| {
                self.last_id += 1;
                Watched {
                    id: self.last_id,
                    address: address.clone(),
                    due: now,
                    probing: false,
                    failures: 0,
                    failed_unix: 0,
                    health: ResourceHealth {
                        since_unix: unix_now(),
                        ..ResourceHealth::default()
                    },
                }
            });
        }
        self.wanted = wanted;
        // At once, since what was said of an address that is gone is no longer true.
        self.news = true;
        self.told = None;
    }

    fn found(&mut self, found: Found) {
        // Gone, or another address, since it began.
        let watched = self.resources.get_mut(&found.resource);
        let Some(watched) = watched.filter(|w| w.id == found.id) else {
            return;
        };
        let interval = self.wanted.interval;
        let pause = match &found.outcome {
            Ok(()) => interval,
            Err(_) => interval.min(AGAIN),
        };
        watched.probing = false;
        watched.due = Instant::now() + about(pause);
        let before = watched.health.clone();
        watched.take(found.outcome, unix_now());
        if watched.health == before {
            return;
        }
        self.news = true;
        let (service, resource, address) =
            (&self.wanted.service, &found.resource, &watched.address);
        match (before.state, watched.health.state) {
            (Health::Unhealthy, Health::Healthy) => tracing::info!(
                service,
                resource,
                address,
                "the resource's address answers again, after {} s",
                watched.health.since_unix.saturating_sub(before.since_unix)
            ),
            (Health::Unknown | Health::Healthy, Health::Unhealthy) => tracing::warn!(
                service,
                resource,
                address,
                "the resource's address does not answer: {}; users are sent to other agents that serve it, where there are any",
                watched.health.reason.as_deref().unwrap_or_default()
            ),
            _ => {}
        }
    }

    fn tell(&mut self) {
        let health = self.resources.iter();
        let health = health.map(|(name, w)| (name.clone(), w.health.clone()));
        let report = Report::new(health.collect());
        self.report.send_if_modified(|old| {
            let differs = *old != report;
            *old = report;
            differs
        });
        self.told = Some(Instant::now());
        self.news = false;
    }
}

/// One resource, and how the probes of its address went.
struct Watched {
    /// Another one for another address.
    id: u64,
    address: String,
    /// When the next probe shall begin; one that is under way sets it anew.
    due: Instant,
    probing: bool,
    /// In a row.
    failures: u32,
    /// The first of them.
    failed_unix: u64,
    health: ResourceHealth,
}

impl Watched {
    fn take(&mut self, outcome: Outcome, now_unix: u64) {
        match outcome {
            Ok(()) => {
                self.failures = 0;
                if self.health.state != Health::Healthy {
                    self.health = ResourceHealth {
                        state: Health::Healthy,
                        reason: None,
                        since_unix: now_unix,
                    };
                }
            }
            Err(why) => {
                self.failures = self.failures.saturating_add(1);
                if self.failures == 1 {
                    self.failed_unix = now_unix;
                }
                if self.failures >= FAILURES {
                    self.health = ResourceHealth {
                        state: Health::Unhealthy,
                        reason: Some(why),
                        since_unix: self.failed_unix,
                    };
                }
            }
        }
    }
}

/// A fifth more or less, so that many probes do not fall into step.
fn about(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.8..=1.2))
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
