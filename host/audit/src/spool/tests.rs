//! What was acknowledged is never lost, whatever happens to process and disk.

use super::*;
use proptest::prelude::*;
use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

const LARGE: u64 = 64 << 20;

fn private_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    dir
}

fn numbered(n: usize) -> Event {
    Event::new("test").with("n", n)
}

fn number(event: &Event) -> usize {
    event.fields["n"].as_u64().unwrap() as usize
}

fn read(json: &str) -> Event {
    serde_json::from_str(json).unwrap()
}

async fn open(dir: &Path) -> (Spool, Emitter) {
    Spool::open(dir, LARGE).await.unwrap()
}

/// Delivers everything that waits, and returns it.
async fn drain(spool: Spool, emitter: &Emitter) -> Vec<Event> {
    let (sender, mut receiver) = mpsc::channel(1 << 16);
    let delivery = spool.deliver(move |batch| {
        assert!(!batch.is_empty() && batch.len() <= 256);
        batch
            .iter()
            .for_each(|event| sender.try_send(read(event)).unwrap());
        std::future::ready(Ok(()))
    });
    tokio::select! {
        () = delivery => panic!("delivery ended by itself"),
        () = emitter.drained() => {}
    }
    let mut events = Vec::new();
    while let Ok(event) = receiver.try_recv() {
        events.push(event);
    }
    events
}

async fn reopened(dir: &Path) -> Vec<Event> {
    let (spool, emitter) = open(dir).await;
    drain(spool, &emitter).await
}

fn segments(dir: &Path) -> Vec<std::path::PathBuf> {
    let files = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files
        .filter(|p| p.extension().is_some_and(|e| e == "jsonl"))
        .collect();
    files.sort();
    files
}

#[tokio::test]
async fn events_arrive_in_order_and_their_files_go() {
    let dir = private_dir();
    let (spool, emitter) = open(dir.path()).await;
    for n in 0..50 {
        emitter.emit(numbered(n)).await.unwrap();
    }
    assert_eq!(emitter.state().events, 50);
    for n in 50..2000 {
        emitter.emit_later(numbered(n));
        if n % 500 == 0 {
            emitter.flush().await.unwrap();
        }
    }
    let delivered = drain(spool, &emitter).await;
    assert!(delivered.iter().map(number).eq(0..2000));
    assert_eq!(emitter.state().events, 0);
    drop(emitter);
    assert!(reopened(dir.path()).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_at_once() {
    let dir = private_dir();
    let (spool, emitter) = open(dir.path()).await;
    let tasks = (0..100).map(|task| {
        let emitter = emitter.clone();
        tokio::spawn(async move {
            for n in 0..10 {
                emitter.emit(numbered(task * 10 + n)).await.unwrap();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let delivered: Vec<_> = drain(spool, &emitter).await.iter().map(number).collect();
    assert_eq!(delivered.iter().collect::<BTreeSet<_>>().len(), 1000);
    assert_eq!(delivered.len(), 1000);
    for task in 0..100 {
        let mine: Vec<_> = delivered.iter().filter(|n| *n / 10 == task).collect();
        assert!(mine.is_sorted(), "{mine:?}");
    }
}

#[tokio::test]
async fn private_and_for_one_process() {
    let dir = private_dir();
    let path = dir.path().join("spool");
    let (_spool, emitter) = open(&path).await;
    emitter.emit(numbered(1)).await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&segments(&path)[0]), 0o600);
    assert_eq!(mode(&path.join("lock")), 0o600);

    // Waits for the first one to end, in vain.
    let message = Spool::open(&path, LARGE).await.err().unwrap().to_string();
    assert!(message.contains("another process has it open"), "{message}");

    fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).unwrap();
    let message = Spool::open(&path, LARGE).await.err().unwrap().to_string();
    assert!(message.contains("mode 0750); run: chmod 700"), "{message}");
}

#[tokio::test]
async fn a_kill_at_any_byte_of_a_write_loses_nothing_acknowledged() {
    let dir = private_dir();
    let (spool, emitter) = open(dir.path()).await;
    for n in 0..3 {
        emitter.emit(numbered(n)).await.unwrap();
    }
    drop((spool, emitter));
    let mut torn = serde_json::to_vec(&numbered(3).with("text", "zwölf\n")).unwrap();
    torn.push(b'\n');
    for length in 0..=torn.len() {
        let copy = private_dir();
        for segment in segments(dir.path()) {
            fs::copy(&segment, copy.path().join(segment.file_name().unwrap())).unwrap();
        }
        let last = segments(copy.path()).pop().unwrap();
        fs::OpenOptions::new()
            .append(true)
            .open(last)
            .unwrap()
            .write_all(&torn[..length])
            .unwrap();
        let (spool, emitter) = open(copy.path()).await;
        emitter.emit(numbered(9)).await.unwrap();
        let got: Vec<_> = drain(spool, &emitter).await.iter().map(number).collect();
        let whole = length == torn.len();
        assert_eq!(
            got,
            if whole {
                vec![0, 1, 2, 3, 9]
            } else {
                vec![0, 1, 2, 9]
            },
            "cut at {length}"
        );
    }
}

#[tokio::test]
async fn lost_acknowledgements_only_repeat() {
    let dir = private_dir();
    let (spool, emitter) = open(dir.path()).await;
    for n in 0..600 {
        emitter.emit_later(numbered(n));
    }
    emitter.flush().await.unwrap();
    let (sender, mut receiver) = mpsc::channel(1 << 16);
    let calls = AtomicUsize::new(0);
    let delivery = spool.deliver(|batch| {
        // Stored, but the answer to every second call is lost.
        batch
            .iter()
            .for_each(|event| sender.try_send(read(event)).unwrap());
        let lost = calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
        std::future::ready(if lost {
            Err("connection reset".to_owned())
        } else {
            Ok(())
        })
    });
    tokio::select! {
        () = delivery => unreachable!(),
        () = emitter.drained() => {}
    }
    let (mut seen, mut first) = (BTreeSet::new(), Vec::new());
    let mut all = 0;
    while let Ok(event) = receiver.try_recv() {
        all += 1;
        if seen.insert(event.uid.clone()) {
            first.push(number(&event));
        }
    }
    assert!(all > 600, "something was repeated");
    assert!(first.into_iter().eq(0..600));
}

#[tokio::test]
async fn without_its_cursor_everything_is_delivered_again() {
    let dir = private_dir();
    let (spool, emitter) = open(dir.path()).await;
    for n in 0..10 {
        emitter.emit(numbered(n)).await.unwrap();
    }
    drop(drain(spool, &emitter).await);
    emitter.emit(numbered(10)).await.unwrap();
    drop(emitter);
    for content in ["", "{\"segm", "{\"segment\":\"x\"}"] {
        fs::write(dir.path().join("cursor"), content).unwrap();
        let (spool, emitter) = open(dir.path()).await;
        assert_eq!(emitter.state().events, 11);
        drop((spool, emitter));
    }
    assert_eq!(reopened(dir.path()).await.len(), 11);
}

#[tokio::test]
async fn damage_in_the_middle_costs_only_that_event() {
    let dir = private_dir();
    let (spool, emitter) = open(dir.path()).await;
    for n in 0..5 {
        emitter.emit(numbered(n)).await.unwrap();
    }
    drop((spool, emitter));
    let file = segments(dir.path()).remove(0);
    let mut bytes = fs::read(&file).unwrap();
    let third = bytes
        .iter()
        .enumerate()
        .filter(|(_, b)| **b == b'\n')
        .map(|(n, _)| n)
        .nth(1)
        .unwrap();
    bytes[third + 1..third + 20].fill(0);
    fs::write(&file, bytes).unwrap();
    let got: Vec<_> = reopened(dir.path()).await.iter().map(number).collect();
    assert_eq!(got, [0, 1, 3, 4]);
}

#[tokio::test]
async fn a_full_spool_says_so_and_goes_on_when_there_is_room() {
    let dir = private_dir();
    let (spool, emitter) = Spool::open(dir.path(), 20_000).await.unwrap();
    let mut kept = Vec::new();
    let refused = loop {
        match emitter.emit(numbered(kept.len())).await {
            Ok(()) => kept.push(kept.len()),
            Err(e) => break e.to_string(),
        }
    };
    assert!(
        refused.contains("full:") && refused.contains("20000 bytes"),
        "{refused}"
    );
    assert!(kept.len() > 100 && emitter.state().bytes <= 20_000);
    // Needs no answer, so it waits for room.
    emitter.emit_later(numbered(kept.len()));
    kept.push(kept.len());
    assert!(emitter.flush().await.is_err());
    let (sender, mut receiver) = mpsc::channel(1 << 16);
    let delivery = tokio::spawn(spool.deliver(move |batch| {
        batch
            .iter()
            .for_each(|event| sender.try_send(read(event)).unwrap());
        std::future::ready(Ok(()))
    }));
    let mut got = Vec::new();
    while got.len() < kept.len() {
        got.push(number(&receiver.recv().await.unwrap()));
    }
    assert_eq!(got, kept);
    // Far more than fits at once, now that it is delivered meanwhile.
    for some in 0..20 {
        let some = some * 50..some * 50 + 50;
        for n in some.clone() {
            while emitter.emit(numbered(n)).await.is_err() {
                tokio::task::yield_now().await;
            }
        }
        for n in some {
            assert_eq!(number(&receiver.recv().await.unwrap()), n);
        }
    }
    delivery.abort();
}

#[tokio::test]
async fn a_disk_that_fills_up() {
    let dir = private_dir();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs"])
        .arg(dir.path())
        .output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: mounting a small tmpfs needs root");
        return;
    }
    struct Unmount<'p>(&'p Path);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount")
                .arg("-l")
                .arg(self.0)
                .status();
        }
    }
    let _unmount = Unmount(dir.path());
    let path = dir.path().join("spool");
    let (spool, emitter) = open(&path).await;
    let mut kept = 0;
    let refused = loop {
        match emitter.emit(numbered(kept)).await {
            Ok(()) => kept += 1,
            Err(e) => break e.to_string(),
        }
    };
    assert!(refused.contains("the disk is full"), "{refused}");
    assert!(kept > 50, "{kept}");
    // Still full, still said, nothing torn.
    assert!(emitter.emit(numbered(usize::MAX)).await.is_err());
    drop((spool, emitter));
    let (spool, emitter) = open(&path).await;
    let got: Vec<_> = drain(spool, &emitter).await.iter().map(number).collect();
    assert!(got.into_iter().eq(0..kept));
    emitter.emit(numbered(1)).await.unwrap();
}

#[tokio::test]
async fn what_is_too_large_is_cut_and_kept() {
    let dir = private_dir();
    let (spool, emitter) = open(dir.path()).await;
    let event = Event::new("test").with("list", vec!["x".repeat(10_000); 50]);
    emitter.emit(event.clone()).await.unwrap();
    emitter.emit_later(event.clone());
    let got = drain(spool, &emitter).await;
    assert_eq!(got, [event.clone().fitted(), event.fitted()]);
}

/// A batch as the message that carries it: what Auth refuses would be sent again for ever.
#[tokio::test]
async fn batches_stay_below_the_limit_of_a_message() {
    const MESSAGE: usize = 1 << 20;
    for line in [300, 2_048, 4_096, 16_384, 65_000] {
        let dir = private_dir();
        let (spool, emitter) = open(dir.path()).await;
        let empty = serde_json::to_string(&Event::new("test").with("a", [""; 8])).unwrap();
        let text = "x".repeat((line - empty.len() - 1) / 8);
        let written = (3 << 20) / line;
        let events = (0..written).map(|_| emitter.emit(Event::new("test").with("a", [&text; 8])));
        assert!(
            futures::future::join_all(events)
                .await
                .iter()
                .all(Result::is_ok)
        );
        let got = Arc::new(AtomicUsize::new(0));
        let count = got.clone();
        let delivery = spool.deliver(move |batch| {
            let framed = batch.iter().map(|e| e.len() + 6);
            let framed: usize = framed.sum();
            count.fetch_add(batch.len(), Ordering::SeqCst);
            assert!(framed <= MESSAGE / 2 + 6 * BATCH, "{line}: {framed}");
            std::future::ready(Ok(()))
        });
        tokio::select! {
            () = delivery => panic!("delivery ended by itself"),
            () = emitter.drained() => {}
        }
        assert_eq!(got.load(Ordering::SeqCst), written);
    }
}

#[tokio::test]
async fn the_writer_ends_with_the_last_of_its_users() {
    let dir = private_dir();
    let (spool, emitter) = open(dir.path()).await;
    let also = emitter.clone();
    let mut progress = spool.progress.clone();
    drop((spool, emitter));
    also.emit(numbered(1)).await.unwrap();
    drop(also);
    while progress.changed().await.is_ok() {}
}

#[test]
fn waits_are_from_a_fifth_of_a_second_to_eight() {
    for attempt in 0..100 {
        let wait = backoff(attempt);
        assert!(
            wait >= BACKOFF.0 && wait <= BACKOFF.1,
            "{attempt}: {wait:?}"
        );
    }
    assert!(backoff(20) >= BACKOFF.1 / 2);
}

/// What may happen to a spool.
#[derive(Debug, Clone)]
enum Step {
    /// Emit so many, acknowledged.
    Emit(usize),
    /// Deliver so many batches, then the process dies; the last answer may be lost.
    Deliver { batches: usize, lost: bool },
    /// The process dies with so many bytes of an unacknowledged event written.
    Kill { torn: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1usize..400).prop_map(Step::Emit),
        2 => (1usize..4, any::<bool>()).prop_map(|(batches, lost)| Step::Deliver { batches, lost }),
        1 => (0usize..60).prop_map(|torn| Step::Kill { torn }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_history_loses_nothing(steps in prop::collection::vec(step(), 1..12)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = private_dir();
            // Small, so that there are many segments.
            let open = async || Spool::open(dir.path(), 1 << 20).await.unwrap();
            let (mut spool, mut emitter) = open().await;
            let mut emitted = 0;
            let stored = Arc::new(std::sync::Mutex::new(Vec::new()));
            for step in steps {
                match step {
                    Step::Emit(count) => {
                        for n in emitted..emitted + count {
                            emitter.emit_later(numbered(n));
                        }
                        emitter.flush().await.unwrap();
                        emitted += count;
                    }
                    Step::Deliver { batches, lost } => {
                        let (done, mut finished) = mpsc::channel(1);
                        let (store, mut left) = (stored.clone(), batches);
                        let delivery = spool.deliver(move |batch| {
                            store.lock().unwrap().extend(batch.iter().map(|e| number(&read(e))));
                            // A batch more may begin before the end is noticed.
                            left = usize::saturating_sub(left, 1);
                            let last = left == 0;
                            if last {
                                let _ = done.try_send(());
                            }
                            let lost = last && lost;
                            async move { if lost { std::future::pending().await } else { Ok(()) } }
                        });
                        tokio::select! {
                            () = delivery => {}
                            _ = finished.recv() => {}
                            () = emitter.drained() => {}
                        }
                        drop(emitter);
                        (spool, emitter) = open().await;
                    }
                    Step::Kill { torn } => {
                        drop((spool, emitter));
                        drop(open().await); // the writer has let go
                        let bytes = serde_json::to_vec(&numbered(0)).unwrap();
                        if let Some(last) = segments(dir.path()).pop() {
                            let mut file = fs::OpenOptions::new().append(true).open(last).unwrap();
                            file.write_all(&bytes[..torn.min(bytes.len())]).unwrap();
                        }
                        (spool, emitter) = open().await;
                    }
                }
            }
            let rest = drain(spool, &emitter).await;
            let mut stored = stored.lock().unwrap();
            stored.extend(rest.iter().map(number));
            let mut seen = BTreeSet::new();
            let first: Vec<_> = stored.iter().copied().filter(|n| seen.insert(*n)).collect();
            assert!(first.iter().copied().eq(0..emitted), "{} of {emitted}", first.len());
        });
    }
}

#[tokio::test]
async fn queued_events_are_written_in_order_and_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let (_spool, emitter) = Spool::open(&dir.path().join("spool"), 1 << 20)
        .await
        .unwrap();
    let mut pending = Vec::new();
    for n in 0..2000 {
        let event = Event::new("db.session.query").with("n", n);
        pending.push(emitter.queue(event).await.unwrap());
    }
    // Whoever waits for a later one has all before it.
    emitter.emit(Event::new("last")).await.unwrap();
    for mut one in pending {
        assert!(matches!(one.poll(), Some(Ok(()))));
    }
    let mut files: Vec<_> = std::fs::read_dir(dir.path().join("spool"))
        .unwrap()
        .map(|f| f.unwrap().path())
        .filter(|f| f.extension().is_some_and(|e| e == "jsonl"))
        .collect();
    files.sort();
    let lines: String = files
        .iter()
        .map(|f| fs::read_to_string(f).unwrap())
        .collect();
    let events = lines.lines().map(|l| serde_json::from_str(l).unwrap());
    let numbers: Vec<usize> = events
        .filter(|e: &Event| e.event != "last")
        .map(|e| number(&e))
        .collect();
    assert!(numbers == (0..2000).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_queued_event_that_finds_no_room_is_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let (_spool, emitter) = Spool::open(&dir.path().join("spool"), 4096).await.unwrap();
    let mut failed = 0;
    for n in 0..100 {
        let event = Event::new("db.session.query").with("n", n);
        let pending = emitter.queue(event).await.unwrap();
        failed += usize::from(pending.durable().await.is_err());
    }
    assert!(failed > 0);
}

#[tokio::test]
async fn a_flood_of_queued_events_leaves_room_for_those_that_do_not_wait() {
    let dir = private_dir();
    let (_spool, emitter) = open(&dir.path().join("spool")).await;
    // On one thread: the writer gets its turn only where this waits.
    let mut flood = Vec::new();
    let more = async {
        loop {
            flood.push(emitter.queue(numbered(1)).await.unwrap());
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(1), more).await;
    for n in 0..100 {
        emitter.emit_later(Event::new("kept").with("n", n));
    }
    emitter.flush().await.unwrap();
    let files = fs::read_dir(dir.path().join("spool")).unwrap();
    let kept: usize = files
        .map(|f| f.unwrap().path())
        .filter(|f| f.extension().is_some_and(|e| e == "jsonl"))
        .map(|f| fs::read_to_string(f).unwrap().matches("\"kept\"").count())
        .sum();
    assert_eq!(kept, 100);
}
