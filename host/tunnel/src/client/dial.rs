//! From nothing to an authenticated SSH connection: TCP or an HTTP CONNECT proxy, TLS where needed, SSH with
//! certificates both ways.

use super::handler::{ClientHandler, SshError};
use super::{Credentials, Transport, TunnelClientOptions};
use crate::cut::{Cut, Heard};
use crate::error::DialError;
use crate::ssh::{self, Role};
use crate::stream::Dropped;
use crate::stream::{Sending, TunnelStream};
use http_body_util::Empty;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use postern_identity::{CaKind, proxy_dns, tls};
use russh::{ChannelId, client};
use rustls::pki_types::ServerName;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

/// ALPN of SSH inside TLS.
pub(crate) const ALPN: &[u8] = b"postern-tunnel";

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}
type BoxIo = Box<dyn Io>;

/// The HTTP proxy to use for `proxy_addr` (`host:port`), by the values of `HTTPS_PROXY` and `NO_PROXY`, which the
/// caller reads once. The result goes into [`TunnelClientOptions::http_proxy`].
pub fn http_proxy_for(
    proxy_addr: &str,
    https_proxy: Option<&str>,
    no_proxy: Option<&str>,
) -> Option<String> {
    let all = https_proxy.filter(|p| !p.trim().is_empty())?;
    let matcher = Matcher::builder()
        .https(all.to_owned())
        .no(no_proxy.unwrap_or_default().to_owned())
        .build();
    let target = format!("https://{proxy_addr}/").parse().ok()?;
    // The URL goes on as it was written: the matcher takes the credentials out of it.
    matcher.intercept(&target).map(|_| all.trim().to_owned())
}

/// Dials for one tunnel client; remembers which transport works.
pub(crate) struct Dialer {
    pub opts: TunnelClientOptions,
    tls_works: AtomicBool,
}

/// An authenticated SSH connection to the proxy.
pub(crate) struct Connection {
    handle: client::Handle<ClientHandler>,
    /// Cancelled when the connection ended; cancelling it cuts the connection.
    pub token: CancellationToken,
    pub closed: mpsc::Receiver<ChannelId>,
    _cut: DropGuard,
}

/// A channel as a stream, and how its owner hears of its end.
pub(crate) struct Opened {
    pub stream: TunnelStream,
    pub id: ChannelId,
    pub dropped: oneshot::Receiver<Dropped>,
    pub peer_closed: CancellationToken,
}

impl Connection {
    /// Opens a channel.
    pub async fn open(&self) -> Result<Opened, russh::Error> {
        let (reading, writing) = self.handle.channel_open_session().await?.split();
        let id = writing.id();
        let peer_closed = self.token.child_token();
        let (stream, dropped) = TunnelStream::new(
            reading,
            Sending::Client(Arc::new(writing)),
            peer_closed.clone(),
            self.token.clone(),
        );
        Ok(Opened {
            stream,
            id,
            dropped,
            peer_closed,
        })
    }

    /// Asks the other end for a sign of life.
    pub async fn ping(&self) -> Result<(), russh::Error> {
        self.handle.send_ping().await
    }
}

impl Dialer {
    pub fn new(opts: TunnelClientOptions) -> Self {
        Dialer {
            opts,
            tls_works: AtomicBool::new(false),
        }
    }

    pub async fn dial(
        &self,
        credentials: &Credentials,
        role: &Role,
    ) -> Result<Connection, DialError> {
        match self.opts.transport {
            Transport::Ssh => self.dial_by(false, credentials, role).await,
            Transport::Tls => self.dial_by(true, credentials, role).await,
            Transport::Auto => {
                let tls = self.tls_works.load(Ordering::Relaxed);
                let first = match self.dial_by(tls, credentials, role).await {
                    Err(e) if e.other_transport_may_help() => e,
                    done => return done,
                };
                match self.dial_by(!tls, credentials, role).await {
                    Ok(connection) => {
                        self.tls_works.store(!tls, Ordering::Relaxed);
                        Ok(connection)
                    }
                    Err(second) if tls => Err(DialError::both(second, first)),
                    Err(second) => Err(DialError::both(first, second)),
                }
            }
        }
    }

    async fn dial_by(
        &self,
        tls: bool,
        credentials: &Credentials,
        role: &Role,
    ) -> Result<Connection, DialError> {
        let addr = &self.opts.proxy_addr;
        let limit = self.opts.timing.dial_timeout;
        let mut io = within(limit, "connecting", addr, self.reach()).await?;
        if tls {
            io = within(
                limit,
                "TLS handshake",
                addr,
                self.inside_tls(io, credentials),
            )
            .await?;
        }
        within(
            limit,
            "SSH handshake",
            addr,
            self.ssh(io, credentials, role),
        )
        .await
    }

    /// TCP to the proxy, directly or through the HTTP proxy.
    async fn reach(&self) -> Result<BoxIo, DialError> {
        let addr = &self.opts.proxy_addr;
        let Some(via) = &self.opts.http_proxy else {
            return Ok(Box::new(
                tcp(addr).await.map_err(|e| DialError::connect(addr, e))?,
            ));
        };
        let via = HttpProxy::parse(via)?;
        let fail = |why: String| DialError::HttpProxy {
            via: via.addr.clone(),
            target: addr.clone(),
            why,
        };
        let tcp = tcp(&via.addr).await.map_err(|e| fail(e.to_string()))?;
        let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp))
            .await
            .map_err(|e| fail(e.to_string()))?;
        // Ends with the connection it drives.
        tokio::spawn(connection.with_upgrades());
        let mut request =
            http::Request::connect(addr.as_str()).header(http::header::HOST, addr.as_str());
        if let Some(auth) = via.authorization {
            request = request.header(http::header::PROXY_AUTHORIZATION, auth);
        }
        let request = request
            .body(Empty::<bytes::Bytes>::new())
            .map_err(|e| fail(e.to_string()))?;
        let response = send
            .send_request(request)
            .await
            .map_err(|e| fail(e.to_string()))?;
        if !response.status().is_success() {
            return Err(fail(format!("it answered {}", response.status())));
        }
        let upgraded = hyper::upgrade::on(response)
            .await
            .map_err(|e| fail(e.to_string()))?;
        Ok(Box::new(TokioIo::new(upgraded)))
    }

    async fn inside_tls(&self, io: BoxIo, credentials: &Credentials) -> Result<BoxIo, DialError> {
        let name = proxy_dns(&self.opts.cluster);
        let fail = |why: String| DialError::Tls {
            addr: self.opts.proxy_addr.clone(),
            name: name.clone(),
            why,
        };
        let config = tls::client(&credentials.trust, CaKind::Host, None, &[ALPN])
            .map_err(|e| DialError::Credentials(e.to_string()))?;
        let server = ServerName::try_from(name.clone()).map_err(|e| fail(e.to_string()))?;
        let tls = tokio_rustls::TlsConnector::from(config)
            // rustls reads 4 KB at a time; bulk wants fewer system calls.
            .connect(server, BufReader::with_capacity(32 * 1024, io))
            .await
            .map_err(|e| fail(e.to_string()))?;
        Ok(Box::new(tls))
    }

    async fn ssh(
        &self,
        io: BoxIo,
        credentials: &Credentials,
        role: &Role,
    ) -> Result<Connection, DialError> {
        let (key, certificate) = ssh::parse_pair(&credentials.ssh_key, &credentials.ssh_cert)
            .map_err(DialError::Credentials)?;
        let token = CancellationToken::new();
        let cut = token.clone().drop_guard();
        let (handler, closed) =
            ClientHandler::new(&self.opts.cluster, &credentials.trust, token.clone());
        let addr = || self.opts.proxy_addr.clone();
        let io = ssh::read_ahead(io);
        let io = Cut::new(io, token.clone(), Heard::now());
        let mut handle = client::connect_stream(Arc::new(ssh::client_config()), io, handler)
            .await
            .map_err(|e| match e {
                SshError::HostRefused(why) => DialError::HostRefused { addr: addr(), why },
                SshError::Ssh(e) => DialError::Ssh {
                    addr: addr(),
                    why: e.to_string(),
                },
            })?;
        let accepted = handle
            .authenticate_openssh_cert(role.user(), Arc::new(key), certificate)
            .await
            .map_err(|e| DialError::Ssh {
                addr: addr(),
                why: e.to_string(),
            })?;
        if !accepted.success() {
            return Err(DialError::Refused { addr: addr() });
        }
        Ok(Connection {
            handle,
            token,
            closed,
            _cut: cut,
        })
    }
}

async fn within<T>(
    limit: Duration,
    doing: &'static str,
    addr: &str,
    what: impl Future<Output = Result<T, DialError>>,
) -> Result<T, DialError> {
    timeout(limit, what).await.unwrap_or_else(|_| {
        Err(DialError::Timeout {
            addr: addr.to_owned(),
            doing,
            after: limit,
        })
    })
}

async fn tcp(addr: &str) -> std::io::Result<TcpStream> {
    let tcp = TcpStream::connect(addr).await?;
    crate::tune(&tcp)?;
    Ok(tcp)
}

struct HttpProxy {
    addr: String,
    authorization: Option<http::HeaderValue>,
}

impl HttpProxy {
    fn parse(url: &str) -> Result<Self, DialError> {
        // Never quoted in an error: it may hold a password.
        let bad = |why: &str| DialError::HttpProxyUrl(why.to_owned());
        let with_scheme = if url.contains("://") {
            url.to_owned()
        } else {
            format!("http://{url}")
        };
        let matcher = Matcher::builder().all(with_scheme).build();
        let any = http::Uri::from_static("https://proxy.invalid/");
        let via = matcher
            .intercept(&any)
            .ok_or_else(|| bad("it is not a URL"))?;
        if via.uri().scheme_str() != Some("http") {
            return Err(bad("only http:// proxies are supported"));
        }
        let host = via.uri().host().ok_or_else(|| bad("it has no host"))?;
        let port = via.uri().port_u16().unwrap_or(80);
        Ok(HttpProxy {
            addr: format!("{host}:{port}"),
            authorization: via.basic_auth().cloned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_and_https_proxy() {
        let proxy = Some("http://u:p@10.0.0.1:3128");
        let chosen = |no| http_proxy_for("proxy.example.com:443", proxy, no);
        assert_eq!(chosen(None).as_deref(), proxy);
        assert_eq!(chosen(Some(".example.com")), None);
        assert_eq!(chosen(Some("other.org")).as_deref(), proxy);
        assert_eq!(http_proxy_for("x:1", Some(" "), None), None);
        let p = HttpProxy::parse("http://u:p@10.0.0.1:3128").unwrap();
        assert_eq!(p.addr, "10.0.0.1:3128");
        assert!(p.authorization.is_some());
        assert_eq!(
            HttpProxy::parse("10.0.0.1:3128").unwrap().addr,
            "10.0.0.1:3128"
        );
        assert!(HttpProxy::parse("https://10.0.0.1").is_err());
    }
}
