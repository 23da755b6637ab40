//! Random sequences of valid and invalid edits end where a fresh start with the last valid file ends. One agent lives
//! through all of them; for each a fresh one, with a data directory of its own, says what should have come out.

use crate::count;
use crate::draft::{Draft, Service};
use crate::world::{World, put, save, server, services, settles};
use anyhow::{Context, Result, ensure};
use postern_tests::{Daemon, Place, plugin, testing_plugin, wait};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Of one sequence, at most.
const EDITS: usize = 15;
const SERVICES: u8 = 5;

#[derive(Debug, Clone)]
enum Edit {
    /// Or it replaces the one of that name.
    Add {
        service: u8,
        from_file: bool,
    },
    Remove(u8),
    Toggle(u8),
    Label(u8, u8),
    MoreResources(u8),
    FewerResources(u8),
    Kind(u8, bool),
    Plugin(u8, bool),
    Limits(u8, u16),
    Rollback(u8, u8),
    Direct(u8),
    /// The plugin file gets the next version, or the one before.
    Swap,
    Warm(u8),
    Transport(u8),
    DrainTimeout(u8),
    Token,
    Level(bool),
    Invalid(Invalid),
}

#[derive(Debug, Clone, Copy)]
enum Invalid {
    UnknownKey,
    Torn,
    Empty,
    SameNameTwice,
    BadAddress,
    NoSuchPlugin,
    WrongDigest,
    UnknownSetting,
    NeedsRestart,
    NoWasm,
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let service = 0..SERVICES;
    let s = || service.clone();
    let valid = prop_oneof![
        4 => (s(), any::<bool>()).prop_map(|(service, from_file)| Edit::Add { service, from_file }),
        2 => s().prop_map(Edit::Remove),
        2 => s().prop_map(Edit::Toggle),
        1 => (s(), 0..3u8).prop_map(|(s, l)| Edit::Label(s, l)),
        2 => s().prop_map(Edit::MoreResources),
        1 => s().prop_map(Edit::FewerResources),
        1 => (s(), any::<bool>()).prop_map(|(s, k)| Edit::Kind(s, k)),
        1 => (s(), any::<bool>()).prop_map(|(s, p)| Edit::Plugin(s, p)),
        1 => (s(), 8..64u16).prop_map(|(s, m)| Edit::Limits(s, m)),
        1 => (s(), 0..5u8).prop_map(|(s, t)| Edit::Rollback(s, t)),
        1 => s().prop_map(Edit::Direct),
        2 => Just(Edit::Swap),
        1 => (0..3u8).prop_map(Edit::Warm),
        1 => (0..3u8).prop_map(Edit::Transport),
        1 => (1..9u8).prop_map(Edit::DrainTimeout),
        1 => Just(Edit::Token),
        1 => any::<bool>().prop_map(Edit::Level),
    ];
    use Invalid::*;
    let invalid = prop::sample::select(vec![
        UnknownKey,
        Torn,
        Empty,
        SameNameTwice,
        BadAddress,
        NoSuchPlugin,
        WrongDigest,
        UnknownSetting,
        NeedsRestart,
        NoWasm,
    ]);
    let one = prop_oneof![4 => valid, 1 => invalid.prop_map(Edit::Invalid)];
    prop::collection::vec(one, 1..=EDITS)
}

struct Proof {
    w: World,
    fresh: Daemon,
    port: u16,
    /// Which version is in the plugin file.
    next: bool,
    tokens: [String; 2],
    sequences: u32,
}

impl Proof {
    fn start() -> Result<Proof> {
        let port = server()?;
        let w = World::start(
            "",
            BTreeMap::from([("s0".to_owned(), service(0, "tcp", port))]),
        )?;
        let fresh = Daemon::prepare(&w.lab, "fresh", Place::here(), "")?;
        let tokens = [w.token()?, w.token()?];
        put(&plugin("tcp")?, &w.lab.join("file.wasm"))?;
        Ok(Proof {
            w,
            fresh,
            port,
            next: false,
            tokens,
            sequences: 0,
        })
    }

    fn file(&self) -> PathBuf {
        self.w.lab.join("file.wasm")
    }

    fn plugin(&self, from_file: bool) -> String {
        match from_file {
            true => self.file().display().to_string(),
            false => "tcp".into(),
        }
    }

    fn sequence(&mut self, edits: &[Edit]) -> Result<()> {
        let pid = self.w.agent.pid()?;
        for edit in edits {
            self.edit(edit).with_context(|| format!("{edit:?}"))?;
        }
        ensure!(self.w.agent.is_running() && self.w.agent.pid()? == pid);
        let wanted = self.fresh_start()?;
        settles(&self.w.agent, &wanted)?;
        self.sequences += 1;
        // Not only said to be so.
        for s in self.w.draft.services.values().filter(|s| s.enabled) {
            if !s.lines.contains_key("kind")
                && let Some(resource) = s.resources.keys().next_back()
            {
                self.w.reachable(resource)?;
            }
        }
        Ok(())
    }

    fn edit(&mut self, edit: &Edit) -> Result<()> {
        if let Edit::Invalid(what) = edit {
            return self.refused(*what);
        }
        self.change(edit)?;
        self.w.apply().map(drop)
    }

    fn change(&mut self, edit: &Edit) -> Result<()> {
        let (port, token) = (
            self.port,
            self.tokens[(self.sequences % 2) as usize].clone(),
        );
        let paths = [self.plugin(false), self.plugin(true)];
        let draft = &mut self.w.draft;
        let mut of = |n: &u8, change: &dyn Fn(&mut Service)| {
            if let Some(s) = draft.services.get_mut(&format!("s{n}")) {
                change(s);
            }
        };
        let line = |s: &mut Service, key: &str, value: String| {
            s.lines.insert(key.into(), value);
        };
        match edit {
            Edit::Add {
                service: n,
                from_file,
            } => {
                let plugin = &paths[usize::from(*from_file)];
                draft
                    .services
                    .insert(format!("s{n}"), service(*n, plugin, port));
            }
            Edit::Remove(n) => drop(draft.services.remove(&format!("s{n}"))),
            Edit::Toggle(n) => of(n, &|s| s.enabled = !s.enabled),
            Edit::Label(n, label) => of(n, &|s| {
                s.resources
                    .values_mut()
                    .for_each(|r| r.env = format!("env-{label}"));
            }),
            Edit::MoreResources(n) => of(n, &|s| {
                let name = format!("r{n}-{}", s.resources.len());
                *s = s.clone().with(&name, Some(port));
            }),
            Edit::FewerResources(n) => of(n, &|s| drop(s.resources.pop_last())),
            Edit::Kind(n, thing) => of(n, &|s| match thing {
                true => line(s, "kind", "\"thing\"".into()),
                false => drop(s.lines.remove("kind")),
            }),
            Edit::Plugin(n, from_file) => {
                of(n, &|s| s.plugin = paths[usize::from(*from_file)].clone())
            }
            Edit::Limits(n, mb) => of(n, &|s| line(s, "limits", format!("{{ memory_mb = {mb} }}"))),
            Edit::Rollback(n, traps) => of(n, &|s| {
                line(s, "rollback", format!("{{ traps = {traps} }}"))
            }),
            Edit::Direct(n) => of(n, &|s| line(s, "settings", "{}".into())),
            Edit::Swap => {
                self.next = !self.next;
                self.put_plugin()?;
            }
            Edit::Warm(n) => drop(draft.agent.insert("warm_connections".into(), n.to_string())),
            Edit::Transport(n) => {
                let word = ["\"auto\"", "\"ssh\"", "\"tls\""][usize::from(*n)];
                draft.agent.insert("transport".into(), word.into());
            }
            Edit::DrainTimeout(n) => drop(
                draft
                    .agent
                    .insert("drain_timeout".into(), format!("\"{n}m\"")),
            ),
            Edit::Token => drop(draft.agent.insert("join_params".into(), token)),
            Edit::Level(debug) => {
                draft.level = if *debug {
                    "info,postern_agent=debug"
                } else {
                    "info"
                }
                .into()
            }
            Edit::Invalid(_) => {}
        }
        Ok(())
    }

    fn put_plugin(&self) -> Result<()> {
        let file = if self.next {
            testing_plugin("tcp-next")?
        } else {
            plugin("tcp")?
        };
        put(&file, &self.file())
    }

    /// Nothing may come of it; the draft stays what it was.
    fn refused(&self, what: Invalid) -> Result<()> {
        let before = services(&self.w.agent)?;
        let good = &self.w.draft;
        let with = |lines: &[(&str, &str)], plugin: &str, resource: &str, port| {
            let mut bad: Draft = good.clone();
            bad.services.insert(
                "bad".into(),
                Service::new(plugin, lines).with(resource, port),
            );
            bad.to_string()
        };
        let port = Some(self.port);
        let text = match what {
            Invalid::UnknownKey => format!("{good}\nplugni = 1\n"),
            Invalid::Torn => {
                good.to_string()
                    .split("ca_pin")
                    .next()
                    .unwrap_or_default()
                    .to_owned()
                    + "ca_p"
            }
            Invalid::Empty => String::new(),
            Invalid::SameNameTwice => {
                format!("{good}\n[services.bad]\nplugin = \"tcp\"\nplugin = \"tcp\"\n")
            }
            Invalid::BadAddress => with(&[], "tcp", "bad", port)
                .replace("address = \"127.0.0.1:", "address = \"127.0.0.1;"),
            Invalid::NoSuchPlugin => with(&[], "/nowhere/bad.wasm", "bad", port),
            Invalid::WrongDigest => with(
                &[("sha256", &format!("{:?}", "0".repeat(64)))],
                "tcp",
                "bad",
                port,
            ),
            Invalid::UnknownSetting => with(&[("settings", "{ unknown = 1 }")], "tcp", "bad", port),
            Invalid::NeedsRestart => good
                .to_string()
                .replace("shutdown_timeout = \"1s\"", "shutdown_timeout = \"2s\""),
            Invalid::NoWasm => {
                std::fs::write(self.w.lab.join("bad.new"), "no component")?;
                put(&self.w.lab.join("bad.new"), &self.file())?;
                with(&[], &self.plugin(true), "bad", port)
            }
        };
        self.w.save(&text)?;
        let outcome = self.w.agent.reload()?;
        ensure!(outcome.is_err(), "applied: {outcome:?}\n{text}");
        let after = services(&self.w.agent)?;
        let names = |v: &serde_json::Value| -> Vec<String> {
            let all = v["services"].as_array().into_iter().flatten();
            let living = all.filter(|s| s["state"] != "removed" && s["state"] != "draining");
            living.map(|s| s["name"].to_string()).collect()
        };
        ensure!(names(&before) == names(&after), "{before} became {after}");
        // Seen by the watcher; nobody asks.
        self.w.save(&good.to_string())?;
        if matches!(what, Invalid::NoWasm) {
            self.put_plugin()?;
        }
        Ok(())
    }

    /// What an agent that knows nothing of the edits makes of the file.
    fn fresh_start(&mut self) -> Result<serde_json::Value> {
        // All but the compiled plugins, which are what they are.
        for entry in std::fs::read_dir(self.fresh.data_dir())
            .into_iter()
            .flatten()
        {
            let path = entry?.path();
            match path.file_name().is_some_and(|name| name == "plugins") {
                true => {}
                false if path.is_dir() => std::fs::remove_dir_all(path)?,
                false => std::fs::remove_file(path)?,
            }
        }
        save(&self.fresh, &self.w.draft.to_string())?;
        self.fresh.launch()?;
        self.fresh.ready()?;
        let came_out = services(&self.fresh)?;
        self.fresh.kill9()?;
        // The proxy has noticed, so that what is reached next is the agent that lives.
        wait::holds("the fresh agent to be gone", wait::LONG, || {
            self.fresh.get("/healthz").is_err()
        })?;
        Ok(came_out)
    }
}

fn service(n: u8, plugin: &str, port: u16) -> Service {
    Service::new(plugin, &[]).with(&format!("r{n}-0"), Some(port))
}

#[test]
fn sequences_of_edits_end_as_a_fresh_start_does() -> Result<()> {
    let proof = RefCell::new(Proof::start()?);
    let mut runner = TestRunner::new(Config {
        cases: count("POSTERN_SEQUENCES", 30),
        failure_persistence: None,
        max_shrink_iters: 30,
        ..Config::default()
    });
    let outcome = runner.run(&edits(), |edits| {
        let done = proof.borrow_mut().sequence(&edits);
        done.map_err(|e| TestCaseError::fail(format!("{e:#}")))
    });
    println!("{} sequences", proof.borrow().sequences);
    outcome.map_err(|e| anyhow::anyhow!("{e}"))
}
