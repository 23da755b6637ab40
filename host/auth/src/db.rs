//! One SQLite file: a thread that owns the only writing connection, and one that owns the reading connection.
//!
//! Jobs reach them over bounded channels. What has queued up while the disk was busy is committed together (group
//! commit): an fsync costs the same for one join as for a hundred. A job that fails is rolled back alone, by a
//! savepoint; nobody is answered before the commit that holds his change is on disk (WAL, `synchronous=FULL`).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};
use tokio::sync::{mpsc, oneshot, watch};

/// Jobs that may wait; senders wait beyond that.
const QUEUE: usize = 256;
/// Jobs committed together at most.
const BATCH: usize = 128;

/// The database failed. Worded for the operator; the same for everybody who was in the batch.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{path}: {why}")]
pub struct DbError {
    pub path: PathBuf,
    pub why: String,
}

impl DbError {
    fn new(path: &Path, e: &rusqlite::Error) -> Self {
        let why = match e.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => {
                "the disk is full; nothing was changed: free some space".to_owned()
            }
            Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                format!(
                    "cannot be written ({e}): check the owner and mode of the file and its directory"
                )
            }
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                format!(
                    "is damaged ({e}): stop the Auth Service and restore the file from a backup"
                )
            }
            _ => e.to_string(),
        };
        DbError {
            path: path.to_owned(),
            why,
        }
    }

    fn closed(path: &Path) -> Self {
        DbError {
            path: path.to_owned(),
            why: "is closed, because the Auth Service is stopping".to_owned(),
        }
    }
}

/// Told after the batch was committed, or was not.
type Done = Box<dyn FnOnce(Result<(), DbError>) + Send>;
type WriteJob = Box<dyn FnOnce(Result<&mut Transaction<'_>, DbError>) -> Option<Done> + Send>;
type ReadJob = Box<dyn FnOnce(&mut Connection) + Send>;

/// Handle of an open database. Cheap to clone; the threads end when the last clone is dropped.
#[derive(Clone)]
pub struct Db {
    path: PathBuf,
    write: mpsc::Sender<WriteJob>,
    read: mpsc::Sender<ReadJob>,
    committed: watch::Receiver<u64>,
}

/// The threads of a [`Db`]; they end once every handle is dropped.
pub struct Threads(Vec<JoinHandle<()>>);

impl Threads {
    /// Waits for the threads; blocking.
    pub fn join(self) {
        for thread in self.0 {
            // A panic of the thread was printed when it happened.
            let _ = thread.join();
        }
    }
}

impl Db {
    /// Opens or creates the file (0600) and runs `schema`, which must be idempotent. Blocking.
    pub fn open(path: &Path, schema: &str) -> Result<(Db, Threads), DbError> {
        let fail = |e: rusqlite::Error| DbError::new(path, &e);
        let io = |e: std::io::Error| DbError {
            path: path.to_owned(),
            why: e.to_string(),
        };
        // Before SQLite creates it by the umask; -wal and -shm take over the mode of the database.
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(io)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o600))
            .map_err(io)?;
        drop(file);

        let writer = Connection::open(path).map_err(fail)?;
        writer.busy_timeout(Duration::from_secs(5)).map_err(fail)?;
        writer
            .pragma_update(None, "journal_mode", "WAL")
            .map_err(fail)?;
        writer
            .pragma_update(None, "synchronous", "FULL")
            .map_err(fail)?;
        writer.execute_batch(schema).map_err(fail)?;
        let reader = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )
        .map_err(fail)?;
        reader.busy_timeout(Duration::from_secs(5)).map_err(fail)?;

        let (write, write_rx) = mpsc::channel(QUEUE);
        let (read, read_rx) = mpsc::channel(QUEUE);
        let (committed_tx, committed) = watch::channel(0);
        let owned = path.to_owned();
        let spawn = |name: &str, f: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(f)
        };
        let threads = vec![
            spawn(
                "auth-db-write",
                Box::new(move || write_loop(writer, write_rx, &committed_tx, &owned)),
            )
            .map_err(io)?,
            spawn("auth-db-read", Box::new(move || read_loop(reader, read_rx))).map_err(io)?,
        ];
        Ok((
            Db {
                path: path.to_owned(),
                write,
                read,
                committed,
            },
            Threads(threads),
        ))
    }

    /// Runs `f` in the writer's transaction and returns when it is on disk. An `Err` of `f` undoes what it did.
    pub async fn write<T, E>(
        &self,
        f: impl FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        let (tx, rx) = oneshot::channel::<Result<T, E>>();
        let path = self.path.clone();
        let job: WriteJob = Box::new(move |batch| {
            let result = batch.map_err(E::from).and_then(|batch| {
                let savepoint = batch.savepoint().map_err(|e| DbError::new(&path, &e))?;
                let value = f(&savepoint)?;
                savepoint.commit().map_err(|e| DbError::new(&path, &e))?;
                Ok(value)
            });
            match result {
                Ok(value) => Some(Box::new(move |committed| {
                    let _ = tx.send(committed.map(|()| value).map_err(E::from));
                })),
                Err(e) => {
                    let _ = tx.send(Err(e));
                    None
                }
            }
        });
        let closed = || E::from(DbError::closed(&self.path));
        self.write.send(job).await.map_err(|_| closed())?;
        rx.await.map_err(|_| closed())?
    }

    /// Runs `f` on the reading connection, which sees what is committed.
    pub async fn read<T, E>(
        &self,
        f: impl FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        let (tx, rx) = oneshot::channel::<Result<T, E>>();
        let path = self.path.clone();
        let job: ReadJob = Box::new(move |connection| {
            // One transaction, so that several queries see the same state.
            let result = connection
                .transaction()
                .map_err(|e| E::from(DbError::new(&path, &e)))
                .and_then(|t| f(&t));
            let _ = tx.send(result);
        });
        let closed = || E::from(DbError::closed(&self.path));
        self.read.send(job).await.map_err(|_| closed())?;
        rx.await.map_err(|_| closed())?
    }

    /// Changes with every commit; ends when the database closes.
    pub fn committed(&self) -> watch::Receiver<u64> {
        self.committed.clone()
    }

    /// For errors of queries inside [`Db::write`] and [`Db::read`].
    pub fn error(path: &Path) -> impl Fn(rusqlite::Error) -> DbError + '_ {
        move |e| DbError::new(path, &e)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn write_loop(
    mut db: Connection,
    mut jobs: mpsc::Receiver<WriteJob>,
    committed: &watch::Sender<u64>,
    path: &Path,
) {
    while let Some(first) = jobs.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(job) = jobs.try_recv()
        {
            batch.push(job);
        }
        let mut waiting = Vec::with_capacity(batch.len());
        let result = match db.transaction_with_behavior(TransactionBehavior::Immediate) {
            Ok(mut transaction) => {
                waiting.extend(
                    batch
                        .into_iter()
                        .filter_map(|job| job(Ok(&mut transaction))),
                );
                transaction.commit().map_err(|e| DbError::new(path, &e))
            }
            Err(e) => {
                let error = DbError::new(path, &e);
                for job in batch {
                    job(Err(error.clone()));
                }
                Err(error)
            }
        };
        if let Err(e) = &result {
            tracing::error!(path = %e.path.display(), "cannot commit: {}", e.why);
        } else if !waiting.is_empty() {
            committed.send_modify(|n| *n += 1);
        }
        for done in waiting {
            done(result.clone());
        }
    }
}

fn read_loop(mut db: Connection, mut jobs: mpsc::Receiver<ReadJob>) {
    while let Some(job) = jobs.blocking_recv() {
        job(&mut db);
    }
}

/// Keeps a second Auth Service out of the same directory: the watches would not see its changes.
pub fn lock_dir(dir: &Path) -> Result<File, DbError> {
    let path = dir.join("lock");
    let fail = |why: String| DbError {
        path: path.clone(),
        why,
    };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|e| fail(e.to_string()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(fail(
            "is held by another Auth Service on this data directory; stop it first".into(),
        )),
        Err(std::fs::TryLockError::Error(e)) => Err(fail(e.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS t (k INTEGER PRIMARY KEY, v BLOB);";

    async fn put(db: &Db, k: i64, bytes: usize) -> Result<(), DbError> {
        let path = db.path().to_owned();
        db.write(move |c| {
            c.execute(
                "INSERT INTO t VALUES (?1, zeroblob(?2))",
                rusqlite::params![k, bytes],
            )
            .map(|_| ())
            .map_err(|e| DbError::new(&path, &e))
        })
        .await
    }

    async fn count(db: &Db) -> i64 {
        db.read(|c| {
            c.query_row("SELECT count(*) FROM t", [], |r| r.get(0))
                .map_err(|e| DbError::new(Path::new("t"), &e))
        })
        .await
        .unwrap()
    }

    #[tokio::test]
    async fn one_failed_job_undoes_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        let (db, _) = Db::open(&dir.path().join("t.db"), SCHEMA).unwrap();
        let jobs = (0..100).map(|n| put(&db, n / 2, 10));
        let results = futures::future::join_all(jobs).await;
        assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 50);
        assert_eq!(count(&db).await, 50);
    }

    #[tokio::test]
    async fn a_full_disk_is_said_and_lasts_no_longer_than_itself() {
        let dir = tempfile::tempdir().unwrap();
        let schema = format!("PRAGMA max_page_count = 40; {SCHEMA}");
        let (db, _) = Db::open(&dir.path().join("t.db"), &schema).unwrap();
        put(&db, 1, 10_000).await.unwrap();
        let full = put(&db, 2, 500_000).await.unwrap_err().to_string();
        assert!(
            full.contains("t.db: the disk is full; nothing was changed"),
            "{full}"
        );
        // Also for those who are committed together with the one that did not fit.
        let (small, large) = tokio::join!(put(&db, 3, 10), put(&db, 4, 500_000));
        assert!(large.is_err());
        assert_eq!(
            count(&db).await,
            1 + i64::from(small.is_ok()),
            "answered is stored, refused is not"
        );
        put(&db, 5, 10).await.unwrap();
    }
}
