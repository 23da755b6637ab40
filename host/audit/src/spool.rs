//! The queue on disk between whoever emits events and Auth, which stores them.
//!
//! One writer task owns the directory: append-only segments of JSON lines, fsynced in groups. The
//! delivering side reads what is durable, notes in `cursor` how far it came, and tells the writer,
//! which deletes delivered segments.
//!
//! ```text
//! spool/                     0700
//!   lock                     held by the process that has it open
//!   00000000000000000007.jsonl
//!   cursor                   {"segment":7,"offset":1234}
//! ```

mod reader;
mod segment;
#[cfg(test)]
mod tests;
mod writer;

use crate::event::Event;
use reader::Reader;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use writer::Writer;

/// Events that may wait for the writer; `emit` waits for room beyond this.
const QUEUE: usize = 1024;
/// Of these, events of [`Emitter::queue`]: who floods it leaves room for `emit_later`, which does not wait.
const QUEUED: usize = QUEUE / 2;
/// Longest line that is read, in bytes: four times [`MAX_EVENT`], because spools of earlier versions have such.
///
/// [`MAX_EVENT`]: crate::event::MAX_EVENT
const MAX_LINE: usize = 256 * 1024;
/// Events in one batch.
pub const BATCH: usize = 256;
/// After a small batch, so long is waited for the next one to become larger: each costs several fsyncs here and at Auth,
/// and under load they would take the disk from those who wait for `emit`.
const GATHER: Duration = Duration::from_millis(100);
/// Bytes of the events in one batch, as JSON. Half of the longest message that Auth takes (1 MiB), which has room
/// for the framing of each event besides: a batch that is refused for its size would be sent again for ever.
pub const BATCH_BYTES: usize = 512 * 1024;
/// Waits between attempts to deliver.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(8));

/// What failed on which spool, why, and what to do.
#[derive(Debug, Clone, thiserror::Error)]
#[error("audit spool {path}: {why}")]
pub struct SpoolError {
    /// The spool's directory.
    pub path: String,
    /// What happened.
    pub why: String,
}

impl SpoolError {
    fn new(path: &Path, why: impl Into<String>) -> Self {
        SpoolError {
            path: path.display().to_string(),
            why: why.into(),
        }
    }
}

/// What waits for delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpoolState {
    /// Events that Auth has not acknowledged.
    pub events: u64,
    /// Bytes of the segments on disk.
    pub bytes: u64,
}

/// A byte of a segment.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
struct Position {
    segment: u64,
    offset: u64,
}

/// How far the writer is.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    /// Everything before is on disk.
    durable: Position,
    state: SpoolState,
}

/// An event on its way to the disk. An empty one only asks for the answer (flush).
struct Line {
    bytes: Vec<u8>,
    /// Somebody waits for it; others may wait for company.
    urgent: bool,
    /// Given back when it is written.
    _slot: Option<OwnedSemaphorePermit>,
    ack: Option<oneshot::Sender<Result<(), SpoolError>>>,
}

enum Message {
    Write(Line),
    /// Everything before `upto` is stored elsewhere; `events` more than last time.
    Delivered {
        upto: Position,
        events: u64,
    },
}

/// Where events go. Cheap to clone.
#[derive(Clone)]
pub struct Emitter {
    inner: Inner,
}

#[derive(Clone)]
enum Inner {
    Spool {
        path: Arc<str>,
        to_writer: mpsc::Sender<Message>,
        progress: watch::Receiver<Progress>,
        slots: Arc<Semaphore>,
        /// Told when somebody waits for what was sent.
        urgent: Arc<Notify>,
    },
    Memory(mpsc::Sender<Event>),
}

impl std::fmt::Debug for Emitter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Emitter").finish_non_exhaustive()
    }
}

impl Emitter {
    /// An emitter without a disk, for tests of those who emit. Waits where the receiver does not keep up.
    pub fn memory(capacity: usize) -> (Emitter, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(capacity);
        (
            Emitter {
                inner: Inner::Memory(sender),
            },
            receiver,
        )
    }

    /// Durable when it returns (with others in one fsync). An event whose future is dropped
    /// meanwhile is written all the same.
    ///
    /// # Errors
    /// The disk or the spool is full, or can't be written. The next event is tried again.
    pub async fn emit(&self, event: Event) -> Result<(), SpoolError> {
        match &self.inner {
            Inner::Spool { .. } => self.write(self.line(event)?).await,
            Inner::Memory(sender) => sender.send(event).await.map_err(|_| self.stopped()),
        }
    }

    /// Puts an event into the queue, behind all that are there, and waits where there is no room. It is durable soon, with
    /// others in one fsync; [`Pending::durable`] tells when, or why not.
    ///
    /// # Errors
    /// As [`Emitter::emit`].
    pub async fn queue(&self, event: Event) -> Result<Pending, SpoolError> {
        match &self.inner {
            Inner::Spool { slots, .. } => {
                let line = self.line(event)?;
                let slot = slots.clone().acquire_owned().await;
                let slot = slot.map_err(|_| self.stopped())?;
                self.send(line, false, Some(slot)).await
            }
            Inner::Memory(sender) => {
                sender.send(event).await.map_err(|_| self.stopped())?;
                Ok(Pending {
                    answer: None,
                    path: self.path(),
                })
            }
        }
    }

    /// For events that need not be durable before going on. They are tried again while the disk is full; what
    /// can't be kept is logged and counted (`postern_audit_dropped_total`).
    pub fn emit_later(&self, event: Event) {
        let name = event.event.clone();
        let sent = match &self.inner {
            Inner::Spool { to_writer, .. } => self.line(event).map(|bytes| {
                to_writer
                    .try_send(Message::Write(Line {
                        bytes,
                        urgent: false,
                        _slot: None,
                        ack: None,
                    }))
                    .is_ok()
            }),
            Inner::Memory(sender) => Ok(sender.try_send(event).is_ok()),
        };
        let why = match sent {
            Ok(true) => return,
            Ok(false) => "too many events wait to be written".to_owned(),
            Err(e) => e.to_string(),
        };
        metrics::counter!("postern_audit_dropped_total").increment(1);
        tracing::error!(event = name, "audit event lost: {why}");
    }

    /// Waits until everything emitted before is durable.
    ///
    /// # Errors
    /// As [`Emitter::emit`].
    pub async fn flush(&self) -> Result<(), SpoolError> {
        match &self.inner {
            Inner::Spool { .. } => self.write(Vec::new()).await,
            Inner::Memory(_) => Ok(()),
        }
    }

    /// What waits for delivery.
    pub fn state(&self) -> SpoolState {
        match &self.inner {
            Inner::Spool { progress, .. } => progress.borrow().state,
            Inner::Memory(_) => SpoolState::default(),
        }
    }

    /// Waits until Auth has everything; for an orderly end, with a timeout around it.
    pub async fn drained(&self) {
        if self.flush().await.is_ok()
            && let Inner::Spool { progress, .. } = &self.inner
        {
            let mut progress = progress.clone();
            // An error means that the writer is gone: nothing more will be delivered.
            let _ = progress
                .wait_for(|progress| progress.state.events == 0)
                .await;
        }
    }

    async fn write(&self, bytes: Vec<u8>) -> Result<(), SpoolError> {
        self.send(bytes, true, None).await?.durable().await
    }

    async fn send(
        &self,
        bytes: Vec<u8>,
        is_urgent: bool,
        slot: Option<OwnedSemaphorePermit>,
    ) -> Result<Pending, SpoolError> {
        let (ack, answer) = oneshot::channel();
        let line = Line {
            bytes,
            urgent: is_urgent,
            _slot: slot,
            ack: Some(ack),
        };
        if let Inner::Spool {
            to_writer, urgent, ..
        } = &self.inner
        {
            let sent = to_writer.send(Message::Write(line)).await;
            sent.map_err(|_| self.stopped())?;
            if is_urgent {
                urgent.notify_one();
            }
        }
        Ok(Pending {
            answer: Some(answer),
            path: self.path(),
        })
    }

    fn line(&self, event: Event) -> Result<Vec<u8>, SpoolError> {
        let json = event.into_json().map_err(|e| self.error(e.to_string()))?;
        let mut bytes = json.into_bytes();
        bytes.push(b'\n');
        Ok(bytes)
    }

    fn stopped(&self) -> SpoolError {
        stopped(&self.path())
    }

    fn error(&self, why: String) -> SpoolError {
        let path = self.path().to_string();
        SpoolError { path, why }
    }

    fn path(&self) -> Arc<str> {
        match &self.inner {
            Inner::Spool { path, .. } => path.clone(),
            Inner::Memory(_) => "(memory)".into(),
        }
    }
}

fn stopped(path: &str) -> SpoolError {
    SpoolError {
        path: path.to_owned(),
        why: "the writer has stopped; the process is ending".to_owned(),
    }
}

/// An event on its way to the disk.
#[derive(Debug)]
pub struct Pending {
    answer: Option<oneshot::Receiver<Result<(), SpoolError>>>,
    path: Arc<str>,
}

impl Pending {
    /// Waits until it is there.
    ///
    /// # Errors
    /// As [`Emitter::emit`]; the event is not recorded then.
    pub async fn durable(self) -> Result<(), SpoolError> {
        match self.answer {
            None => Ok(()),
            Some(answer) => answer.await.unwrap_or_else(|_| Err(stopped(&self.path))),
        }
    }

    /// Whether it is there already; `None`: not yet.
    pub fn poll(&mut self) -> Option<Result<(), SpoolError>> {
        let Some(answer) = &mut self.answer else {
            return Some(Ok(()));
        };
        match answer.try_recv() {
            Ok(result) => Some(result),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(Err(stopped(&self.path))),
        }
    }
}

/// The spools of one service, without one's own.
#[derive(Default)]
pub struct Others {
    /// Those of processes that are gone.
    pub left: Vec<Left>,
    /// How many are open, one's own among them.
    pub busy: usize,
}

/// Looks at `dir`, `dir-2`, …
///
/// # Errors
/// As [`Spool::open`].
pub async fn others(dir: &Path, max_bytes: u64) -> Result<Others, SpoolError> {
    let mut others = Others::default();
    for dir in candidates(dir).filter(|d| d.is_dir()) {
        match segment::lock_within(&dir, Duration::ZERO).await? {
            None => others.busy += 1,
            Some(lock) => {
                let (spool, emitter) = Spool::of(&dir, lock, max_bytes).await?;
                others.left.push(Left {
                    dir,
                    spool,
                    emitter,
                });
            }
        }
    }
    Ok(others)
}

/// The spool of a process that is gone, with what it could not deliver.
pub struct Left {
    dir: PathBuf,
    spool: Spool,
    emitter: Emitter,
}

impl Left {
    /// Delivers what is in it, and deletes it.
    pub async fn finish<F, Fut>(self, deliver: F)
    where
        F: FnMut(Vec<String>) -> Fut + Send,
        Fut: Future<Output = Result<(), String>> + Send,
    {
        let Left {
            dir,
            spool,
            emitter,
        } = self;
        tokio::select! {
            () = spool.deliver(deliver) => {}
            () = emitter.drained() => {}
        }
        if let Err(e) = std::fs::remove_dir_all(&dir) {
            tracing::warn!("{}: cannot delete: {e}", dir.display());
        }
    }
}

/// Processes that may have a spool of the same service at once.
const PROCESSES: usize = 16;

fn candidates(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let dir = dir.to_owned();
    (1..=PROCESSES).map(move |n| match n {
        1 => dir.clone(),
        n => {
            let mut numbered = dir.clone().into_os_string();
            numbered.push(format!("-{n}"));
            numbered.into()
        }
    })
}

/// The delivering end. The writer ends when this and all emitters are dropped.
pub struct Spool {
    reader: Reader,
    progress: watch::Receiver<Progress>,
    to_writer: mpsc::Sender<Message>,
}

impl Spool {
    /// Opens (or recovers: a torn last line is cut) the spool in `dir`, which is made where it does not exist.
    /// `max_bytes` limits what waits on disk.
    ///
    /// # Errors
    /// The directory can't be used, is open to others, or another process has it.
    pub async fn open(dir: &Path, max_bytes: u64) -> Result<(Spool, Emitter), SpoolError> {
        let lock = segment::lock(dir).await?;
        Self::of(dir, lock, max_bytes).await
    }

    async fn of(
        dir: &Path,
        lock: std::fs::File,
        max_bytes: u64,
    ) -> Result<(Spool, Emitter), SpoolError> {
        let path = dir.to_owned();
        let opened = tokio::task::spawn_blocking(move || segment::recover(&path)).await;
        let found = opened.map_err(|e| SpoolError::new(dir, e.to_string()))??;
        let reader = Reader::new(dir, found.cursor);
        let (writer, progress) = Writer::new(dir, lock, max_bytes, found);
        let (to_writer, messages) = mpsc::channel(QUEUE);
        let urgent = Arc::new(Notify::new());
        tokio::spawn(writer.run(messages, urgent.clone()));
        let inner = Inner::Spool {
            path: dir.display().to_string().into(),
            to_writer: to_writer.clone(),
            progress: progress.clone(),
            slots: Arc::new(Semaphore::new(QUEUED)),
            urgent,
        };
        Ok((
            Spool {
                reader,
                progress,
                to_writer,
            },
            Emitter { inner },
        ))
    }

    /// Opens the first of `dir`, `dir-2`, … that no other process has: one that hands over to a newer posternd keeps
    /// its own until its last session has ended.
    ///
    /// # Errors
    /// As [`Spool::open`].
    pub async fn open_free(dir: &Path, max_bytes: u64) -> Result<(Spool, Emitter), SpoolError> {
        for candidate in candidates(dir) {
            if let Some(lock) = segment::lock_within(&candidate, Duration::ZERO).await? {
                return Self::of(&candidate, lock, max_bytes).await;
            }
        }
        Err(SpoolError::new(
            dir,
            format!(
                "{PROCESSES} other processes have one each; end the sessions of the older ones"
            ),
        ))
    }

    /// Delivers in batches of at most 256 events, each as its JSON, in order, until it is dropped: `deliver` returns Ok when Auth
    /// has stored the batch (deduplicated by uid). A failed batch is tried again after 0.2 s to 8 s.
    pub async fn deliver<F, Fut>(mut self, mut deliver: F)
    where
        F: FnMut(Vec<String>) -> Fut + Send,
        Fut: Future<Output = Result<(), String>> + Send,
    {
        loop {
            let durable = self.progress.borrow_and_update().durable;
            let batch = match self.reader.batch(durable).await {
                Ok(Some(batch)) => batch,
                Ok(None) => match self.progress.changed().await {
                    Ok(()) => continue,
                    Err(_) => return, // the writer is gone, so nothing more will come
                },
                Err(e) => {
                    tracing::error!("{e}");
                    tokio::time::sleep(BACKOFF.1).await;
                    continue;
                }
            };
            let mut attempt = 0u32;
            while !batch.events.is_empty() {
                match deliver(batch.events.clone()).await {
                    Ok(()) => break,
                    Err(why) => {
                        metrics::counter!("postern_audit_delivery_failures_total").increment(1);
                        if attempt == 0 || attempt.is_power_of_two() {
                            tracing::warn!(
                                "audit events can't be delivered, they wait on disk: {why}"
                            );
                        }
                        tokio::time::sleep(backoff(attempt)).await;
                        attempt += 1;
                    }
                }
            }
            if attempt > 0 {
                tracing::info!(attempts = attempt + 1, "audit events are delivered again");
            }
            metrics::counter!("postern_audit_delivered_total").increment(batch.events.len() as u64);
            if let Err(e) = self.reader.advance(batch.end).await {
                // Only after a restart would they be delivered twice.
                tracing::warn!("{e}");
            }
            let delivered = Message::Delivered {
                upto: batch.end,
                events: batch.lines,
            };
            if self.to_writer.send(delivered).await.is_err() {
                return;
            }
            if batch.lines < BATCH as u64 / 4 {
                tokio::time::sleep(GATHER).await;
            }
        }
    }
}

/// Doubles from 0.2 s to 8 s; up to half of it is left out by chance, so that agents don't
/// come back all at once.
fn backoff(attempt: u32) -> Duration {
    let full = BACKOFF
        .0
        .saturating_mul(1 << attempt.min(10))
        .min(BACKOFF.1);
    full.mul_f64(rand::random_range(0.5..=1.0)).max(BACKOFF.0)
}
