//! The files of a spool: names, permissions, the lock, and what is found at the start.

use super::{Position, SpoolError};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

/// How long a start waits for a process that is ending.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// What was on disk.
#[derive(Debug)]
pub(super) struct Found {
    /// Segments with something in them → bytes.
    pub segments: BTreeMap<u64, u64>,
    /// From where events have not been delivered.
    pub cursor: Position,
    /// Lines from there on.
    pub undelivered: u64,
    /// The next segment's number; never one that the cursor could be beyond.
    pub next: u64,
}

pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:020}.jsonl"))
}

/// A new, empty segment whose name is durable.
pub(super) fn create(dir: &Path, number: u64) -> io::Result<File> {
    let path = path(dir, number);
    let file = OpenOptions::new()
        .append(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    if let Err(e) = sync_dir(dir) {
        let _ = fs::remove_file(&path);
        return Err(e);
    }
    Ok(file)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Makes or checks the directory and takes it for this process.
pub(super) async fn lock(dir: &Path) -> Result<File, SpoolError> {
    match lock_within(dir, LOCK_WAIT).await? {
        Some(lock) => Ok(lock),
        None => Err(SpoolError::new(
            dir,
            "another process has it open; stop that posternd first",
        )),
    }
}

/// `None`: another process has it, and has kept it for so long.
pub(super) async fn lock_within(dir: &Path, wait: Duration) -> Result<Option<File>, SpoolError> {
    let error = |what: &str, e: io::Error| SpoolError::new(dir, format!("{what}: {e}"));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| error("cannot be made", e))?;
    // Its own name has to survive as well; a parent that can't be opened is no reason to stop.
    let _ = dir.parent().map(sync_dir);
    let mode = fs::metadata(dir)
        .map_err(|e| error("cannot be read", e))?
        .permissions()
        .mode()
        & 0o7777;
    if mode & 0o077 != 0 {
        let why = format!(
            "is open to others (mode {mode:04o}); run: chmod 700 {}",
            dir.display()
        );
        return Err(SpoolError::new(dir, why));
    }
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(dir.join("lock"))
        .map_err(|e| error("the lock file cannot be opened", e))?;
    let deadline = tokio::time::Instant::now() + wait;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(Some(lock)),
            Err(TryLockError::WouldBlock) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(error("cannot be locked", e)),
        }
    }
}

/// Lists segments, cuts torn last lines, reads the cursor.
pub(super) fn recover(dir: &Path) -> Result<Found, SpoolError> {
    found(dir).map_err(|(path, e)| SpoolError::new(dir, format!("{}: {e}", path.display())))
}

fn found(dir: &Path) -> Result<Found, (PathBuf, io::Error)> {
    let in_dir = |e| (dir.to_owned(), e);
    let mut segments = BTreeMap::new();
    let mut highest = 0;
    for entry in fs::read_dir(dir).map_err(in_dir)? {
        let name = entry.map_err(in_dir)?.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_suffix(".jsonl")?.parse::<u64>().ok());
        let Some(number) = number else { continue };
        highest = highest.max(number);
        let path = path(dir, number);
        match cut_torn_line(&path).map_err(|e| (path.clone(), e))? {
            0 => fs::remove_file(&path).map_err(|e| (path, e))?,
            length => _ = segments.insert(number, length),
        }
    }
    let first = segments.keys().next().copied();
    let cursor = read_cursor(dir);
    let next = highest.max(cursor.map_or(0, |cursor| cursor.segment)) + 1;
    let cursor = cursor.unwrap_or(Position {
        segment: first.unwrap_or(next),
        offset: 0,
    });
    let mut undelivered = 0;
    for number in segments.range(cursor.segment..).map(|(number, _)| *number) {
        let from = if number == cursor.segment {
            cursor.offset
        } else {
            0
        };
        let path = path(dir, number);
        undelivered += count_lines(&path, from).map_err(|e| (path, e))?;
    }
    Ok(Found {
        segments,
        cursor,
        undelivered,
        next,
    })
}

/// Only what was never acknowledged can be without its end: the bytes after the last newline.
fn cut_torn_line(path: &Path) -> io::Result<u64> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let mut end = length;
    let mut block = [0; 4096];
    while end > 0 {
        let start = end.saturating_sub(block.len() as u64);
        let part = &mut block[..(end - start) as usize];
        file.read_exact_at(part, start)?;
        if let Some(newline) = part.iter().rposition(|b| *b == b'\n') {
            end = start + newline as u64 + 1;
            break;
        }
        end = start;
    }
    if end < length {
        tracing::warn!(file = %path.display(), bytes = length - end, "cutting an unfinished audit event");
        file.set_len(end)?;
        file.sync_all()?;
    }
    Ok(end)
}

fn count_lines(path: &Path, from: u64) -> io::Result<u64> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut reader = BufReader::with_capacity(64 * 1024, file);
    let mut lines = 0;
    loop {
        let block = reader.fill_buf()?;
        if block.is_empty() {
            return Ok(lines);
        }
        lines += block.iter().filter(|b| **b == b'\n').count() as u64;
        let length = block.len();
        reader.consume(length);
    }
}

/// An unreadable cursor is none: everything is delivered again, and known by its uid.
fn read_cursor(dir: &Path) -> Option<Position> {
    let path = dir.join("cursor");
    let mut text = String::new();
    let read = File::open(&path).and_then(|file| file.take(1024).read_to_string(&mut text));
    match read.map(|_| serde_json::from_str(&text)) {
        Ok(Ok(position)) => Some(position),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        _ => {
            tracing::warn!(file = %path.display(), "not readable: audit events will be delivered again");
            None
        }
    }
}

/// In place, always of the same length, and not synced: it is written many times a second under load, and an older cursor, or
/// one that can't be read, only means delivering again.
pub(super) fn write_cursor(dir: &Path, position: Position) -> io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(dir.join("cursor"))?;
    let json = serde_json::to_string(&position)?;
    file.write_all_at(format!("{json:<79}\n").as_bytes(), 0)
}
