//! [`Kv`] on SQLite: the default, for one Auth Service.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use rusqlite::{Connection, OptionalExtension, Row, named_params, params};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Change, Entry, Kv, KvError, Op, Snapshot, Txn};
use crate::db::{Db, DbError, Threads};

/// Revisions that a watch may lag behind before it has to list again.
const KEEP_REVISIONS: u64 = 10_000;
/// Compaction runs every so many revisions, not with each.
const COMPACT_EVERY: u64 = 1_000;
/// Changes read at once by a watch.
const WATCH_BATCH: usize = 256;
/// How late an expired key may vanish. It is invisible to reads at once.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS kv (
    key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL, expires_ms INTEGER
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS kv_expires ON kv (expires_ms) WHERE expires_ms IS NOT NULL;
CREATE TABLE IF NOT EXISTS changes (
    revision INTEGER NOT NULL, key TEXT NOT NULL, value BLOB, PRIMARY KEY (revision, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO meta VALUES ('revision', 0), ('compacted', 0);
";

/// See the module.
pub struct SqliteKv {
    db: Db,
    keep: u64,
    _sweeper: DropGuard,
}

impl SqliteKv {
    /// Opens or creates the file, and starts the sweeper of expired keys (needs a tokio runtime).
    pub async fn open(path: &Path) -> Result<(Self, Threads), KvError> {
        Self::open_keeping(path, KEEP_REVISIONS).await
    }

    /// As [`SqliteKv::open`], keeping `keep` revisions for watches.
    pub async fn open_keeping(path: &Path, keep: u64) -> Result<(Self, Threads), KvError> {
        let owned = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || Db::open(&owned, SCHEMA)).await;
        let (db, threads) = opened.map_err(|e| DbError {
            path: path.to_owned(),
            why: e.to_string(),
        })??;
        let stop = CancellationToken::new();
        let sweeper = sweep_forever(db.clone(), keep);
        tokio::spawn(stop.clone().run_until_cancelled_owned(sweeper));
        Ok((
            SqliteKv {
                db,
                keep,
                _sweeper: stop.drop_guard(),
            },
            threads,
        ))
    }
}

impl Kv for SqliteKv {
    fn get_many(&self, keys: Vec<String>) -> BoxFuture<'_, Result<Vec<Option<Entry>>, KvError>> {
        let path = self.db.path().to_owned();
        let read = self.db.read(move |c| -> Result<_, KvError> {
            let fail = Db::error(&path);
            let mut query = c
                .prepare_cached(
                    "SELECT key, value, revision FROM kv WHERE key = ?1 AND (expires_ms IS NULL OR expires_ms > ?2)",
                )
                .map_err(&fail)?;
            let now = now_ms();
            keys.iter().map(|k| query.query_row(params![k, now], entry).optional().map_err(|e| fail(e).into())).collect()
        });
        read.boxed()
    }

    fn range(&self, prefixes: Vec<String>) -> BoxFuture<'_, Result<Snapshot, KvError>> {
        let path = self.db.path().to_owned();
        let read = self.db.read(move |c| -> Result<_, KvError> {
            let fail = Db::error(&path);
            let mut snapshot = Snapshot { revision: meta(c, "revision").map_err(&fail)?, entries: Vec::new() };
            let mut query = c
                .prepare_cached(
                    "SELECT key, value, revision FROM kv
                     WHERE key >= :from AND key < :to AND (expires_ms IS NULL OR expires_ms > :now) ORDER BY key",
                )
                .map_err(&fail)?;
            for prefix in &prefixes {
                let named = named_params! { ":from": prefix, ":to": end_of(prefix), ":now": now_ms() };
                let rows = query.query_map(named, entry).map_err(&fail)?;
                for row in rows {
                    snapshot.entries.push(row.map_err(&fail)?);
                }
            }
            Ok(snapshot)
        });
        read.boxed()
    }

    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<u64, KvError>> {
        let (path, keep) = (self.db.path().to_owned(), self.keep);
        self.db.write(move |c| apply(c, &path, &txn, keep)).boxed()
    }

    fn watch(
        &self,
        prefixes: Vec<String>,
        after: u64,
    ) -> BoxStream<'static, Result<Change, KvError>> {
        let committed = self.db.committed();
        let watcher = Watcher {
            db: self.db.clone(),
            committed,
            prefixes,
            at: (after, None),
            ready: VecDeque::new(),
            ended: false,
        };
        stream::unfold(watcher, |mut w| async move {
            w.next().await.map(|change| (change, w))
        })
        .boxed()
    }
}

/// A watch: reads the table of changes from where it is whenever something was committed. It holds no queue of
/// its own that could overflow, and a slow one costs nothing but its reads.
struct Watcher {
    db: Db,
    committed: watch::Receiver<u64>,
    prefixes: Vec<String>,
    /// The revision seen, and within the next the key seen: one commit may be larger than a batch.
    at: (u64, Option<String>),
    ready: VecDeque<Change>,
    ended: bool,
}

impl Watcher {
    async fn next(&mut self) -> Option<Result<Change, KvError>> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Some(Ok(change));
            }
            if self.ended {
                return None;
            }
            self.committed.borrow_and_update();
            let full = match self.read().await {
                Ok(full) => full,
                Err(e) => {
                    self.ended = true;
                    return Some(Err(e));
                }
            };
            if !full && self.ready.is_empty() && self.committed.changed().await.is_err() {
                self.ended = true;
            }
        }
    }

    /// Fills `ready`; true if there may be more.
    async fn read(&mut self) -> Result<bool, KvError> {
        let (path, (after, key)) = (self.db.path().to_owned(), self.at.clone());
        let (changes, revision) = self
            .db
            .read(move |c| -> Result<_, KvError> {
                let fail = Db::error(&path);
                let (revision, oldest) = (
                    meta(c, "revision").map_err(&fail)?,
                    meta(c, "compacted").map_err(&fail)?,
                );
                // `after` beyond the present: this file was restored from a backup since the caller looked.
                if after < oldest || after > revision {
                    return Err(KvError::Compacted { after, oldest });
                }
                let mut query = c
                    .prepare_cached(
                        "SELECT revision, key, value FROM changes
                         WHERE revision > ?1 AND (?2 IS NULL OR (revision, key) > (?1 + 1, ?2))
                         ORDER BY revision, key LIMIT ?3",
                    )
                    .map_err(&fail)?;
                let rows = query
                    .query_map(params![signed(after), key, WATCH_BATCH as i64], change)
                    .map_err(&fail)?;
                let changes: Vec<Change> = rows.collect::<Result<_, _>>().map_err(&fail)?;
                Ok((changes, revision))
            })
            .await?;
        let full = changes.len() == WATCH_BATCH;
        self.at = match changes.last() {
            // Maybe the middle of a commit: go on behind this key of this revision.
            Some(last) if full => (last.revision - 1, Some(last.key.clone())),
            // All seen; being at the present keeps an idle watch from being overtaken by compaction.
            _ => (revision, None),
        };
        self.ready.extend(
            changes
                .into_iter()
                .filter(|c| self.prefixes.iter().any(|p| c.key.starts_with(p.as_str()))),
        );
        Ok(full)
    }
}

fn apply(c: &Connection, path: &Path, txn: &Txn, keep: u64) -> Result<u64, KvError> {
    let fail = Db::error(path);
    let now = now_ms();
    for (key, want) in &txn.expect {
        let have: Option<i64> = c
            .prepare_cached("SELECT revision FROM kv WHERE key = ?1 AND (expires_ms IS NULL OR expires_ms > ?2)")
            .and_then(|mut q| q.query_row(params![key, now], |r| r.get(0)).optional())
            .map_err(&fail)?;
        if have.map(unsigned) != *want {
            return Err(KvError::Conflict { key: key.clone() });
        }
    }
    let revision = meta(c, "revision").map_err(&fail)? + 1;
    set_meta(c, "revision", revision).map_err(&fail)?;
    for op in &txn.ops {
        match op {
            Op::Put { key, value, ttl } => {
                let expires = ttl
                    .map(|t| now.saturating_add(i64::try_from(t.as_millis()).unwrap_or(i64::MAX)));
                c.prepare_cached("INSERT OR REPLACE INTO kv (key, value, revision, expires_ms) VALUES (?1, ?2, ?3, ?4)")
                    .and_then(|mut q| q.execute(params![key, value, signed(revision), expires]))
                    .and_then(|_| record(c, revision, key, Some(value)))
                    .map_err(&fail)?;
            }
            Op::Delete { key } => {
                let deleted = c
                    .prepare_cached("DELETE FROM kv WHERE key = ?1")
                    .and_then(|mut q| q.execute([key]));
                if deleted.map_err(&fail)? > 0 {
                    record(c, revision, key, None).map_err(&fail)?;
                }
            }
        }
    }
    if revision % COMPACT_EVERY.min(keep.max(1)) == 0 && revision > keep {
        let oldest = revision - keep;
        c.execute("DELETE FROM changes WHERE revision <= ?1", [signed(oldest)])
            .and_then(|_| set_meta(c, "compacted", oldest))
            .map_err(&fail)?;
    }
    Ok(revision)
}

fn record(
    c: &Connection,
    revision: u64,
    key: &str,
    value: Option<&Vec<u8>>,
) -> rusqlite::Result<usize> {
    c.prepare_cached("INSERT OR REPLACE INTO changes (revision, key, value) VALUES (?1, ?2, ?3)")?
        .execute(params![signed(revision), key, value])
}

async fn sweep_forever(db: Db, keep: u64) {
    let mut tick = tokio::time::interval(SWEEP_EVERY);
    loop {
        tick.tick().await;
        if let Err(e) = sweep(&db, keep).await {
            tracing::warn!("cannot remove expired keys: {e}");
        }
    }
}

/// Looks before it writes: most sweeps find nothing and must cost no fsync.
async fn sweep(db: &Db, keep: u64) -> Result<(), KvError> {
    let path = db.path().to_owned();
    let expired = move |c: &Connection, path: PathBuf| -> Result<Vec<String>, KvError> {
        let fail = Db::error(&path);
        let mut query = c
            .prepare_cached("SELECT key FROM kv WHERE expires_ms <= ?1")
            .map_err(&fail)?;
        let rows = query.query_map([now_ms()], |r| r.get(0)).map_err(&fail)?;
        rows.map(|r| r.map_err(|e| fail(e).into())).collect()
    };
    let again = path.clone();
    if db.read(move |c| expired(c, path)).await?.is_empty() {
        return Ok(());
    }
    db.write(move |c| {
        // Asked again inside the transaction: a key may have been written anew meanwhile.
        let txn = expired(c, again.clone())?
            .into_iter()
            .fold(Txn::new(), Txn::delete);
        apply(c, &again, &txn, keep)
    })
    .await?;
    Ok(())
}

fn meta(c: &Connection, name: &str) -> rusqlite::Result<u64> {
    c.prepare_cached("SELECT value FROM meta WHERE name = ?1")?
        .query_row([name], |r| r.get(0))
        .map(unsigned)
}

fn set_meta(c: &Connection, name: &str, value: u64) -> rusqlite::Result<usize> {
    c.prepare_cached("UPDATE meta SET value = ?2 WHERE name = ?1")?
        .execute(params![name, signed(value)])
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        key: row.get(0)?,
        value: row.get(1)?,
        revision: unsigned(row.get(2)?),
    })
}

fn change(row: &Row<'_>) -> rusqlite::Result<Change> {
    Ok(Change {
        revision: unsigned(row.get(0)?),
        key: row.get(1)?,
        value: row.get(2)?,
    })
}

/// The first key behind all that start with `prefix`. Keys are ASCII, so the last byte never overflows.
fn end_of(prefix: &str) -> String {
    let mut end: String = prefix
        .chars()
        .take(prefix.chars().count().saturating_sub(1))
        .collect();
    end.push(prefix.chars().last().map_or('\u{7f}', |c| {
        char::from_u32(c as u32 + 1).unwrap_or('\u{7f}')
    }));
    end
}

fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

// SQLite knows signed integers only; revisions stay far below either bound.
fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}
