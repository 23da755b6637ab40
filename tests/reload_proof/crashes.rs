//! `kill -9` at random points of joining, renewing and applying edits: the same data directory starts again and comes
//! to what the file on disk says.

use crate::count;
use crate::draft::Service;
use crate::world::{World, homes, server};
use anyhow::{Context, Result, ensure};
use postern_tests::wait;
use rand::Rng;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Where the kill falls.
#[derive(Debug, Clone, Copy)]
enum During {
    /// The first start with new services.
    Joining,
    /// Other names: new keys and certificates for services that have some.
    Renewing,
    /// One edit after the other.
    Editing,
}

struct Crashes {
    w: World,
    port: u16,
    made: u32,
}

impl Crashes {
    fn add(&mut self) {
        let name = format!("s{}", self.made);
        self.made += 1;
        let service = Service::new("tcp", &[]).with(&name, Some(self.port));
        self.w.draft.services.insert(name, service);
        if self.w.draft.services.len() > 6 {
            self.w.draft.services.pop_first();
        }
    }

    /// Every service gets a resource more, or loses it again.
    fn rename(&mut self) {
        let port = Some(self.port);
        for (name, s) in &mut self.w.draft.services {
            let more = format!("{name}-more");
            if s.resources.remove(&more).is_none() {
                *s = s.clone().with(&more, port);
            }
        }
    }

    fn crash(&mut self, during: During, after: Duration) -> Result<()> {
        let began = Instant::now();
        match during {
            During::Joining => {
                self.w.agent.stop(wait::LONG)?;
                self.add();
                self.add();
                self.w.save(&self.w.draft.to_string())?;
                self.w.agent.launch()?;
                std::thread::sleep(after);
            }
            During::Renewing => {
                self.rename();
                self.w.apply()?;
                std::thread::sleep(after / 4);
            }
            During::Editing => loop {
                self.add();
                self.rename();
                self.w.save(&self.w.draft.to_string())?;
                if began.elapsed() >= after {
                    break;
                }
                let applied = self.w.agent.reload()?;
                ensure!(applied.is_ok(), "{applied:?}");
            },
        }
        self.w.agent.kill9()?;
        self.w.agent.launch()?;
        self.w.agent.ready()
    }

    /// What is on disk is what runs, and nothing else is left.
    fn whole(&self) -> Result<()> {
        let wanted: Vec<&String> = self.w.draft.services.keys().collect();
        let mut last = Vec::new();
        wait::holds("left behind services to go", wait::LONG, || {
            last = homes(&self.w.agent).unwrap_or_default();
            last.iter().eq(wanted.iter().copied())
        })
        .with_context(|| format!("{last:?} instead of {wanted:?}"))?;
        for (name, s) in &self.w.draft.services {
            let service = self.w.agent.service(name)?;
            let resources: Vec<&String> = s.resources.keys().collect();
            ensure!(
                service["state"] == "up" && service["resources"] == serde_json::json!(resources),
                "{service}"
            );
        }
        let newest = self.w.draft.services.values().next_back();
        let resource = newest.and_then(|s| s.resources.keys().next_back());
        self.w.reachable(resource.context("no resource")?)
    }
}

#[test]
fn a_kill_at_any_point_leaves_what_the_next_start_needs() -> Result<()> {
    let port = server()?;
    let first = Service::new("tcp", &[]).with("first", Some(port));
    // The shortest there is: those that have run for half of it renew at their start.
    let w = World::start(
        "cert_ttl = \"60s\"",
        BTreeMap::from([("first".to_owned(), first)]),
    )?;
    let mut crashes = Crashes { w, port, made: 0 };
    let mut random = rand::rng();
    for i in 0..count("POSTERN_KILLS", 20) {
        let during = [During::Joining, During::Renewing, During::Editing][i as usize % 3];
        let after = Duration::from_millis(random.random_range(0..600));
        crashes
            .crash(during, after)
            .and_then(|()| crashes.whole())
            .with_context(|| format!("kill {i}, {after:?} into {during:?}"))
            .with_context(|| crashes.w.agent.log_tail(40))?;
    }
    Ok(())
}
