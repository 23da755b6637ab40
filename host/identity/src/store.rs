//! Files that hold secrets: directories 0700, files 0600, written atomically (temporary file,
//! fsync, rename, fsync of the directory). After a crash there is the old file or the new one.

use serde_json::error::Category;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;
use zeroize::Zeroizing;

/// Why a file could not be read or written, or must not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refused an operation.
    #[error("{path}: {op}: {source}")]
    Io {
        /// What was tried, e.g. `"write"`.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others could read or change it.
    #[error(
        "{path} is readable or writable by others (mode {mode:04o}); run: chmod {want:o} {path}"
    )]
    Permissions {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What they should be.
        want: u32,
    },
    /// Somebody else could change it at any time.
    #[error("{path} is owned by uid {owner}, not by uid {us}; run: chown {us} {path}")]
    Owner {
        /// The file or directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Our effective uid.
        us: u32,
    },
    /// Its content makes no sense.
    #[error("{path} is not valid: {why}; move it away to start anew")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; never its content.
        why: String,
    },
}

impl StoreError {
    /// Whether the file simply is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

fn io_error(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Io {
        op,
        path: path.into(),
        source,
    }
}

/// Refuses what others may read or write, or what belongs to somebody else.
fn check_private(path: &Path, meta: &fs::Metadata, want: u32) -> Result<(), StoreError> {
    let us = nix::unistd::geteuid().as_raw();
    if meta.uid() != us {
        return Err(StoreError::Owner {
            path: path.into(),
            owner: meta.uid(),
            us,
        });
    }
    let mode = meta.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(StoreError::Permissions {
            path: path.into(),
            mode,
            want,
        });
    }
    Ok(())
}

/// Creates `dir` (0700, missing parents too) or checks that it is ours and nobody else can enter it.
pub fn private_dir(dir: &Path) -> Result<(), StoreError> {
    match fs::metadata(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(io_error("create directory", dir))?,
        Err(e) => return Err(io_error("open directory", dir)(e)),
        Ok(_) => {}
    }
    let meta = fs::metadata(dir).map_err(io_error("open directory", dir))?;
    if !meta.is_dir() {
        return Err(StoreError::Io {
            op: "open directory",
            path: dir.into(),
            source: io::ErrorKind::NotADirectory.into(),
        });
    }
    check_private(dir, &meta, 0o700)
}

/// Where the temporary file goes: the same directory, or the rename would not be atomic.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// A temporary file (0600) beside `path` that holds `bytes` on disk.
fn staged(path: &Path, bytes: &[u8]) -> Result<NamedTempFile, StoreError> {
    let mut tmp = tempfile::Builder::new()
        .prefix(".tmp-")
        .tempfile_in(parent(path))
        .map_err(io_error("create a temporary file beside it", path))?;
    tmp.write_all(bytes).map_err(io_error("write", path))?;
    tmp.as_file().sync_all().map_err(io_error("fsync", path))?;
    Ok(tmp)
}

fn sync_dir(path: &Path) -> Result<(), StoreError> {
    let dir = parent(path);
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(io_error("fsync directory", dir))
}

/// Replaces the file at once and durably; it has mode 0600 whatever the umask is.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    staged(path, bytes)?
        .persist(path)
        .map_err(|e| io_error("rename", path)(e.error))?;
    sync_dir(path)
}

/// Like [`write_secret`], but leaves a file alone that is already there; `false` if there was one.
pub fn create_secret(path: &Path, bytes: &[u8]) -> Result<bool, StoreError> {
    match staged(path, bytes)?.persist_noclobber(path) {
        Ok(_) => sync_dir(path).map(|()| true),
        Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(io_error("create", path)(e.error)),
    }
}

/// Checks mode and owner before reading. Larger files than 16 MiB are `Corrupt`.
pub fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, StoreError> {
    const LIMIT: u64 = 16 << 20;
    let file = File::open(path).map_err(io_error("open", path))?;
    // Of the opened file, not of the path: nothing can be exchanged in between.
    let meta = file.metadata().map_err(io_error("stat", path))?;
    if !meta.is_file() {
        return Err(StoreError::Corrupt {
            path: path.into(),
            why: "it is not a regular file".into(),
        });
    }
    check_private(path, &meta, 0o600)?;
    if meta.len() > LIMIT {
        return Err(StoreError::Corrupt {
            path: path.into(),
            why: format!("it has {} bytes, more than {LIMIT}", meta.len()),
        });
    }
    // Room for one byte more, so that reading to the end does not move the buffer and leave a copy.
    let mut bytes = Zeroizing::new(Vec::with_capacity(meta.len() as usize + 1));
    file.take(LIMIT)
        .read_to_end(&mut bytes)
        .map_err(io_error("read", path))?;
    Ok(bytes)
}

/// `Ok(None)` where the file does not exist; a half-written one is `Corrupt`.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let bytes = match read_secret(path) {
        Err(e) if e.is_not_found() => return Ok(None),
        found => found?,
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| {
        // serde_json quotes values in its messages; these files hold secrets.
        let what = match e.classify() {
            Category::Eof => "the JSON ends early (a half-written file?)",
            Category::Data => "the JSON has another shape than expected",
            Category::Syntax | Category::Io => "it is not JSON",
        };
        StoreError::Corrupt {
            path: path.into(),
            why: format!("{what}, line {} column {}", e.line(), e.column()),
        }
    })
}

/// Writes `value` as indented JSON, as [`write_secret`] does.
pub fn write_json<T: serde::Serialize>(path: &Path, value: &T) -> Result<(), StoreError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(8 << 10));
    serde_json::to_writer_pretty(&mut *bytes, value)
        .map_err(|e| io_error("encode as JSON", path)(e.into()))?;
    bytes.push(b'\n');
    write_secret(path, &bytes)
}

#[cfg(test)]
mod tests;
