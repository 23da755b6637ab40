//! The reverse tunnel between an agent's service and the proxy, both ends (design D7).
//!
//! A tunnel is a set of SSH connections, all dialled by the agent: one for control (announcements, heartbeat,
//! drain) and data connections that carry one stream at a time. Streams never share a connection, because
//! channels of one SSH connection share one fate: a reader that stops stalls all of them. The rest of the code
//! sees [`Registry::open`] at the proxy and a receiver of [`Incoming`] at the agent, each with a
//! [`TunnelStream`], so that the transport can be exchanged.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod client;
mod cut;
mod error;
mod registry;
mod server;
mod splice;
mod ssh;
mod stream;
#[cfg(test)]
mod tests;
mod wire;

pub use client::{
    Credentials, Incoming, Timing, Transport, TunnelClient, TunnelClientOptions, TunnelState,
    client, http_proxy_for,
};
pub use error::{DialError, OpenError};
pub use registry::{AgentView, Registry, RouteInfo};
pub use server::{HostCredentials, LockCheck, TunnelServer, TunnelServerOptions};
pub use splice::{Spliced, splice};
pub use stream::TunnelStream;
pub use wire::{
    AnnouncedResource, Announcement, MAX_HEADER, StreamHeader, parse_json, read_json, write_json,
};

/// TCP options for both ends: no delay, and keepalives, which find a dead peer of a quiet connection within 30 s
/// even where its reader has stopped (SSH's own would take a stopped reader for a dead one).
pub fn tune(tcp: &tokio::net::TcpStream) -> std::io::Result<()> {
    tcp.set_nodelay(true)?;
    let second = std::time::Duration::from_secs(1);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(second * 15)
        .with_interval(second * 5)
        .with_retries(3);
    socket2::SockRef::from(tcp).set_tcp_keepalive(&keepalive)
}
