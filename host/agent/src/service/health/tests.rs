//! When a resource is unhealthy, and what the probes may cost.

use super::*;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

fn refused() -> Outcome {
    Err("connection refused".into())
}

#[test]
fn two_failures_in_a_row_and_one_success() {
    let mut w = Watched {
        id: 1,
        address: "db:5432".into(),
        due: Instant::now(),
        probing: false,
        failures: 0,
        failed_unix: 0,
        health: ResourceHealth::default(),
    };
    w.take(refused(), 10);
    assert_eq!(w.health.state, Health::Unknown);
    w.take(Ok(()), 15);
    assert_eq!((w.health.state, w.health.since_unix), (Health::Healthy, 15));
    // Not in a row.
    for at in [20, 30, 40] {
        w.take(refused(), at);
        assert_eq!(w.health.state, Health::Healthy);
        w.take(Ok(()), at + 5);
    }
    assert_eq!(w.health.since_unix, 15);
    w.take(refused(), 50);
    w.take(Err("no answer within 5s".into()), 55);
    w.take(refused(), 60);
    let expected = ResourceHealth {
        state: Health::Unhealthy,
        reason: Some("connection refused".into()),
        since_unix: 50,
    };
    assert_eq!(w.health, expected);
    w.take(Ok(()), 65);
    assert_eq!((w.health.state, w.health.since_unix), (Health::Healthy, 65));
    assert_eq!(w.health.reason, None);
}

/// Servers that don't exist.
#[derive(Default)]
struct Servers {
    down: Mutex<Vec<String>>,
    /// How often each was probed.
    probed: Mutex<BTreeMap<String, usize>>,
    under_way: AtomicUsize,
    most: AtomicUsize,
}

struct UnderWay(Arc<Servers>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, SeqCst);
    }
}

impl Servers {
    /// Each probe takes a second.
    fn probe(self: &Arc<Self>) -> Probe {
        let servers = self.clone();
        Box::new(move |address, _| {
            let servers = servers.clone();
            Box::pin(async move {
                let now = servers.under_way.fetch_add(1, SeqCst) + 1;
                let _under_way = UnderWay(servers.clone());
                servers.most.fetch_max(now, SeqCst);
                *servers
                    .probed
                    .lock()
                    .unwrap()
                    .entry(address.clone())
                    .or_default() += 1;
                tokio::time::sleep(Duration::from_secs(1)).await;
                match servers.down.lock().unwrap().contains(&address) {
                    true => refused(),
                    false => Ok(()),
                }
            })
        })
    }

    fn probed(&self, address: &str) -> usize {
        let probed = self.probed.lock().unwrap();
        probed.get(address).copied().unwrap_or_default()
    }

    fn set_down(&self, addresses: &[&str]) {
        *self.down.lock().unwrap() = addresses.iter().map(|a| (*a).to_owned()).collect();
    }
}

fn wanted(addresses: &[(&str, &str)]) -> Wanted {
    let owned = |(name, address): &(&str, &str)| ((*name).to_owned(), (*address).to_owned());
    Wanted {
        service: "db".into(),
        addresses: addresses.iter().map(owned).collect(),
        interval: Duration::from_secs(30),
        timeout: Duration::from_secs(5),
    }
}

fn state(report: &Report, name: &str) -> Option<Health> {
    report.get(name).map(|h| h.state)
}

async fn until(probes: &mut Probes, holds: impl Fn(&Report) -> bool) {
    while !holds(&probes.report()) {
        probes.changed().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_resources_are_probed_a_few_at_a_time() {
    let servers = Arc::new(Servers::default());
    let names: Vec<String> = (0..1000).map(|n| format!("r{n}")).collect();
    let pairs: Vec<_> = names.iter().map(|n| (n.as_str(), n.as_str())).collect();
    let begun = Instant::now();
    let mut probes = Probes::with(wanted(&pairs), servers.probe());
    let all = |report: &Report| {
        let healthy = report.values().filter(|h| h.state == Health::Healthy);
        healthy.count() == 1000
    };
    until(&mut probes, all).await;
    assert_eq!(servers.most.load(SeqCst), AT_ONCE);
    // Nobody twice before everybody once.
    assert!(names.iter().all(|n| servers.probed(n) <= 2));
    assert!(begun.elapsed() < Duration::from_secs(70));
    assert!(servers.under_way.load(SeqCst) > 0);
    drop(probes);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(servers.under_way.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn failures_are_looked_at_again_soon() {
    let servers = Arc::new(Servers::default());
    let mut probes = Probes::with(wanted(&[("orders", "a")]), servers.probe());
    until(&mut probes, |r| state(r, "orders") == Some(Health::Healthy)).await;
    let (begun, before) = (Instant::now(), servers.probed("a"));
    servers.set_down(&["a"]);
    until(&mut probes, |r| unreachable(r, "orders").is_some()).await;
    // One interval, and the short pause after the first failure.
    assert_eq!(servers.probed("a"), before + 2);
    assert!(begun.elapsed() < Duration::from_secs(46));
    let begun = Instant::now();
    servers.set_down(&[]);
    until(&mut probes, |r| state(r, "orders") == Some(Health::Healthy)).await;
    assert!(begun.elapsed() < Duration::from_secs(9));
}

#[tokio::test(start_paused = true)]
async fn an_edit_leaves_what_is_known_of_the_others() {
    let servers = Arc::new(Servers::default());
    servers.set_down(&["a", "b"]);
    let both = [("orders", "a"), ("billing", "b")];
    let mut probes = Probes::with(wanted(&both), servers.probe());
    until(&mut probes, |r| {
        unreachable(r, "orders").is_some() && unreachable(r, "billing").is_some()
    })
    .await;
    let since = probes.report()["orders"].clone();
    let probed = servers.probed("a");

    let edited = [("orders", "a"), ("billing", "c"), ("new", "d")];
    probes.want(wanted(&edited));
    until(&mut probes, |r| r.contains_key("new")).await;
    let report = probes.report();
    assert_eq!(report["orders"], since);
    assert_eq!(state(&report, "billing"), Some(Health::Unknown));
    until(&mut probes, |r| {
        state(r, "billing") == Some(Health::Healthy) && state(r, "new") == Some(Health::Healthy)
    })
    .await;
    // Its own time did not come sooner for that.
    assert!(servers.probed("a") <= probed + 1);

    probes.want(wanted(&[("orders", "a")]));
    until(&mut probes, |r| r.len() == 1).await;
    assert_eq!(probes.report()["orders"], since);
    probes.stop();
    until(&mut probes, |r| r.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn what_the_old_address_said_does_not_count_for_the_new_one() {
    let servers = Arc::new(Servers::default());
    servers.set_down(&["a"]);
    let mut probes = Probes::with(wanted(&[("orders", "a")]), servers.probe());
    while servers.probed("a") == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // That one is under way.
    probes.want(wanted(&[("orders", "b")]));
    until(&mut probes, |r| state(r, "orders") == Some(Health::Healthy)).await;
    assert_eq!((servers.probed("a"), servers.probed("b")), (1, 1));
}
