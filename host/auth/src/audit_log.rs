//! The audit log: one SQLite table, appended to, each uid once.

use std::path::Path;

use futures::stream::{self, BoxStream, StreamExt};
use postern_audit::Event;
use rusqlite::params;

use crate::db::{Db, DbError, Threads};

/// Events handed to a reader at once.
const BATCH: u32 = 256;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS audit (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, uid TEXT NOT NULL UNIQUE, event TEXT NOT NULL, json TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS audit_event ON audit (event, seq);
";

/// A stored event and its place in the log.
#[derive(Debug, Clone)]
pub struct Stored {
    pub seq: u64,
    pub json: String,
}

/// Which events a reader wants: a name, or a prefix with a trailing `*`; empty: all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    glob: String,
}

impl Filter {
    pub fn new(event: &str) -> Self {
        // SQLite's GLOB, with everything but a trailing star taken literally.
        let (stem, star) = event
            .strip_suffix('*')
            .map_or((event, false), |stem| (stem, true));
        let mut glob: String = stem.chars().filter(|c| !"*?[]".contains(*c)).collect();
        if star || event.is_empty() {
            glob.push('*');
        }
        Filter { glob }
    }
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct AuditLog {
    db: Db,
}

impl AuditLog {
    /// Opens or creates the file.
    pub async fn open(path: &Path) -> Result<(Self, Threads), DbError> {
        let owned = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || Db::open(&owned, SCHEMA)).await;
        let (db, threads) = opened.map_err(|e| DbError {
            path: path.to_owned(),
            why: e.to_string(),
        })??;
        Ok((AuditLog { db }, threads))
    }

    /// Stores the events that are not there yet; all are durable when this returns.
    pub async fn append(&self, events: Vec<Event>) -> Result<(), DbError> {
        if events.is_empty() {
            return Ok(());
        }
        let path = self.db.path().to_owned();
        // Not on the one thread that writes.
        let mut rows = Vec::with_capacity(events.len());
        for event in events {
            let (uid, name) = (event.uid.clone(), event.event.clone());
            let json = event.into_json().map_err(|e| DbError {
                path: path.clone(),
                why: format!("event {uid}: {e}"),
            })?;
            rows.push((uid, name, json));
        }
        self.db
            .write(move |c| {
                let mut insert = c
                    .prepare_cached(
                        "INSERT OR IGNORE INTO audit (uid, event, json) VALUES (?1, ?2, ?3)",
                    )
                    .map_err(Db::error(&path))?;
                for row in rows {
                    insert.execute(row).map_err(Db::error(&path))?;
                }
                Ok(())
            })
            .await
    }

    /// The sequence number before the last `n` events of this kind; 0 for `n == 0` (all).
    pub async fn before_last(&self, n: u32, filter: Filter) -> Result<u64, DbError> {
        if n == 0 {
            return Ok(0);
        }
        let path = self.db.path().to_owned();
        self.db
            .read(move |c| {
                c.query_row(
                    "SELECT coalesce(min(seq), 1) - 1 FROM
                     (SELECT seq FROM audit WHERE event GLOB ?1 ORDER BY seq DESC LIMIT ?2)",
                    params![filter.glob, n],
                    |r| r.get::<_, i64>(0),
                )
                .map(|seq| u64::try_from(seq).unwrap_or(0))
                .map_err(Db::error(&path))
            })
            .await
    }

    /// Events behind `after`, oldest first; with `follow` it goes on with those to come, else it ends.
    pub fn read(
        &self,
        after: u64,
        filter: Filter,
        follow: bool,
    ) -> BoxStream<'static, Result<Stored, DbError>> {
        let start = (self.db.clone(), self.db.committed(), after);
        let batches = stream::try_unfold(start, move |(db, mut committed, mut after)| {
            let glob = filter.glob.clone();
            async move {
                loop {
                    committed.borrow_and_update();
                    let batch = read_batch(&db, after, glob.clone()).await?;
                    if let Some(last) = batch.last() {
                        after = last.seq;
                        return Ok(Some((
                            stream::iter(batch.into_iter().map(Ok)),
                            (db, committed, after),
                        )));
                    }
                    if !follow || committed.changed().await.is_err() {
                        return Ok(None);
                    }
                }
            }
        });
        futures::TryStreamExt::try_flatten(batches).boxed()
    }
}

async fn read_batch(db: &Db, after: u64, glob: String) -> Result<Vec<Stored>, DbError> {
    let path = db.path().to_owned();
    db.read(move |c| {
        let fail = Db::error(&path);
        let mut query = c
            .prepare_cached("SELECT seq, json FROM audit WHERE seq > ?1 AND event GLOB ?2 ORDER BY seq LIMIT ?3")
            .map_err(&fail)?;
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        let rows = query
            .query_map(params![after, glob, BATCH], |r| {
                Ok(Stored { seq: u64::try_from(r.get::<_, i64>(0)?).unwrap_or(0), json: r.get(1)? })
            })
            .map_err(&fail)?;
        rows.collect::<Result<_, _>>().map_err(fail)
    })
    .await
}
