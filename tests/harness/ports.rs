//! Free ports.

use anyhow::{Result, bail};
use std::net::TcpListener;

/// A port nobody listens on, below those that the kernel gives to outgoing connections (which would race us).
pub fn free_port() -> Result<u16> {
    for _ in 0..500 {
        let mut bytes = [0u8; 2];
        std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
        let port = 15_000 + u16::from_be_bytes(bytes) % 17_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port between 15000 and 32000")
}
