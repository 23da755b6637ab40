//! Two hundred edits, and nobody who is connected notices.

use crate::draft::Service;
use crate::witness::{Connection, Copy, Counter};
use crate::world::{World, put, server, services};
use anyhow::{Context, Result, ensure};
use postern_tests::{plugin, testing_plugin, wait};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

const EDITS: usize = 200;
/// Bytes of the file that is copied meanwhile.
const GIGABYTE: u64 = 1_000_000_000;

/// Where the plugin of `orders` is, to be exchanged.
fn plugin_file(w: &World) -> PathBuf {
    w.lab.join("orders.wasm")
}

fn world() -> Result<World> {
    let same_user: &[(&str, &str)] = match postern_tests::is_root() {
        true => &[],
        false => &[("ssh", "{ allow_same_user = true }")],
    };
    let services = BTreeMap::from([("ssh".to_owned(), Service::ssh("web-1", same_user))]);
    let mut w = World::start("", services)?;
    put(&plugin("tcp")?, &plugin_file(&w))?;
    let path = plugin_file(&w).display().to_string();
    let orders = Service::new(&path, &[]).with("orders", Some(server()?));
    w.draft.services.insert("orders".into(), orders);
    w.apply()?;
    w.agent.ready()?;
    Ok(w)
}

/// What becomes of an edit.
enum Becomes {
    Applied,
    /// With this in the reason.
    Refused(&'static str),
}

/// Makes the `i`th edit of the files; every sort comes once in each round of them.
fn edit(w: &mut World, i: usize, tokens: &[String; 2]) -> Result<Becomes> {
    const SORTS: usize = 23;
    let round = i / SORTS;
    let odd = round % 2 == 1;
    let extra = format!("extra-{round}");
    let two = |a: &str, b: &str| if odd { b.to_owned() } else { a.to_owned() };
    let draft = &mut w.draft;
    let port = draft.services["orders"].resources["orders"].port;
    let mut ssh = |change: &dyn Fn(&mut Service)| {
        if let Some(ssh) = draft.services.get_mut("ssh") {
            change(ssh);
        }
    };
    let set = |service: &mut Service, key: &str, value: &str| {
        service.lines.insert(key.into(), value.into());
    };
    let mut broken = None;
    let mut why = "";
    match i % SORTS {
        0 => ssh(&|s| {
            for r in s.resources.values_mut() {
                r.env = format!("env-{round}");
            }
        }),
        1 => ssh(&|s| *s = s.clone().with(&extra, None)),
        2 => ssh(&|s| drop(s.resources.remove(&extra))),
        3 => ssh(&|s| {
            set(
                s,
                "settings",
                &format!("{{ exec = {{ deny = [\"never-{round}\"] }} }}"),
            )
        }),
        4 => ssh(&|s| {
            set(
                s,
                "limits",
                &format!("{{ memory_mb = {}, max_sessions = 99 }}", 33 + round),
            )
        }),
        5 => drop(
            draft
                .services
                .insert(extra.clone(), Service::new("tcp", &[]).with(&extra, port)),
        ),
        6 => {
            draft.level = two("info,postern_agent=debug", "info");
            draft.format = (if round % 4 < 2 { "json" } else { "text" }).into();
        }
        7 => put(
            &if odd {
                plugin("tcp")?
            } else {
                testing_plugin("tcp-next")?
            },
            &plugin_file(w),
        )?,
        8 => (broken, why) = (Some(format!("{draft}\n[servces.typo]\n")), "did you mean"),
        9 => {
            draft
                .services
                .entry(extra)
                .and_modify(|s| s.enabled = false)
                .or_insert_with(|| Service::new("tcp", &[]))
                .enabled = false
        }
        10 => ssh(&|s| s.enabled = false),
        11 => ssh(&|s| s.enabled = true),
        12 => drop(draft.services.get_mut(&extra).map(|s| s.enabled = true)),
        13 => {
            let half = draft.to_string();
            let half = half.get(..half.len() - 12).context("half")?;
            (broken, why) = (Some(format!("{half}\n[services.\n")), "");
        }
        14 => drop(
            draft
                .agent
                .insert("join_params".into(), two(&tokens[0], &tokens[1])),
        ),
        15 => drop(draft.agent.insert("warm_connections".into(), two("2", "1"))),
        16 => {
            std::fs::write(plugin_file(w).with_extension("new"), "no component")?;
            std::fs::rename(plugin_file(w).with_extension("new"), plugin_file(w))?;
            why = "component";
        }
        17 => put(
            &if odd {
                plugin("tcp")?
            } else {
                testing_plugin("tcp-next")?
            },
            &plugin_file(w),
        )?,
        18 => drop(
            draft
                .agent
                .insert("transport".into(), two("\"tls\"", "\"ssh\"")),
        ),
        19 => {
            (broken, why) = (
                Some(
                    draft
                        .to_string()
                        .replace("shutdown_timeout = \"1s\"", "shutdown_timeout = \"9s\""),
                ),
                "restart",
            )
        }
        20 => drop(draft.services.remove(&extra)),
        21 => drop(
            draft
                .agent
                .insert("drain_timeout".into(), two("\"2h\"", "\"1h\"")),
        ),
        _ => ssh(&|s| set(s, "rollback", &format!("{{ traps = {} }}", 4 + round))),
    }
    let text = broken.unwrap_or_else(|| w.draft.to_string());
    w.save(&text)?;
    let refused = [8, 13, 16, 19].contains(&(i % SORTS));
    Ok(if refused {
        Becomes::Refused(why)
    } else {
        Becomes::Applied
    })
}

#[test]
fn two_hundred_edits_cost_nobody_a_byte() -> Result<()> {
    let mut w = world()?;
    let pid = w.agent.pid()?;
    let tokens = [w.token()?, w.token()?];
    let mut counter = Counter::start(&w, "web-1")?;
    let mut connection = Connection::open(&w, "orders")?;
    let mut copy = Copy::start(&w, "web-1", GIGABYTE, 240_000)?;
    let (began, mut applied, mut refused) = (Instant::now(), 0, 0);
    for i in 0..EDITS {
        let becomes = edit(&mut w, i, &tokens)?;
        let outcome = w.agent.reload()?;
        match (becomes, &outcome) {
            (Becomes::Applied, Ok(_)) => applied += 1,
            (Becomes::Refused(why), Err(told)) if told.contains(why) => refused += 1,
            _ => anyhow::bail!("edit {i}: {outcome:?}\n{}", w.draft),
        }
        let mut stays = || -> Result<()> {
            counter.tell()?;
            connection.exchange()?;
            // It is under way all the time, and at its end only after the last edit.
            copy.run_to((i + 1) as f64 / EDITS as f64 * 0.9)
        };
        stays().with_context(|| format!("after edit {i}, {outcome:?}"))?;
        ensure!(w.agent.is_running() && w.agent.pid()? == pid);
    }
    println!(
        "{applied} edits applied and {refused} refused in {:?}",
        began.elapsed()
    );
    ensure!(copy.done() < 1.0, "the copy did not last through the edits");
    copy.finish()?;
    connection.exchange()?;
    let counted = counter.finish()?;
    println!("{counted:?}");
    ensure!(
        counted.numbers as f64 > began.elapsed().as_secs_f64() * 20.0,
        "{counted:?}"
    );
    w.draft
        .services
        .retain(|name, _| !name.starts_with("extra"));
    w.apply()?;
    w.agent.ready()?;
    w.alice.ssh_as(&w.login, "web-1").arg("true").ok()?;
    w.reachable("orders")?;
    wait::holds("nothing else to be left", wait::LONG * 2, || {
        let left = services(&w.agent).unwrap_or_default();
        left["services"].as_array().is_some_and(|s| s.len() == 2)
    })
}

/// The control: what the test above relies on does notice a restart.
#[test]
fn a_restart_costs_everybody_everything() -> Result<()> {
    let mut w = world()?;
    let counter = Counter::start(&w, "web-1")?;
    let mut connection = Connection::open(&w, "orders")?;
    connection.exchange()?;
    let mut copy = Copy::start(&w, "web-1", 100_000_000, 40_000)?;
    copy.run_to(0.1)?;
    w.agent.stop(wait::LONG)?;
    w.agent.launch()?;
    w.agent.ready()?;
    ensure!(counter.finish().is_err(), "the counter noticed nothing");
    ensure!(copy.finish().is_err(), "the copy noticed nothing");
    ensure!(
        connection.exchange().is_err(),
        "the connection noticed nothing"
    );
    Ok(())
}
