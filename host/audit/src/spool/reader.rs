//! Reading what is durable, in batches, and remembering what was delivered.

use super::{BATCH, BATCH_BYTES, MAX_LINE, Position, SpoolError, segment};
use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

pub(super) struct Reader {
    dir: PathBuf,
    /// Everything before is delivered.
    position: Position,
}

/// Some events, and where the next ones begin.
pub(super) struct Batch {
    /// JSON.
    pub events: Vec<String>,
    /// With those that could not be read.
    pub lines: u64,
    pub end: Position,
}

impl Reader {
    pub fn new(dir: &Path, position: Position) -> Self {
        Reader {
            dir: dir.to_owned(),
            position,
        }
    }

    /// The next events before `durable`; `None` where there are none.
    pub async fn batch(&mut self, durable: Position) -> Result<Option<Batch>, SpoolError> {
        let (dir, position) = (self.dir.clone(), self.position);
        let read = tokio::task::spawn_blocking(move || read(&dir, position, durable)).await;
        let error = |e: &dyn std::fmt::Display| {
            SpoolError::new(&self.dir, format!("events can't be read: {e}"))
        };
        let (position, batch) = read.map_err(|e| error(&e))?.map_err(|e| error(&e))?;
        self.position = position;
        Ok(batch)
    }

    /// Notes that everything before `position` is delivered.
    pub async fn advance(&mut self, position: Position) -> Result<(), SpoolError> {
        self.position = position;
        let dir = self.dir.clone();
        let written =
            tokio::task::spawn_blocking(move || segment::write_cursor(&dir, position)).await;
        let written = written.map_err(io::Error::other).flatten();
        written.map_err(|e| SpoolError::new(&self.dir, format!("cursor: {e}")))
    }
}

/// Also returns where reading goes on, past the ends of finished segments.
fn read(
    dir: &Path,
    mut position: Position,
    durable: Position,
) -> io::Result<(Position, Option<Batch>)> {
    while position < durable {
        let file = match File::open(segment::path(dir, position.segment)) {
            Ok(file) => Some(file),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        let end = match &file {
            Some(_) if position.segment == durable.segment => durable.offset,
            Some(file) => file.metadata()?.len(),
            None => 0,
        };
        if let Some(file) = file.filter(|_| position.offset < end) {
            return batch(&file, position, end).map(|batch| (position, Some(batch)));
        }
        if position.segment == durable.segment {
            break;
        }
        position = Position {
            segment: position.segment + 1,
            offset: 0,
        };
    }
    Ok((position, None))
}

fn batch(file: &File, position: Position, end: u64) -> io::Result<Batch> {
    let size = (end - position.offset).min(BATCH_BYTES.max(MAX_LINE) as u64);
    let mut bytes = vec![0; size as usize];
    file.read_exact_at(&mut bytes, position.offset)?;
    let mut batch = Batch {
        events: Vec::new(),
        lines: 0,
        end: position,
    };
    let mut rest = bytes.as_slice();
    while batch.events.len() < BATCH {
        let Some(newline) = rest.iter().position(|b| *b == b'\n') else {
            break;
        };
        let (line, after) = rest.split_at(newline + 1);
        rest = after;
        batch.lines += 1;
        match json(&line[..newline]) {
            Ok(event) => batch.events.push(event),
            Err(e) => damaged(position, newline, &e),
        }
    }
    if batch.lines == 0 {
        // No line fits: a damaged file, or what a failed write left at a segment's end.
        damaged(position, bytes.len(), "no end of line");
        rest = &[];
    }
    batch.end.offset += (bytes.len() - rest.len()) as u64;
    Ok(batch)
}

/// Whatever JSON it is: Auth looks at what it says.
fn json(line: &[u8]) -> Result<String, String> {
    serde_json::from_slice::<serde::de::IgnoredAny>(line).map_err(|e| e.to_string())?;
    String::from_utf8(line.to_vec()).map_err(|e| e.to_string())
}

fn damaged(position: Position, bytes: usize, why: &str) {
    metrics::counter!("postern_audit_damaged_total").increment(1);
    tracing::error!(
        segment = position.segment,
        bytes,
        "a damaged audit event is passed over: {why}"
    );
}
