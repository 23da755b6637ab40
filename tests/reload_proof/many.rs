//! Fifty services in one edit.

use crate::draft::Service;
use crate::world::{World, server};
use anyhow::Result;
use std::collections::BTreeMap;
use std::time::Instant;

#[test]
fn fifty_services_added_in_one_edit_are_all_reachable() -> Result<()> {
    let first = Service::new("tcp", &[]).with("first", Some(server()?));
    let mut w = World::start("", BTreeMap::from([("first".to_owned(), first)]))?;
    let port = server()?;
    let names: Vec<String> = (0..50).map(|i| format!("db-{i}")).collect();
    for name in &names {
        let service = Service::new("tcp", &[]).with(name, Some(port));
        w.draft.services.insert(name.clone(), service);
    }
    let began = Instant::now();
    // As an editor saves it: nobody asks for a reload.
    w.save(&w.draft.to_string())?;
    for name in &names {
        w.reachable(name)?;
    }
    println!("all reached {:?} after the save", began.elapsed());
    w.agent.ready()?;
    w.draft.services.retain(|name, _| name == "first");
    w.apply()?;
    w.agent.ready()?;
    w.reachable("first")
}
