//! The one owner of the spool's directory: writes groups of events, answers when they are
//! durable, deletes what was delivered.

use super::{
    Line, Message, Position, Progress, QUEUE, SpoolError, SpoolState, segment, segment::Found,
};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{Notify, mpsc, watch};

/// Bytes at which the next segment begins; less for small spools, so that room is given back.
const SEGMENT: u64 = 4 << 20;
/// How long events that nobody waits for wait for company: an fsync costs more than many of them.
const LINGER: Duration = Duration::from_millis(20);
/// Bytes written in one go.
const GROUP: usize = 1 << 20;
/// How often events of `emit_later` are tried again while the disk is full.
const RETRY: Duration = Duration::from_secs(1);
/// Bytes of such events that are kept in memory.
const RETRY_BYTES: usize = 1 << 20;

pub(super) struct Writer {
    dir: PathBuf,
    /// Held as long as the files are ours.
    _lock: File,
    max_bytes: u64,
    segment_bytes: u64,
    /// Full ones → bytes.
    closed: BTreeMap<u64, u64>,
    current: Option<Segment>,
    next: u64,
    delivered: Position,
    undelivered: u64,
    /// Events that need no answer and could not be written.
    retry: Vec<Vec<u8>>,
    /// The disk's state was reported; once is enough.
    failing: bool,
    progress: watch::Sender<Progress>,
}

struct Segment {
    number: u64,
    file: File,
    /// Durable bytes.
    length: u64,
}

impl Writer {
    pub fn new(
        dir: &Path,
        lock: File,
        max_bytes: u64,
        found: Found,
    ) -> (Self, watch::Receiver<Progress>) {
        let (progress, receiver) = watch::channel(Progress::default());
        let writer = Writer {
            dir: dir.to_owned(),
            _lock: lock,
            max_bytes,
            segment_bytes: SEGMENT.min(max_bytes / 8).max(1),
            closed: found.segments,
            current: None,
            next: found.next,
            delivered: found.cursor,
            undelivered: found.undelivered,
            retry: Vec::new(),
            failing: false,
            progress,
        };
        writer.publish();
        (writer, receiver)
    }

    /// Until the spool and all emitters are dropped.
    pub async fn run(mut self, mut messages: mpsc::Receiver<Message>, urgent: Arc<Notify>) {
        let mut group = Vec::new();
        loop {
            let received = if self.retry.is_empty() {
                messages.recv_many(&mut group, QUEUE).await
            } else {
                let receive = messages.recv_many(&mut group, QUEUE);
                match tokio::time::timeout(RETRY, receive).await {
                    Ok(0) => 0,
                    Ok(received) => received,
                    Err(_) => 1, // nothing new: try what is left
                }
            };
            if received == 0 {
                if !self.retry.is_empty() {
                    tracing::error!(dir = %self.dir.display(), events = self.retry.len(), "audit events lost: the disk was full until the end");
                }
                return;
            }
            company(&mut group, &mut messages, &urgent).await;
            let messages = std::mem::take(&mut group);
            let worked = tokio::task::spawn_blocking(move || {
                self.work(messages);
                self
            });
            match worked.await {
                Ok(writer) => self = writer,
                // The runtime is ending, or there is a bug: emitters are told that we stopped.
                Err(e) => return tracing::error!("audit spool: the writer ended: {e}"),
            }
        }
    }

    fn work(&mut self, messages: Vec<Message>) {
        let mut lines: Vec<Line> = self
            .retry
            .drain(..)
            .map(|bytes| Line {
                bytes,
                urgent: false,
                _slot: None,
                ack: None,
            })
            .collect();
        for message in messages {
            match message {
                Message::Write(line) => lines.push(line),
                Message::Delivered { upto, events } => self.delivered(upto, events),
            }
        }
        let mut lines = lines.into_iter().peekable();
        while lines.peek().is_some() {
            let (mut group, mut bytes) = (Vec::new(), Vec::new());
            while let Some(line) =
                lines.next_if(|l| bytes.is_empty() || bytes.len() + l.bytes.len() <= GROUP)
            {
                bytes.extend_from_slice(&line.bytes);
                group.push(line);
            }
            self.commit(group, bytes);
        }
        self.publish();
    }

    fn commit(&mut self, group: Vec<Line>, bytes: Vec<u8>) {
        let room = self.room();
        if bytes.len() as u64 > room && group.len() > 1 {
            // Not all of them: as many as there is room for, in order.
            for line in group {
                let bytes = line.bytes.clone();
                self.commit(vec![line], bytes);
            }
            return;
        }
        let events = group.iter().filter(|line| !line.bytes.is_empty()).count() as u64;
        let result = match bytes.len() as u64 {
            // Only asked whether everything before is written.
            0 if !self.retry.is_empty() => Err("earlier events still wait for room".to_owned()),
            0 => Ok(()),
            needed if needed > room => Err(format!(
                "full: {} events wait for the Auth Service, and no more than {} bytes may; make it reachable, or raise the limit",
                self.undelivered, self.max_bytes
            )),
            _ => self.append(&bytes).map_err(|e| self.explain(&e)),
        };
        match result {
            Ok(()) => {
                self.undelivered += events;
                metrics::counter!("postern_audit_events_total").increment(events);
                if events > 0 && std::mem::take(&mut self.failing) {
                    tracing::info!(dir = %self.dir.display(), "audit events can be written again");
                }
                // Before the answers, so that who has one sees the event counted.
                self.publish();
                group
                    .into_iter()
                    .filter_map(|line| line.ack)
                    .for_each(|ack| _ = ack.send(Ok(())));
            }
            Err(why) => {
                metrics::counter!("postern_audit_write_failures_total").increment(events);
                let error = SpoolError::new(&self.dir, why);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!("{error}");
                }
                for line in group {
                    match line.ack {
                        Some(ack) => _ = ack.send(Err(error.clone())),
                        None => self.keep(line.bytes),
                    }
                }
            }
        }
    }

    fn keep(&mut self, bytes: Vec<u8>) {
        if self.retry.iter().map(Vec::len).sum::<usize>() + bytes.len() <= RETRY_BYTES {
            self.retry.push(bytes);
        } else {
            metrics::counter!("postern_audit_dropped_total").increment(1);
            tracing::error!(
                "audit event lost: the disk is full, and so is what may wait in memory"
            );
        }
    }

    fn used(&self) -> u64 {
        self.closed.values().sum::<u64>() + self.current.as_ref().map_or(0, |s| s.length)
    }

    /// Bytes that may still be written.
    fn room(&mut self) -> u64 {
        if self.used() + self.segment_bytes > self.max_bytes {
            self.forget_current(0);
        }
        self.max_bytes.saturating_sub(self.used())
    }

    /// Appends and syncs; on an error nothing of it stays.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let full = |s: &Segment| s.length > 0 && s.length + bytes.len() as u64 > self.segment_bytes;
        if self.current.as_ref().is_some_and(full) {
            self.close();
        }
        let segment = match &mut self.current {
            Some(segment) => segment,
            none => {
                let file = segment::create(&self.dir, self.next)?;
                let number = self.next;
                self.next += 1;
                none.insert(Segment {
                    number,
                    file,
                    length: 0,
                })
            }
        };
        let written = segment
            .file
            .write_all(bytes)
            .and_then(|()| segment.file.sync_data());
        if let Err(e) = written {
            // After a failed fsync the kernel may call lost pages clean: never build on this file again. Whole
            // lines that stay in it despite this are delivered, though their emitters saw an error.
            let _ = segment.file.set_len(segment.length);
            self.close();
            return Err(e);
        }
        segment.length += bytes.len() as u64;
        Ok(())
    }

    fn close(&mut self) {
        let Some(segment) = self.current.take() else {
            return;
        };
        if segment.length == 0 {
            self.remove(segment.number);
        } else {
            self.closed.insert(segment.number, segment.length);
        }
    }

    fn delivered(&mut self, upto: Position, events: u64) {
        self.delivered = upto;
        self.undelivered = self.undelivered.saturating_sub(events);
        let done = |(number, length): &(&u64, &u64)| {
            **number < upto.segment || (**number == upto.segment && upto.offset >= **length)
        };
        let done: Vec<u64> = self
            .closed
            .iter()
            .filter(done)
            .map(|(number, _)| *number)
            .collect();
        for number in done {
            self.closed.remove(&number);
            self.remove(number);
        }
        // Making a file for each event would double the fsyncs.
        self.forget_current(self.segment_bytes / 4);
    }

    /// Deletes the current segment, if all of it was delivered and it has at least so many bytes.
    fn forget_current(&mut self, at_least: u64) {
        let upto = self.delivered;
        let done = |s: &mut Segment| {
            s.number == upto.segment && upto.offset >= s.length && s.length >= at_least
        };
        if let Some(segment) = self.current.take_if(done) {
            self.remove(segment.number);
        }
    }

    fn remove(&self, number: u64) {
        let path = segment::path(&self.dir, number);
        if let Err(e) = fs::remove_file(&path) {
            // It is found again at the next start, and passed over by the cursor.
            tracing::warn!(file = %path.display(), "a delivered audit segment can't be deleted: {e}");
        }
    }

    fn publish(&self) {
        let durable = match &self.current {
            Some(segment) => Position {
                segment: segment.number,
                offset: segment.length,
            },
            None => Position {
                segment: self.next,
                offset: 0,
            },
        };
        let state = SpoolState {
            events: self.undelivered,
            bytes: self.used(),
        };
        let before = self
            .progress
            .send_replace(Progress { durable, state })
            .state;
        count(before, state);
    }

    fn explain(&self, e: &io::Error) -> String {
        match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => format!(
                "the disk is full ({} events wait for the Auth Service); free some space: {e}",
                self.undelivered
            ),
            _ => format!("an event can't be written: {e}"),
        }
    }
}

/// Waits a moment for more, unless somebody waits for what is there. Not by the queue itself: that would be a wake-up for
/// each event.
async fn company(
    group: &mut Vec<Message>,
    messages: &mut mpsc::Receiver<Message>,
    urgent: &Notify,
) {
    let is_urgent = |m: &Message| matches!(m, Message::Write(line) if line.urgent);
    let waiting = |m: &Message| matches!(m, Message::Write(_));
    if !group.iter().any(waiting) || group.iter().any(is_urgent) {
        return;
    }
    // Of an urgent one that was written before its word came: a moment less for this group.
    tokio::select! {
        () = urgent.notified() => {}
        () = tokio::time::sleep(LINGER) => {}
    }
    while group.len() < QUEUE {
        match messages.try_recv() {
            Ok(message) => group.push(message),
            Err(_) => return,
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        count(self.progress.borrow().state, SpoolState::default());
    }
}

/// A process has a spool per service; the gauges are of all of them, so each adds its difference.
fn count(before: SpoolState, after: SpoolState) {
    let events = after.events as f64 - before.events as f64;
    metrics::gauge!("postern_audit_spooled").increment(events);
    let bytes = after.bytes as f64 - before.bytes as f64;
    metrics::gauge!("postern_audit_spooled_bytes").increment(bytes);
}
