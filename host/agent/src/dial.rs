//! Dialling a resource's own address: the only place from which the host connects for a
//! codec plugin. The address is the operator's; a plugin names endpoints, never addresses.

use postern_relay::BoxedStream;
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};

const CONNECT: Duration = Duration::from_secs(10);

/// Connects to `host:port` or `unix:/path`.
pub async fn dial(address: &str) -> Result<BoxedStream, String> {
    let connecting = async {
        if let Some(path) = address.strip_prefix("unix:") {
            let stream = UnixStream::connect(path).await?;
            return Ok(Box::new(stream) as BoxedStream);
        }
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream) as BoxedStream)
    };
    match tokio::time::timeout(CONNECT, connecting).await {
        Err(_) => Err(format!("{address} did not answer within {CONNECT:?}")),
        Ok(Err(e)) => Err(format!("{address}: {}", io_text(&e))),
        Ok(Ok(stream)) => Ok(stream),
    }
}

fn io_text(e: &std::io::Error) -> String {
    e.to_string()
}
