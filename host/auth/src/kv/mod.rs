//! The key-value store behind everything Auth knows (D8), shaped so that etcd can stand in for SQLite: revisions
//! that grow with every commit, transactions that hold only if nothing they looked at changed, keys that expire,
//! and watches that either miss nothing or say that they would (`Compacted`: read all again, then watch).

mod sqlite;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;

use crate::db::DbError;

pub use sqlite::SqliteKv;

/// A key's value, and the revision that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Vec<u8>,
    pub revision: u64,
}

/// All keys under some prefixes, at one revision.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub revision: u64,
    pub entries: Vec<Entry>,
}

/// One changed key; `value: None` where it was deleted or expired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub revision: u64,
    pub key: String,
    pub value: Option<Vec<u8>>,
}

#[derive(Debug, Clone)]
enum Op {
    Put {
        key: String,
        value: Vec<u8>,
        ttl: Option<Duration>,
    },
    Delete {
        key: String,
    },
}

/// Changes that happen together, or not at all.
#[derive(Debug, Clone, Default)]
pub struct Txn {
    expect: Vec<(String, Option<u64>)>,
    ops: Vec<Op>,
}

impl Txn {
    pub fn new() -> Self {
        Self::default()
    }

    /// Holds only if `key` is still at `revision`; `None`: only if it does not exist.
    pub fn expect(mut self, key: impl Into<String>, revision: Option<u64>) -> Self {
        self.expect.push((key.into(), revision));
        self
    }

    pub fn put(mut self, key: impl Into<String>, value: Vec<u8>) -> Self {
        self.ops.push(Op::Put {
            key: key.into(),
            value,
            ttl: None,
        });
        self
    }

    /// The key deletes itself after `ttl` (a change that watches see), unless it is written again.
    pub fn put_for(mut self, key: impl Into<String>, value: Vec<u8>, ttl: Duration) -> Self {
        self.ops.push(Op::Put {
            key: key.into(),
            value,
            ttl: Some(ttl),
        });
        self
    }

    /// This, and then the other, as one.
    pub fn and(mut self, other: Txn) -> Self {
        self.expect.extend(other.expect);
        self.ops.extend(other.ops);
        self
    }

    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.ops.push(Op::Delete { key: key.into() });
        self
    }
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum KvError {
    /// An expectation of a [`Txn`] did not hold; nothing was changed.
    #[error("{key} was changed by somebody else")]
    Conflict { key: String },
    /// The changes since the asked revision are forgotten: list again.
    #[error("the changes since revision {after} are compacted (oldest kept: {oldest})")]
    Compacted { after: u64, oldest: u64 },
    #[error(transparent)]
    Storage(#[from] DbError),
    /// A value that is not what was written there.
    #[error("the value of {key} is not readable: {why}")]
    Corrupt { key: String, why: String },
}

/// See the module. Object safe, so that one Auth Service serves any of them.
pub trait Kv: Send + Sync + 'static {
    /// Values at one revision, in the order of `keys`.
    fn get_many(&self, keys: Vec<String>) -> BoxFuture<'_, Result<Vec<Option<Entry>>, KvError>>;
    /// Everything under `prefixes` at one revision, by key.
    fn range(&self, prefixes: Vec<String>) -> BoxFuture<'_, Result<Snapshot, KvError>>;
    /// Applies all or nothing; returns the new revision, durable.
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<u64, KvError>>;
    /// Every change under `prefixes` after revision `after`, in order. Ends with the store; after an error too.
    fn watch(
        &self,
        prefixes: Vec<String>,
        after: u64,
    ) -> BoxStream<'static, Result<Change, KvError>>;
}

/// What most callers want of a [`Kv`].
pub trait KvExt: Kv {
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<Entry>, KvError>> + Send {
        let read = self.get_many(vec![key.to_owned()]);
        async move { Ok(read.await?.pop().flatten()) }
    }

    fn put(&self, key: &str, value: Vec<u8>) -> impl Future<Output = Result<u64, KvError>> + Send {
        self.commit(Txn::new().put(key, value))
    }

    /// Writes only if the key is still at `revision` (`None`: does not exist).
    fn compare_and_swap(
        &self,
        key: &str,
        revision: Option<u64>,
        value: Vec<u8>,
    ) -> impl Future<Output = Result<u64, KvError>> + Send {
        self.commit(Txn::new().expect(key, revision).put(key, value))
    }

    fn delete(&self, key: &str) -> impl Future<Output = Result<u64, KvError>> + Send {
        self.commit(Txn::new().delete(key))
    }
}

impl<K: Kv + ?Sized> KvExt for K {}

/// How the rest of the crate holds the store.
pub type SharedKv = Arc<dyn Kv>;
