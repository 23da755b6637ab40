//! Notices that the configuration or a plugin file has changed, however it was saved: written in place, renamed over,
//! swapped behind a symlink (Kubernetes ConfigMaps), gone for a moment. The kernel says that something moved in a
//! directory; whether it concerns us, and whether it has come to rest, is told by looking at the files themselves.

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Files count once they have not changed for so long.
pub const SETTLE: Duration = Duration::from_millis(200);
/// Contents are compared so often even where the kernel said nothing (network file systems, bind mounts).
const COMPARE: Duration = Duration::from_secs(30);
/// Symlinks followed on the way to one file, as in the kernel.
const MAX_LINKS: usize = 40;

/// What can be told of a file without reading it.
type Stat = Option<(u64, u64, u64, i64, i64, i64)>;
/// What is in a file.
type Content = Option<Vec<u8>>;

/// Watches a configuration file, the `conf.d` beside it, and plugin files.
pub struct Watcher {
    config: PathBuf,
    plugins: Vec<PathBuf>,
    kernel: Option<RecommendedWatcher>,
    poked: Arc<Notify>,
    dirs: BTreeSet<PathBuf>,
    /// When contents are compared next, whatever the kernel says.
    compare_at: Instant,
    stats: BTreeMap<PathBuf, Stat>,
    contents: BTreeMap<PathBuf, Content>,
}

impl Watcher {
    pub fn new(config: &Path, plugins: Vec<PathBuf>) -> Self {
        let poked = Arc::new(Notify::new());
        let poke = poked.clone();
        let kernel = notify::recommended_watcher(move |_| poke.notify_one());
        let kernel = kernel
            .inspect_err(|e| {
                tracing::warn!("changes of the configuration are only seen every {COMPARE:?}: {e}");
            })
            .ok();
        let mut watcher = Watcher {
            config: config.to_owned(),
            plugins,
            kernel,
            poked,
            dirs: BTreeSet::new(),
            compare_at: Instant::now() + COMPARE,
            stats: BTreeMap::new(),
            contents: BTreeMap::new(),
        };
        watcher.arm();
        watcher.stats = watcher.look();
        watcher.contents = contents(watcher.stats.keys());
        watcher
    }

    /// Which plugin files are in use now.
    pub fn plugins(&mut self, plugins: Vec<PathBuf>) {
        if plugins == self.plugins {
            return;
        }
        self.plugins = plugins;
        self.arm();
        // Those that were watched before keep what was last seen of them: a change of them is still news.
        let now = self.look();
        self.stats.retain(|file, _| now.contains_key(file));
        self.contents.retain(|file, _| now.contains_key(file));
        for (file, stat) in now {
            if let Entry::Vacant(new) = self.stats.entry(file.clone()) {
                new.insert(stat);
                self.contents.insert(file.clone(), digest(&file));
            }
        }
    }

    /// Somebody else reads the files now, perhaps before they have come to rest: what is there once they have is news in
    /// any case, even where it is what was seen here last.
    pub fn read_elsewhere(&mut self) {
        self.contents.clear();
    }

    /// Resolves when the files are others than they were, and have been so for [`SETTLE`]. May be dropped and asked
    /// again; nothing is missed.
    pub async fn changed(&mut self) {
        loop {
            let mut now = self.look();
            if now == self.stats && Instant::now() < self.compare_at {
                tokio::select! {
                    // A directory may have come or gone.
                    () = self.poked.notified() => self.arm(),
                    () = tokio::time::sleep_until(self.compare_at) => {}
                }
                continue;
            }
            loop {
                tokio::time::sleep(SETTLE).await;
                let then = std::mem::replace(&mut now, self.look());
                if then == now {
                    break;
                }
            }
            self.arm();
            let files: Vec<PathBuf> = now.keys().cloned().collect();
            let read = tokio::task::spawn_blocking(move || contents(files.iter())).await;
            let Ok(read) = read else { continue };
            self.stats = now;
            self.compare_at = Instant::now() + COMPARE;
            if read != self.contents {
                self.contents = read;
                return;
            }
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        // Where conf.d can't be listed the configuration is invalid, which the reload says.
        let mut files =
            postern_config::sources(&self.config).unwrap_or_else(|_| vec![self.config.clone()]);
        files.extend(self.plugins.iter().cloned());
        files
    }

    fn look(&self) -> BTreeMap<PathBuf, Stat> {
        let stat = |file: &PathBuf| {
            let m = std::fs::metadata(file).ok()?;
            Some((
                m.dev(),
                m.ino(),
                m.len(),
                m.mtime(),
                m.mtime_nsec(),
                m.ctime_nsec(),
            ))
        };
        let files = self.files();
        files.into_iter().map(|f| (f.clone(), stat(&f))).collect()
    }

    /// Watches every directory in which a step of the way to one of the files could be exchanged.
    fn arm(&mut self) {
        let Some(kernel) = &mut self.kernel else {
            return;
        };
        let mut wanted = BTreeSet::new();
        let beside = self.config.parent().unwrap_or(Path::new("."));
        wanted.insert(beside.join("conf.d"));
        let files = postern_config::sources(&self.config).unwrap_or_default();
        for file in files.iter().chain([&self.config]).chain(&self.plugins) {
            steps(file, &mut wanted);
        }
        for dir in self.dirs.difference(&wanted) {
            let _ = kernel.unwatch(dir);
        }
        // Also those watched before: the directory of this name may be another one by now.
        self.dirs = wanted
            .into_iter()
            .filter(|dir| kernel.watch(dir, RecursiveMode::NonRecursive).is_ok())
            .collect();
    }
}

/// The directories that hold the file, and each symlink on the way to it.
fn steps(file: &Path, into: &mut BTreeSet<PathBuf>) {
    let Ok(mut path) = std::path::absolute(file) else {
        return;
    };
    for _ in 0..MAX_LINKS {
        let Some((link, rest)) = first_link(&path) else {
            break;
        };
        let dir = link.parent().unwrap_or(Path::new("/")).to_owned();
        let Ok(target) = std::fs::read_link(&link) else {
            break;
        };
        path = dir.join(target).join(rest);
        into.insert(dir);
    }
    if let Some(dir) = path.parent() {
        into.insert(dir.to_owned());
    }
}

/// The first part of the path that is a symlink, and what comes after it.
fn first_link(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut so_far = PathBuf::new();
    let mut parts = path.components();
    while let Some(part) = parts.next() {
        match part {
            Component::ParentDir => {
                so_far.pop();
            }
            part => so_far.push(part),
        }
        if so_far.is_symlink() {
            return Some((so_far, parts.as_path().to_owned()));
        }
    }
    None
}

fn contents<'f>(files: impl Iterator<Item = &'f PathBuf>) -> BTreeMap<PathBuf, Content> {
    files.map(|f| (f.clone(), digest(f))).collect()
}

fn digest(file: &Path) -> Content {
    use aws_lc_rs::digest::{Context, SHA256};
    let mut file = std::fs::File::open(file).ok()?;
    let mut hash = Context::new(&SHA256);
    let mut buffer = vec![0; 1 << 16];
    loop {
        match std::io::Read::read(&mut file, &mut buffer).ok()? {
            0 => return Some(hash.finish().as_ref().to_vec()),
            n => hash.update(buffer.get(..n)?),
        }
    }
}

#[cfg(test)]
mod tests;
