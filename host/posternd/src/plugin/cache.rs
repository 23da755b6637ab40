//! Where `posternd plugin` keeps compiled components: an author checks and plays the same file again and again, and one with an
//! interpreter inside takes ten seconds to compile.

use postern_plugin::{PluginError, Runtime, RuntimeOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// How long what was not made anew is kept.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Removes a throw-away cache when it is dropped.
pub struct Cached {
    _throw_away: Option<TempDir>,
}

/// A small runtime with the user's own cache, or a throw-away one where there is none to be had.
pub fn runtime() -> anyhow::Result<(Runtime, Cached)> {
    if let Some(dir) = own() {
        prune(&dir);
        if let Ok(runtime) = at(&dir) {
            return Ok((runtime, Cached { _throw_away: None }));
        }
    }
    let temp = tempfile::Builder::new()
        .prefix("postern-plugin-")
        .tempdir()?;
    let runtime = at(&temp.path().join("cwasm"))?;
    let _throw_away = Some(temp);
    Ok((runtime, Cached { _throw_away }))
}

fn at(dir: &Path) -> Result<Runtime, PluginError> {
    let mut options = RuntimeOptions::new(dir);
    options.max_instances = 16;
    Runtime::new(options)
}

/// As the XDG base directories have it.
fn own() -> Option<PathBuf> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("postern/plugins"))
}

/// Every build of a plugin leaves a file here, and nothing else would ever remove it.
fn prune(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let old = entry
            .metadata()
            .and_then(|m| m.modified())
            .is_ok_and(|at| at.elapsed().is_ok_and(|age| age > KEPT));
        if old {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::time::SystemTime;

    #[test]
    fn what_is_old_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        File::create(&new).unwrap();
        let file = File::create(&old).unwrap();
        file.set_modified(SystemTime::now() - KEPT - KEPT).unwrap();
        prune(dir.path());
        prune(&dir.path().join("none"));
        assert!(new.exists() && !old.exists());
    }
}
