//! Files that hold secrets: directories 0700, files 0600, written atomically (temporary file, fsync, rename, fsync of the directory).
use std::path::{Path, PathBuf};
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{path}: {op}: {source}")] Io { op: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{path} is readable or writable by others (mode {mode:04o}); run: chmod {want:o} {path}")] Permissions { path: PathBuf, mode: u32, want: u32 },
    #[error("{path} is owned by uid {owner}, not by uid {us}")] Owner { path: PathBuf, owner: u32, us: u32 },
    #[error("{path} is not valid: {why}; move it away to start anew")] Corrupt { path: PathBuf, why: String },
}
/// Creates `dir` (0700) or checks that it is ours and nobody else can enter it.
pub fn private_dir(dir: &Path) -> Result<(), StoreError> { todo!() }
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), StoreError> { todo!() }
/// Checks mode and owner before reading.
pub fn read_secret(path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, StoreError> { todo!() }
/// `Ok(None)` where the file does not exist; a half-written one is `Corrupt`.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> { todo!() }
pub fn write_json<T: serde::Serialize>(path: &Path, value: &T) -> Result<(), StoreError> { todo!() }
