//! Compiled components on disk, so that an agent starts in milliseconds.
//!
//! Loading one is running its machine code, so nothing is loaded that this host did not write: the directory and the files
//! are ours alone, each file has a `.sum` with its digest beside it, and the name carries the component's digest and what
//! the engine was configured as. Whatever does not fit is compiled again.

use crate::compile::{Urgency, compile};
use crate::trusted::private_dir;
use aws_lc_rs::digest;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use wasmtime::Engine;
use wasmtime::component::Component;

pub(crate) struct Cache {
    dir: PathBuf,
}

/// sha256, hex.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

/// Feeds whatever is hashed into sha256: the engine's compatibility hash must be the same over processes.
struct Sha(digest::Context);
impl Hasher for Sha {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
    fn finish(&self) -> u64 {
        0
    }
}

/// What the machine code depends on besides the component: wasmtime's version, its settings, the CPU.
fn engine_key(engine: &Engine) -> String {
    let mut sha = Sha(digest::Context::new(&digest::SHA256));
    engine.precompile_compatibility_hash().hash(&mut sha);
    hex::encode(&sha.0.finish().as_ref()[..8])
}

impl Cache {
    /// Opens the directory, and removes what no engine of ours could use (an older version's, a write that was cut).
    pub(crate) fn open(dir: &Path, engines: &[&Engine]) -> Result<Self, String> {
        private_dir(dir)?;
        let keys: Vec<String> = engines.iter().map(|e| engine_key(e)).collect();
        for entry in std::fs::read_dir(dir).map_err(|e| e.to_string())?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let ours = name.ends_with(".cwasm") || name.ends_with(".sum") || name.ends_with(".tmp");
            if ours
                && !keys
                    .iter()
                    .any(|k| name.contains(k.as_str()) && !name.ends_with(".tmp"))
            {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(Cache {
            dir: dir.to_path_buf(),
        })
    }

    /// The component as machine code, from the directory or compiled (which takes a while: not on an async thread).
    /// `digest` is that of `bytes`.
    pub(crate) fn load(
        &self,
        engine: &Engine,
        digest: &str,
        bytes: &[u8],
        urgency: Urgency,
    ) -> wasmtime::Result<Component> {
        let path = self
            .dir
            .join(format!("{digest}-{}.cwasm", engine_key(engine)));
        match open_own(&path).and_then(|f| f.map(|f| verified(f, &path)).transpose()) {
            Ok(Some(file)) => match deserialize(engine, &file) {
                Ok(component) => return Ok(component),
                Err(e) => tracing::warn!(
                    "plugin cache: {} does not load ({e:#}); compiling again",
                    path.display()
                ),
            },
            Ok(None) => {}
            Err(why) => tracing::warn!(
                "plugin cache: {} ignored: {why}; compiling again",
                path.display()
            ),
        }
        let started = std::time::Instant::now();
        let code = compile(engine, bytes, urgency)?;
        tracing::info!(
            "compiled plugin {} in {} ms",
            &digest[..12],
            started.elapsed().as_millis()
        );
        match self.store(&path, &code) {
            Ok(file) => deserialize(engine, &file),
            Err(e) => {
                // A full disk must not keep a plugin from running.
                tracing::warn!("plugin cache: cannot write {}: {e}", path.display());
                let mut scratch = tempfile::tempfile()?;
                scratch.write_all(&code)?;
                deserialize(engine, &scratch)
            }
        }
    }

    fn store(&self, path: &Path, code: &[u8]) -> io::Result<File> {
        let file = self.write(path, code)?;
        self.write(
            &sum_path(path),
            format!("{} {}\n", sha256(code), code.len()).as_bytes(),
        )?;
        Ok(file)
    }

    /// Atomically. Returns the file, opened for reading.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<File> {
        let mut tmp = tempfile::Builder::new()
            .suffix(".tmp")
            .permissions(std::fs::Permissions::from_mode(0o600))
            .tempfile_in(&self.dir)?;
        tmp.write_all(bytes)?;
        tmp.as_file().sync_all()?;
        tmp.persist(path).map_err(|e| e.error)?;
        File::open(path)
    }
}

fn sum_path(path: &Path) -> PathBuf {
    path.with_extension("sum")
}

/// Opens a file that is ours alone. `None` if there is none.
fn open_own(path: &Path) -> Result<Option<File>, String> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = match std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
    {
        Ok(f) => f,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.to_string()),
    };
    let meta = file.metadata().map_err(|e| e.to_string())?;
    if !meta.is_file() {
        return Err("it is no plain file".into());
    }
    if meta.uid() != nix::unistd::geteuid().as_raw() {
        return Err(format!("it belongs to uid {}", meta.uid()));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(format!(
            "others may write it (mode {:04o})",
            meta.mode() & 0o7777
        ));
    }
    Ok(Some(file))
}

/// The same file, if its digest is the one that was written beside it.
fn verified(mut file: File, path: &Path) -> Result<File, String> {
    let mut sum = String::new();
    match open_own(&sum_path(path))? {
        Some(f) => f
            .take(256)
            .read_to_string(&mut sum)
            .map_err(|e| e.to_string())?,
        None => return Err("its .sum is missing".into()),
    };
    let (mut context, mut len, mut buffer) =
        (digest::Context::new(&digest::SHA256), 0, vec![0; 64 << 10]);
    loop {
        match file.read(&mut buffer).map_err(|e| e.to_string())? {
            0 => break,
            n => {
                context.update(&buffer[..n]);
                len += n;
            }
        }
    }
    if sum != format!("{} {len}\n", hex::encode(context.finish())) {
        return Err("its digest is not the one in its .sum".into());
    }
    Ok(file)
}

#[allow(unsafe_code)]
fn deserialize(engine: &Engine, file: &File) -> wasmtime::Result<Component> {
    // By descriptor: what is mapped is the very file that was checked.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // SAFETY: the file must be what `precompile_component` of this wasmtime wrote, and must not change while it is mapped.
    // Either we have just written it, or it is ours alone by owner and mode, lies in a directory that is ours alone, and has
    // the digest that we noted when we wrote it. We replace such files by renaming, and never write into one.
    unsafe { Component::deserialize_file(engine, path) }
}
