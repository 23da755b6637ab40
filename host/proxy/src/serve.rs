//! One connection on the public port, from its first byte to where it goes. Until it has said who it is, it has
//! ten seconds.

use crate::anonymous::Permit;
use crate::cancel::{self, CancelRequest};
use crate::direct::{self, Alert};
use crate::hello::{Hello, read_hello};
use crate::prefixed::Prefixed;
use crate::route::{Route, route};
use crate::session;
use crate::shared::{Shared, Terminating};
use crate::sniff::{Sniff, sniff};
use crate::web;
use rustls::ServerConfig;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Duration, Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;

/// For everything before a peer is known.
const ANONYMOUS: Duration = Duration::from_secs(10);
/// For a whole ClientHello, from its first byte.
const HELLO: Duration = Duration::from_secs(5);

/// Read from the network ahead of TLS, bytes.
const READ_AHEAD: usize = 32 * 1024;

/// What a connection turned out to be.
enum Begun {
    Ssh(Vec<u8>),
    Cancel(CancelRequest),
    Tls(Hello),
}

pub(crate) async fn connection(shared: Arc<Shared>, tcp: TcpStream, peer: SocketAddr) {
    let deadline = Instant::now() + ANONYMOUS;
    let (route, outcome) = match shared.budget.enter(peer) {
        Ok(permit) => routed(&shared, tcp, peer, permit, deadline).await,
        Err(why) => {
            debug!(%peer, why, "connection dropped");
            ("none", "over-budget")
        }
    };
    metrics::counter!("postern_proxy_connections_total", "route" => route, "outcome" => outcome)
        .increment(1);
}

async fn routed(
    shared: &Arc<Shared>,
    mut tcp: TcpStream,
    peer: SocketAddr,
    permit: Permit,
    deadline: Instant,
) -> (&'static str, &'static str) {
    if postern_tunnel::tune(&tcp).is_err() {
        return ("none", "broken");
    }
    let begun = match timeout_at(deadline, begin(&mut tcp)).await {
        Ok(Ok(begun)) => begun,
        Ok(Err(e)) => {
            debug!(%peer, error = %e, "connection refused");
            let outcome = match e.kind() {
                io::ErrorKind::InvalidData => "garbage",
                io::ErrorKind::TimedOut => "timeout",
                _ => "broken",
            };
            return ("none", outcome);
        }
        Err(_) => return ("none", "timeout"),
    };
    let hello = match begun {
        Begun::Ssh(prefix) => {
            let io = Prefixed::new(prefix, tcp);
            Box::pin(shared.tunnel.serve_until(io, peer, deadline, permit)).await;
            return ("ssh", "ok");
        }
        Begun::Cancel(request) => return ("cancel", cancel::pass_on(shared, peer, request).await),
        Begun::Tls(hello) => hello,
    };
    let route = route(&hello, &shared.cluster, &shared.public_host);
    // Boxed, because there are thousands of idle connections, and each would be as large as the largest kind.
    let name = route.name();
    let outcome = match route {
        Route::Unknown(sni) => {
            debug!(%peer, sni, "nothing has this name");
            direct::refuse(tcp, Alert::UnrecognizedName).await;
            "unknown-name"
        }
        Route::Auth => match shared.passed.enter(peer) {
            Ok(_passed) => {
                drop(permit);
                Box::pin(direct::to_auth(shared, tcp, hello)).await
            }
            Err(why) => {
                debug!(%peer, why, "not passed through to Auth");
                direct::refuse(tcp, Alert::InternalError).await;
                "over-budget"
            }
        },
        Route::Direct(id) => Box::pin(direct::to_agent(shared, tcp, peer, id, hello, permit)).await,
        Route::Tunnel | Route::Session | Route::Web => {
            Box::pin(terminated(
                shared, tcp, peer, route, hello, permit, deadline,
            ))
            .await
        }
    };
    (name, outcome)
}

/// What ends here: tunnels in TLS, the helper path, web.
async fn terminated(
    shared: &Arc<Shared>,
    tcp: TcpStream,
    peer: SocketAddr,
    route: Route,
    hello: Hello,
    permit: Permit,
    deadline: Instant,
) -> &'static str {
    let Some(tls) = shared.tls.borrow().clone() else {
        // Not joined yet.
        direct::refuse(tcp, Alert::InternalError).await;
        return "not-ready";
    };
    let config = pick(&tls, shared, &route, &hello);
    // rustls reads 4 KB at a time; bulk wants fewer system calls.
    let io = BufReader::with_capacity(READ_AHEAD, Prefixed::new(hello.raw, tcp));
    let io = match timeout_at(deadline, TlsAcceptor::from(config).accept(io)).await {
        Ok(Ok(io)) => io,
        Ok(Err(e)) => {
            debug!(%peer, error = %e, "TLS handshake failed");
            return "handshake";
        }
        Err(_) => return "timeout",
    };
    match route {
        Route::Tunnel => {
            Box::pin(shared.tunnel.serve_until(io, peer, deadline, permit)).await;
            "ok"
        }
        Route::Session => Box::pin(session::serve(shared, io, peer, permit, deadline)).await,
        _ => Box::pin(serve_web(shared, io, deadline)).await,
    }
}

async fn serve_web(
    shared: &Arc<Shared>,
    io: TlsStream<BufReader<Prefixed<TcpStream>>>,
    deadline: Instant,
) -> &'static str {
    match timeout_at(deadline, web::serve(shared, io)).await {
        Ok(Ok(())) => "ok",
        Ok(Err(_)) => "broken",
        Err(_) => "timeout",
    }
}

fn pick(tls: &Terminating, shared: &Shared, route: &Route, hello: &Hello) -> Arc<ServerConfig> {
    match (route, &tls.public) {
        (Route::Tunnel, _) => tls.tunnel.clone(),
        (Route::Session, _) => tls.session.clone(),
        // Who asks for the name inside the cluster knows the cluster's CA.
        (_, Some(public))
            if hello.sni.as_deref() != Some(&postern_identity::proxy_dns(&shared.cluster)) =>
        {
            public.clone()
        }
        _ => tls.web.clone(),
    }
}

/// Reads until it is clear what a connection is.
async fn begin(tcp: &mut TcpStream) -> io::Result<Begun> {
    let mut bytes = Vec::new();
    let mut tls_only = false;
    let mut gssenc = false;
    loop {
        match sniff(&bytes) {
            Sniff::NeedMore => {
                let mut some = [0; 1024];
                let n = tcp.read(&mut some).await?;
                if n == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                bytes.extend_from_slice(&some[..n]);
            }
            Sniff::Tls => {
                return timeout(HELLO, read_hello(tcp, bytes))
                    .await
                    .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
                    .map(Begun::Tls);
            }
            Sniff::Ssh if !tls_only && !gssenc => return Ok(Begun::Ssh(bytes)),
            // Bytes behind a request were sent before we agreed to anything: somebody in between may have put
            // them there, to have them taken for encrypted ones (CVE-2021-23214).
            Sniff::PostgresGssEnc if bytes.len() == 8 && !gssenc && !tls_only => {
                gssenc = true;
                bytes.clear();
                tcp.write_all(b"N").await?;
            }
            // Never after we agreed to TLS. Anybody can read it on its way, as with any PostgreSQL.
            Sniff::PostgresCancel if !tls_only => {
                return CancelRequest::read(tcp, bytes).await.map(Begun::Cancel);
            }
            Sniff::PostgresSsl if bytes.len() == 8 && !tls_only => {
                tls_only = true;
                bytes.clear();
                tcp.write_all(b"S").await?;
            }
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "none of our protocols",
                ));
            }
        }
    }
}
