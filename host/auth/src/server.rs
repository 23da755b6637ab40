//! The listeners: gRPC over TLS for everybody, and the Unix socket for administrators. Strangers get little time
//! and few connections, apart from those of agents and users.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use postern_api::MAX_MESSAGE;
use postern_api::v1::admin_service_server::AdminServiceServer;
use postern_api::v1::agent_service_server::AgentServiceServer;
use postern_api::v1::join_service_server::JoinServiceServer;
use postern_api::v1::login_service_server::LoginServiceServer;
use postern_api::v1::user_service_server::UserServiceServer;
use postern_identity::Peer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::admin::Admin;
use crate::agents::{Agents, Join};
use crate::budget::{Budgets, Counted, Purpose, Seat, Slot};
use crate::caller::{self, ConnInfo, Patience};
use crate::error::AuthError;
use crate::limits::network;
use crate::login::Login;
use crate::state::Shared;
use crate::users::Users;

const HANDSHAKE: Duration = Duration::from_secs(5);
/// From the end of the handshake until a stranger's first request is there.
const STRANGER: Duration = Duration::from_secs(5);
const KEEPALIVE: Duration = Duration::from_secs(10);
const STREAMS: u32 = 64;
/// How long calls may take to end at shutdown.
const GRACE: Duration = Duration::from_secs(5);

/// `inherited`: what the process before listened on.
pub async fn bind(
    listen: &str,
    inherited: Option<std::net::TcpListener>,
) -> Result<TcpListener, AuthError> {
    let fail = |e: io::Error| AuthError::Listen {
        addr: listen.to_owned(),
        why: e.to_string(),
    };
    match inherited {
        Some(listener) => listener
            .set_nonblocking(true)
            .and_then(|()| TcpListener::from_std(listener))
            .map_err(fail),
        None => TcpListener::bind(listen).await.map_err(fail),
    }
}

/// The administration socket, 0600. A socket that nobody answers on is what a killed process left.
pub fn bind_admin(path: &Path) -> Result<UnixListener, AuthError> {
    let fail = |e: io::Error| AuthError::File {
        what: "administration socket",
        path: path.to_owned(),
        why: e.to_string(),
    };
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(fail(e)),
    }
    let listener = UnixListener::bind(path).map_err(fail)?;
    // Between bind and chmod the socket's directory (0700) keeps others out.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    Ok(listener)
}

/// Serves the TLS port until shutdown, then lets calls end.
pub async fn serve(
    state: Shared,
    listener: TcpListener,
    tls: watch::Receiver<Arc<rustls::ServerConfig>>,
) {
    let (ready, incoming) = mpsc::channel(16);
    let accept = accept(state.clone(), listener, tls, ready);
    let shutdown = state.shutdown.clone();
    let server = builder()
        .max_concurrent_streams(STREAMS)
        .add_service(
            JoinServiceServer::new(Join(state.clone())).max_decoding_message_size(MAX_MESSAGE),
        )
        .add_service(
            LoginServiceServer::new(Login(state.clone())).max_decoding_message_size(MAX_MESSAGE),
        )
        .add_service(
            AgentServiceServer::new(Agents(state.clone())).max_decoding_message_size(MAX_MESSAGE),
        )
        .add_service(UserServiceServer::new(Users(state)).max_decoding_message_size(MAX_MESSAGE))
        .serve_with_incoming_shutdown(
            ReceiverStream::new(incoming),
            shutdown.clone().cancelled_owned(),
        );
    let (_, served) = tokio::join!(
        shutdown.run_until_cancelled(accept),
        with_grace(&shutdown, server)
    );
    if let Err(e) = served {
        tracing::error!("the gRPC server ended: {e}");
    }
}

/// Serves the administration socket until shutdown, and takes the socket away.
pub async fn serve_admin(state: Shared, listener: UnixListener, path: PathBuf) {
    let shutdown = state.shutdown.clone();
    // The mode of the socket says the same; this holds where a file system ignores it.
    let us = std::fs::metadata(&path)
        .map(|m| std::os::unix::fs::MetadataExt::uid(&m))
        .unwrap_or(0);
    let incoming = UnixListenerStream::new(listener).filter(move |io| match io {
        Ok(io) => allowed(io, us),
        Err(_) => true,
    });
    let server = builder()
        .add_service(AdminServiceServer::new(Admin(state)).max_decoding_message_size(MAX_MESSAGE))
        .serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
    if let Err(e) = with_grace(&shutdown, server).await {
        tracing::error!("the administration server ended: {e}");
    }
    let _ = std::fs::remove_file(&path);
}

fn allowed(io: &UnixStream, us: u32) -> bool {
    io.peer_cred()
        .is_ok_and(|peer| peer.uid() == us || peer.uid() == 0)
}

fn builder() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
}

/// Runs to the end, or until `GRACE` after the shutdown began.
async fn with_grace<E>(
    shutdown: &CancellationToken,
    server: impl Future<Output = Result<(), E>>,
) -> Result<(), E> {
    let limit = async {
        shutdown.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        ended = server => ended,
        () = limit => Ok(()),
    }
}

async fn accept(
    state: Shared,
    listener: TcpListener,
    tls: watch::Receiver<Arc<rustls::ServerConfig>>,
    ready: mpsc::Sender<io::Result<Conn>>,
) {
    let budgets = Arc::new(Budgets::new());
    // Dropped with this future: handshakes in hand end at shutdown.
    let mut handshakes = JoinSet::new();
    loop {
        while handshakes.try_join_next().is_some() {}
        let (tcp, addr) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                // Out of descriptors, usually: don't spin.
                tracing::warn!("cannot accept a connection: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // The newest goes, so that those who come after it are not kept waiting.
        let Some(slot) = budgets.take(Purpose::Handshake, addr.ip()) else {
            tracing::debug!(peer = %addr, "connection refused: too many TLS handshakes");
            continue;
        };
        let acceptor = TlsAcceptor::from(tls.borrow().clone());
        let (state, ready, budgets) = (state.clone(), ready.clone(), budgets.clone());
        handshakes.spawn(async move {
            match timeout(HANDSHAKE, handshake(&state, acceptor, tcp, addr, &budgets)).await {
                Ok(Some(conn)) => {
                    drop(slot);
                    // Full only while the server is overloaded; the connection's own limits run on.
                    let _ = ready.send(Ok(conn)).await;
                }
                Ok(None) => {}
                Err(_) => tracing::debug!(peer = %addr, "no TLS handshake within {} s", HANDSHAKE.as_secs()),
            }
        });
    }
}

async fn handshake(
    state: &Shared,
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    addr: SocketAddr,
    budgets: &Arc<Budgets>,
) -> Option<Conn> {
    let _ = tcp.set_nodelay(true);
    let io = match acceptor.accept(tcp).await {
        Ok(io) => io,
        Err(e) => {
            refused_certificate(state, addr, &e).await;
            return None;
        }
    };
    let chain = io.get_ref().1.peer_certificates();
    let peer = chain
        .map(|chain| Peer::from_chain(chain, state.authority.trust()).map_err(|e| e.to_string()));
    let ip = addr.ip();
    let purpose = match &peer {
        Some(Ok((Peer::Agent(_), _))) => Purpose::Agent,
        Some(Ok((Peer::User(_), _))) => Purpose::User,
        _ => Purpose::Stranger,
    };
    let (seat, slot) = match purpose {
        Purpose::Stranger => (Seat::stranger(budgets, ip), None),
        known => (None, budgets.take(known, ip)),
    };
    if seat.is_none() && slot.is_none() {
        // A flood writes no more of these than it may.
        if state
            .refusal_limit
            .take(("connection", network(ip)))
            .is_ok()
        {
            tracing::warn!(peer = %addr, "connection refused: too many connections ({purpose:?})");
        }
        return None;
    }
    let proxy = match &peer {
        Some(Ok((Peer::Agent(id), _))) if id.service == caller::PROXY => budgets.proxy_at(ip),
        _ => None,
    };
    let patience = Patience::new(STRANGER);
    let cutoff = seat
        .is_some()
        .then(|| Box::pin(sleep_until(patience.deadline().into())));
    Some(Conn {
        io,
        info: ConnInfo {
            addr,
            peer,
            patience,
            seat,
        },
        cutoff,
        _held: (slot, proxy),
    })
}

/// rustls refuses expired and foreign client certificates in the handshake; that is worth an audit event.
async fn refused_certificate(state: &Shared, addr: SocketAddr, e: &io::Error) {
    let cause = e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(why)) = cause else {
        tracing::debug!(peer = %addr, "TLS handshake failed: {e}");
        return;
    };
    let message = format!("client certificate refused: {why}");
    caller::refusal(
        state,
        "unknown",
        addr,
        "TLS",
        postern_api::status::reasons::BAD_CERTIFICATE,
        message,
    )
    .await;
}

/// A connection of the TLS port. One without a valid client certificate is cut off when its patience ends.
struct Conn {
    io: TlsStream<TcpStream>,
    info: ConnInfo,
    cutoff: Option<Pin<Box<Sleep>>>,
    _held: (Option<Slot>, Option<Counted>),
}

impl Conn {
    fn check_cutoff(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(cutoff) = &mut self.cutoff else {
            return Ok(());
        };
        while cutoff.as_mut().poll(cx).is_ready() {
            let until = self.info.patience.deadline();
            if until <= std::time::Instant::now() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "an anonymous connection took too long",
                ));
            }
            cutoff.as_mut().reset(until.into());
        }
        Ok(())
    }
}

impl Connected for Conn {
    type ConnectInfo = ConnInfo;
    fn connect_info(&self) -> ConnInfo {
        self.info.clone()
    }
}

impl AsyncRead for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_cutoff(cx)?;
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
