//! The contract of [`Kv`], on SQLite.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tempfile::TempDir;

use super::{Change, Kv, KvError, KvExt, SharedKv, SqliteKv, Txn};

async fn open() -> (TempDir, SharedKv) {
    let dir = tempfile::tempdir().unwrap();
    let (kv, _) = SqliteKv::open(&dir.path().join("kv.db")).await.unwrap();
    (dir, Arc::new(kv))
}

#[tokio::test]
async fn transactions_hold_or_change_nothing() {
    let (_dir, kv) = open().await;
    let first = kv.put("/a/1", b"one".to_vec()).await.unwrap();
    let txn = Txn::new()
        .expect("/a/1", Some(first))
        .expect("/a/2", None)
        .put("/a/2", b"two".to_vec())
        .delete("/a/1");
    let second = kv.commit(txn.clone()).await.unwrap();
    assert!(second > first);
    assert!(matches!(kv.commit(txn).await, Err(KvError::Conflict { key }) if key == "/a/1"));
    assert_eq!(kv.get("/a/1").await.unwrap(), None);
    let entry = kv.get("/a/2").await.unwrap().unwrap();
    assert_eq!(
        (entry.value.as_slice(), entry.revision),
        (&b"two"[..], second)
    );
    assert!(matches!(
        kv.compare_and_swap("/a/2", Some(first), vec![]).await,
        Err(KvError::Conflict { .. })
    ));
    kv.compare_and_swap("/a/2", Some(second), b"three".to_vec())
        .await
        .unwrap();
}

#[tokio::test]
async fn of_many_concurrent_swaps_each_revision_is_won_once() {
    let (_dir, kv) = open().await;
    kv.put("/n", b"0".to_vec()).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let kv = kv.clone();
        tasks.spawn(async move {
            loop {
                let entry = kv.get("/n").await.unwrap().unwrap();
                let n: u32 = String::from_utf8(entry.value).unwrap().parse().unwrap();
                match kv
                    .compare_and_swap("/n", Some(entry.revision), (n + 1).to_string().into_bytes())
                    .await
                {
                    Ok(_) => break,
                    Err(KvError::Conflict { .. }) => {}
                    Err(e) => panic!("{e}"),
                }
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(kv.get("/n").await.unwrap().unwrap().value, b"20");
}

#[tokio::test]
async fn a_range_takes_its_prefixes_and_no_neighbours() {
    let (_dir, kv) = open().await;
    for key in [
        "/role/a",
        "/role/b",
        "/role",
        "/rolf",
        "/lock/user:a",
        "/lockx",
    ] {
        kv.put(key, vec![]).await.unwrap();
    }
    let snapshot = kv
        .range(vec!["/role/".into(), "/lock/".into()])
        .await
        .unwrap();
    let keys: Vec<_> = snapshot.entries.iter().map(|e| e.key.as_str()).collect();
    assert_eq!(keys, ["/role/a", "/role/b", "/lock/user:a"]);
    assert_eq!(snapshot.revision, 6);
}

#[tokio::test]
async fn a_watch_misses_nothing_in_order() {
    let (_dir, kv) = open().await;
    kv.put("/w/before", vec![]).await.unwrap();
    let mut watch = kv.watch(vec!["/w/".into()], 1);
    // One commit larger than what a watch reads at once, others beside it.
    let big = (0..700).fold(Txn::new().put("/other", vec![]), |txn, n| {
        txn.put(format!("/w/{n:04}"), vec![])
    });
    let writer = kv.clone();
    let write = async {
        writer.commit(big).await.unwrap();
        writer.put("/x", vec![]).await.unwrap();
        writer.delete("/w/0000").await.unwrap()
    };
    let read = async {
        let mut changes = Vec::new();
        while changes.len() < 701 {
            changes.push(watch.next().await.unwrap().unwrap());
        }
        changes
    };
    let (last, changes) = tokio::join!(write, read);
    let keys: Vec<_> = changes[..700].iter().map(|c| c.key.clone()).collect();
    assert_eq!(
        keys,
        (0..700).map(|n| format!("/w/{n:04}")).collect::<Vec<_>>()
    );
    assert_eq!(
        changes[700],
        Change {
            revision: last,
            key: "/w/0000".into(),
            value: None
        }
    );
}

#[tokio::test]
async fn a_watch_from_a_forgotten_revision_has_to_list_again() {
    let dir = tempfile::tempdir().unwrap();
    let (kv, _) = SqliteKv::open_keeping(&dir.path().join("kv.db"), 10)
        .await
        .unwrap();
    let mut idle = kv.watch(vec!["/nothing/".into()], 0);
    assert!(futures::poll!(idle.next()).is_pending());
    for n in 0..30 {
        kv.put("/k", vec![n]).await.unwrap();
        let _ = futures::poll!(idle.next());
    }
    let late = kv.watch(vec!["/k".into()], 3).next().await.unwrap();
    assert!(
        matches!(
            late,
            Err(KvError::Compacted {
                after: 3,
                oldest: 20
            })
        ),
        "{late:?}"
    );
    let future = kv.watch(vec!["/k".into()], 1000).next().await.unwrap();
    assert!(matches!(future, Err(KvError::Compacted { .. })));
    let recent: Vec<_> = kv.watch(vec!["/k".into()], 25).take(5).collect().await;
    assert_eq!(
        recent.last().unwrap().as_ref().unwrap().value,
        Some(vec![29])
    );
}

#[tokio::test]
async fn keys_expire_visibly() {
    let (_dir, kv) = open().await;
    let mut watch = kv.watch(vec!["/l/".into()], 0);
    kv.commit(Txn::new().put_for("/l/short", vec![1], Duration::from_millis(50)))
        .await
        .unwrap();
    kv.commit(Txn::new().put_for("/l/renewed", vec![1], Duration::from_millis(50)))
        .await
        .unwrap();
    kv.put("/l/renewed", vec![2]).await.unwrap();
    for _ in 0..3 {
        assert!(watch.next().await.unwrap().unwrap().value.is_some());
    }
    let expired = tokio::time::timeout(Duration::from_secs(5), watch.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!((expired.key.as_str(), expired.value), ("/l/short", None));
    assert_eq!(kv.get("/l/short").await.unwrap(), None);
    // Gone, so that it can be created anew.
    kv.compare_and_swap("/l/short", None, vec![]).await.unwrap();
    assert!(kv.get("/l/renewed").await.unwrap().is_some());
}

#[tokio::test]
async fn a_store_that_closes_ends_its_watches() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kv.db");
    let (kv, threads) = SqliteKv::open(&path).await.unwrap();
    kv.put("/a", vec![7]).await.unwrap();
    drop(kv);
    tokio::time::timeout(
        Duration::from_secs(10),
        tokio::task::spawn_blocking(|| threads.join()),
    )
    .await
    .unwrap()
    .unwrap();
    let (kv, _) = SqliteKv::open(&path).await.unwrap();
    assert_eq!(kv.get("/a").await.unwrap().unwrap().value, [7]);
    assert_eq!(kv.put("/b", vec![]).await.unwrap(), 2, "revisions go on");
}
