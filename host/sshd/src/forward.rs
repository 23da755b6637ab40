//! `-L`, `-D`, `-W`: connections from this host on behalf of the client.

use crate::SshdOptions;
use crate::flow::Flow;
use crate::pump::{Inbox, Inward, Sink, Source, outward};
use crate::shared::Shared;
use nix::ifaddrs::getifaddrs;
use postern_audit::names;
use russh::server::{ChannelOpenHandle, Msg};
use russh::{Channel, ChannelMsg, ChannelOpenFailure};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

const DIAL: Duration = Duration::from_secs(10);

/// Why a forwarding does not come about.
pub enum Refusal {
    /// Not allowed: audited.
    Prohibited(String),
    /// It is allowed, but there is nobody, or no way.
    Unreachable(String),
}

impl Refusal {
    fn reason(&self) -> &str {
        match self {
            Refusal::Prohibited(why) | Refusal::Unreachable(why) => why,
        }
    }

    pub fn to_ssh(&self) -> ChannelOpenFailure {
        let code = match self {
            Refusal::Prohibited(_) => 1,
            Refusal::Unreachable(_) => 2,
        };
        ChannelOpenFailure::Other {
            code,
            reason: self.reason().to_owned(),
        }
    }
}

/// Records what became of a wish to forward.
pub fn audit(shared: &Shared, host: &str, port: u16, outcome: Result<SocketAddr, &Refusal>) {
    let event = shared
        .trail
        .event(names::PORT_FORWARD)
        .with("target", format!("{host}:{port}"))
        .with("success", outcome.is_ok());
    shared.trail.later(match outcome {
        Ok(addr) => event.with("address", addr.to_string()),
        Err(e) => event.with("reason", e.reason()),
    });
}

/// Dials, answers the client, and moves bytes until both directions have ended.
pub async fn forward(
    channel: Channel<Msg>,
    reply: ChannelOpenHandle,
    (host, port): (String, u16),
    flow: Arc<Flow>,
    shared: Arc<Shared>,
) {
    tokio::select! {
        () = run(channel, reply, &host, port, &flow, &shared) => {}
        () = shared.gone.cancelled() => {}
    }
    flow.close();
    shared.channel_ended(None).await;
}

async fn run(
    channel: Channel<Msg>,
    reply: ChannelOpenHandle,
    host: &str,
    port: u16,
    flow: &Flow,
    shared: &Shared,
) {
    let dialled = async {
        shared.recorded().await.map_err(Refusal::Prohibited)?;
        tokio::time::timeout(DIAL, dial(&shared.opts, host, port))
            .await
            .map_err(|_| Refusal::Unreachable(format!("{host}:{port} did not answer in 10 s")))?
    };
    let stream = match dialled.await {
        Ok(stream) => stream,
        Err(refusal) => {
            audit(shared, host, port, Err(&refusal));
            return reply.reject(refusal.to_ssh()).await;
        }
    };
    if let Ok(addr) = stream.peer_addr() {
        audit(shared, host, port, Ok(addr));
    }
    let _ = stream.set_nodelay(true);
    reply.accept().await;

    let (mut from, to) = channel.split();
    let (read, write) = stream.into_split();
    let (mut inbox, mut inward) = (Inbox::default(), Inward::new(Sink::Tcp(write)));
    let output = async {
        outward(Source::Tcp(read), &to, None, flow).await;
        let _ = to.eof().await;
    };
    tokio::pin!(output);
    let mut sent_all = false;
    while !(sent_all && inward.is_done()) {
        tokio::select! {
            () = &mut output, if !sent_all => sent_all = true,
            () = inward.step(&mut inbox, flow) => {}
            message = from.wait() => match message {
                Some(ChannelMsg::Data { data }) => inbox.push(data),
                Some(ChannelMsg::Eof) => inbox.end(),
                Some(ChannelMsg::Close) | None => return,
                Some(_) => {}
            },
        }
    }
    let _ = to.close().await;
}

async fn dial(opts: &SshdOptions, host: &str, port: u16) -> Result<TcpStream, Refusal> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port))
        .await
        .map_err(|e| Refusal::Unreachable(format!("{host}: {e}")))?
        .collect();
    // What is checked is what is dialled: the name is not looked up again.
    if addresses
        .iter()
        .any(|a| is_ours(*a, &opts.denied_dials, is_local))
    {
        return Err(Refusal::Prohibited(format!(
            "{host}:{port} is one of posternd's own sockets"
        )));
    }
    let mut last = format!("{host}: no address");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(e) => last = format!("{address}: {e}"),
        }
    }
    Err(Refusal::Unreachable(last))
}

/// Whether dialling `target` would reach one of these listeners.
fn is_ours(
    target: SocketAddr,
    listeners: &[SocketAddr],
    is_local: impl Fn(IpAddr) -> bool,
) -> bool {
    let ip = match target.ip().to_canonical() {
        // Connecting to "any address" reaches this host.
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    listeners
        .iter()
        .filter(|l| l.port() == target.port())
        .any(|l| match l.ip().to_canonical() {
            any if any.is_unspecified() => ip.is_loopback() || is_local(ip),
            one => one == ip,
        })
}

/// Whether this host has the address.
fn is_local(ip: IpAddr) -> bool {
    let Ok(addresses) = getifaddrs() else {
        // Better one forwarding too few.
        return true;
    };
    addresses.filter_map(|i| i.address).any(|a| {
        let own = a
            .as_sockaddr_in()
            .map(|a| IpAddr::V4(a.ip()))
            .or_else(|| a.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())));
        own == Some(ip)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(target: &str, listener: &str) -> bool {
        let local = |ip: IpAddr| ip.to_string() == "10.0.0.5";
        is_ours(target.parse().unwrap(), &[listener.parse().unwrap()], local)
    }

    #[test]
    fn own_sockets_are_known_by_any_of_their_addresses() {
        assert!(ours("127.0.0.1:3025", "127.0.0.1:3025"));
        assert!(ours("[::ffff:127.0.0.1]:3025", "127.0.0.1:3025"));
        assert!(ours("0.0.0.0:3025", "127.0.0.1:3025"));
        assert!(ours("[::]:3025", "[::1]:3025"));
        assert!(ours("10.0.0.5:443", "0.0.0.0:443"));
        assert!(ours("10.0.0.5:443", "[::]:443"));
        assert!(ours("127.0.0.9:443", "0.0.0.0:443"));
        assert!(ours("[::1]:443", "[::]:443"));
    }

    #[test]
    fn other_sockets_are_not_ours() {
        assert!(!ours("127.0.0.1:3026", "127.0.0.1:3025"));
        assert!(!ours("127.0.0.2:3025", "127.0.0.1:3025"));
        assert!(!ours("10.0.0.6:443", "0.0.0.0:443"));
    }
}
