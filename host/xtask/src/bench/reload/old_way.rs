//! What takes the place of a reload elsewhere: stop the agent, delete its state, write a new token that covers all
//! services, and start it. Stopped at once, the token made before and the cluster idle: the best that it can be.

use super::world::{FIRST, Sessions, World, token};
use crate::bench::rows::Sample;
use crate::sh;
use anyhow::{Context, Result};

pub struct OldWay {
    /// Seconds in which a service that was there before could not be reached.
    pub outages: Vec<Sample>,
    pub lost: Vec<Sample>,
}

pub fn run(world: &mut World, rounds: usize) -> Result<OldWay> {
    sh::phase("bench: the old way");
    let mut old = OldWay {
        outages: Vec::new(),
        lost: Vec::new(),
    };
    for round in 0..rounds {
        let mut sessions = Sessions::open(world)?;
        let token = token(&world.cluster)?;
        let before = token_of(&world.config)?.to_owned();
        world.config = world.config.replace(&before, &token);
        let added = format!("old-{round}");
        let names = [FIRST.to_owned(), added.clone()];
        let seconds = world.until(&names, |w| {
            w.agent.kill9()?;
            std::fs::remove_dir_all(w.agent.data_dir())?;
            w.agent.write_config(&w.with(&[added]))?;
            w.agent.launch()
        })?;
        let lost = sessions.lost();
        eprintln!("  {seconds:.3} s without service, {lost} sessions lost");
        old.outages.push(seconds.into());
        old.lost.push(lost.into());
    }
    Ok(old)
}

fn token_of(config: &str) -> Result<&str> {
    let rest = config.split("token = \"").nth(1);
    let token = rest.and_then(|t| t.split('"').next());
    token.context("no token in the configuration")
}
