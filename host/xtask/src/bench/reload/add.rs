//! From the save of the file to the first connection through what it added.

use super::world::World;
use crate::bench::rows::Sample;
use crate::sh;
use anyhow::Result;
use postern_tests::wait;

pub fn one(world: &mut World, rounds: usize) -> Result<Vec<Sample>> {
    sh::phase("bench: add-one");
    let names = |round| vec![format!("one-{round}")];
    (0..rounds)
        .map(|round| added(world, &names(round)))
        .collect()
}

pub fn fifty(world: &mut World, rounds: usize) -> Result<Vec<Sample>> {
    sh::phase("bench: add-fifty");
    let names = |round| {
        (0..50)
            .map(|i| format!("fifty-{round}-{i}"))
            .collect::<Vec<_>>()
    };
    (0..rounds)
        .map(|round| added(world, &names(round)))
        .collect()
}

fn added(world: &mut World, names: &[String]) -> Result<Sample> {
    let seconds = world.until(names, |w| w.agent.write_config(&w.with(names)))?;
    eprintln!("  {seconds:.3} s");
    // Away again, without waiting for what vanished to come back.
    world.agent.write_config(&world.config)?;
    world.agent.reload()?.map_err(anyhow::Error::msg)?;
    wait::holds("what was added to be gone", wait::LONG, || {
        names.iter().all(|name| world.agent.service(name).is_err())
    })?;
    Ok(seconds.into())
}
