//! Many connections at once: all are served, or told soon that there are too many; and nothing of them is left.

use crate::{NO_SERVER, SOON, at_rest, rests_as_before, runtime};
use anyhow::{Context, Result, ensure};
use postern_tests::{Database, DatabaseSpec, Helper, Login, Postgres, skip_unless};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, Config, NoTls, config::SslMode};

const ALL: usize = 500;
const LIMIT: usize = 100;
const TRIED: usize = 160;

/// `app` in `orders`, by a helper's port.
pub fn config(port: u16) -> Config {
    let mut config = Config::new();
    config.host("127.0.0.1").port(port).user("app");
    config.dbname("orders").ssl_mode(SslMode::Disable);
    config
}

/// Connects and asks something.
pub async fn open(port: u16) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config(port).connect(NoTls).await?;
    // It ends with the client.
    tokio::spawn(connection);
    client.query_one("select $1::int4", &[&1]).await?;
    Ok(client)
}

async fn open_all(
    port: u16,
    count: usize,
) -> Result<Vec<(Duration, Result<Client, tokio_postgres::Error>)>> {
    let one = || async move {
        let started = Instant::now();
        let opened = open(port).await;
        (started.elapsed(), opened)
    };
    let tasks: Vec<_> = (0..count).map(|_| tokio::spawn(one())).collect();
    let mut all = Vec::new();
    for task in tasks {
        all.push(task.await?);
    }
    Ok(all)
}

/// One came and went before: what is made once is no leak.
fn warmed_up(db: &Database, port: u16) -> Result<usize> {
    runtime()?.block_on(async { open(port).await.map(drop) })?;
    at_rest(db)
}

/// All come, stay, ask something and go; gives how many.
fn together(db: &Database, helper: &Helper) -> Result<usize> {
    runtime()?.block_on(async {
        let started = Instant::now();
        let mut clients = Vec::new();
        for (took, opened) in open_all(helper.port, ALL).await? {
            clients.push(opened.with_context(|| format!("after {took:?}: {}", helper.said()))?);
        }
        println!("{ALL} connections in {:?}", started.elapsed());
        let open = db.sessions()?;
        ensure!(open == ALL as f64, "{open} sessions");
        let here = "select count(*) from pg_stat_activity where usename = 'app'";
        let there = db.server().sql("postgres", here)?;
        ensure!(there.trim() == ALL.to_string(), "{there} at the server");
        for client in &clients {
            let answer = client.query_one("select $1::int4", &[&2]);
            let answer = tokio::time::timeout(SOON, answer).await??;
            ensure!(answer.get::<_, i32>(0) == 2);
        }
        Ok(ALL)
    })
}

#[test]
fn five_hundred_at_once() -> Result<()> {
    skip_unless!(Postgres::is_there(), NO_SERVER);
    let db = Database::start(Login::Scram)?;
    let helper = db.helper("orders")?;
    let before = warmed_up(&db, helper.port)?;
    let first = rests_as_before(&db, before, together(&db, &helper)?)?;
    // What the tunnel keeps of the first crowd serves the second, so that nothing at all may be added.
    together(&db, &helper)?;
    rests_as_before(&db, first, 0)?;
    let left = "select count(*) from pg_stat_activity where usename = 'app'";
    postern_tests::wait::holds("the server to have none of them", SOON, || {
        db.server()
            .sql("postgres", left)
            .is_ok_and(|n| n.trim() == "0")
    })
}

#[test]
fn more_than_the_service_takes_are_turned_away() -> Result<()> {
    skip_unless!(Postgres::is_there(), NO_SERVER);
    let db = DatabaseSpec::new(Login::Scram)
        .service_lines(&format!("limits = {{ max_sessions = {LIMIT} }}"))
        .start()?;
    let helper = db.helper("orders")?;
    let before = warmed_up(&db, helper.port)?;
    runtime()?.block_on(async {
        let (mut held, mut refused) = (Vec::new(), 0);
        for (took, opened) in open_all(helper.port, TRIED).await? {
            match opened {
                Ok(client) => held.push(client),
                Err(e) => {
                    ensure!(took < SOON, "refused after {took:?}: {e}");
                    refused += 1;
                }
            }
        }
        ensure!(
            held.len() == LIMIT && refused == TRIED - LIMIT,
            "{} held",
            held.len()
        );
        db.agent
            .wait_log("limits.max_sessions allows no more", SOON)?;
        for client in &held {
            client.query_one("select $1::int4", &[&3]).await?;
        }
        // One goes, and there is room for one.
        held.pop();
        let again = async {
            while open(helper.port).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        Ok(tokio::time::timeout(SOON, again).await?)
    })?;
    // The refused had a stream each, for a moment.
    rests_as_before(&db, before, TRIED).map(drop)
}
