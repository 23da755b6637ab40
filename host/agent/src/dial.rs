//! Dialling a resource's own address: the only place from which the host connects for a
//! codec plugin, and where it looks whether the address answers at all. The address is the operator's; a plugin names
//! endpoints, never addresses.

use postern_relay::BoxedStream;
use std::io;
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

const CONNECT: Duration = Duration::from_secs(10);

/// Connects to `host:port` or `unix:/path`.
pub async fn dial(address: &str) -> Result<BoxedStream, String> {
    match timeout(CONNECT, connect(address)).await {
        Err(_) => Err(format!("{address} did not answer within {CONNECT:?}")),
        Ok(Err(e)) => Err(format!("{address}: {e}")),
        Ok(Ok(stream)) => Ok(stream),
    }
}

/// Whether `address` accepts a connection; nothing is sent. Why it does not is told to users: without the address.
pub async fn probe(address: &str, within: Duration) -> Result<(), String> {
    match timeout(within, connect(address)).await {
        Err(_) => Err(format!("no answer within {within:?}")),
        Ok(Err(e)) => Err(plain(&e)),
        Ok(Ok(_)) => Ok(()),
    }
}

async fn connect(address: &str) -> io::Result<BoxedStream> {
    if let Some(path) = address.strip_prefix("unix:") {
        return Ok(Box::new(UnixStream::connect(path).await?));
    }
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(Box::new(stream))
}

/// `Connection refused (os error 111)` as a person says it.
fn plain(e: &io::Error) -> String {
    let text = e.to_string();
    let words = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = words.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_probe_says_why_and_not_where() {
        let soon = Duration::from_secs(5);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        assert_eq!(probe(&address, soon).await, Ok(()));
        drop(listener);
        let refused = Err("connection refused".to_owned());
        assert_eq!(probe(&address, soon).await, refused);

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let address = format!("unix:{}", path.display());
        let gone = Err("no such file or directory".to_owned());
        assert_eq!(probe(&address, soon).await, gone);
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(probe(&address, soon).await, Ok(()));
    }
}
