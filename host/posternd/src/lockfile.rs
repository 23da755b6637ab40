//! One daemon per data directory: two would spoil each other's state.

use anyhow::Context;
use std::fs::{File, TryLockError};
use std::path::Path;

/// Held until dropped (or until the process is gone, however it went).
pub struct DataDirLock(#[allow(dead_code)] File);

impl DataDirLock {
    /// Makes or checks the data directory (0700, ours), and takes it.
    pub fn take(data_dir: &Path) -> anyhow::Result<Self> {
        postern_identity::store::private_dir(data_dir).context("data_dir")?;
        let path = data_dir.join("posternd.lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("{}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(DataDirLock(file)),
            Err(TryLockError::WouldBlock) => anyhow::bail!(
                "another posternd runs with data_dir {}; stop it first, or give this one its own data_dir",
                data_dir.display()
            ),
            Err(TryLockError::Error(e)) => Err(e).with_context(|| format!("{}", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let held = DataDirLock::take(&data).unwrap();
        let refused = DataDirLock::take(&data).map(drop).unwrap_err().to_string();
        assert!(
            refused.starts_with("another posternd runs with data_dir "),
            "{refused}"
        );
        drop(held);
        DataDirLock::take(&data).unwrap();
    }
}
