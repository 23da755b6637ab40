//! Free ports.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::net::TcpListener;
use std::sync::{Mutex, PoisonError};

/// Locked files, one for each port that this process was given: tests run beside each other, each in a process of its own, and
/// a port is not in use before the program that it is for listens.
static OURS: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// A port nobody listens on and no other test has, below those that the kernel gives to outgoing connections (which would race us).
pub fn free_port() -> Result<u16> {
    let dir = std::env::temp_dir().join(format!("postern-ports-{}", nix::unistd::getuid()));
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    for _ in 0..500 {
        let mut bytes = [0u8; 2];
        std::io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut bytes)?;
        let port = 15_000 + u16::from_be_bytes(bytes) % 17_000;
        let lock = File::create(dir.join(port.to_string()))?;
        if lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            OURS.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(lock);
            return Ok(port);
        }
    }
    bail!("no free port between 15000 and 32000")
}
