//! The helper path: one connection to the proxy per session. TLS 1.3 with the user's certificate,
//! one frame that names the resource, then the session's own bytes: SSH as it is, or (other kinds)
//! a second TLS session that ends at the agent, so that the proxy sees ciphertext only.

use crate::failure::Failure;
use crate::frame;
use crate::profile::{Home, Profile};
use postern_identity::{CaKind, ResourceId, proxy_dns, tls};
use rustls_pki_types::ServerName;
use std::{io, time::Duration};
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// For the TCP connection, and again for the handshake.
const CONNECT: Duration = Duration::from_secs(10);
/// For the proxy's answer: it may have to wait for the agent to dial.
const ANSWER: Duration = Duration::from_secs(20);
/// Sessions that are being opened at a time. The proxy takes 256 connections from one address that have not said yet who they
/// are, and closes the others without a word; an agent that dials for us may come from the same address.
const OPENING: usize = 64;
/// Buffers between the two sides, in bytes.
pub const BUFFER: usize = 64 * 1024;

/// rustls asks for at most 4 KiB at a time; the buffer makes that one system call in sixteen.
type Outer = TlsStream<BufReader<TcpStream>>;

/// The bytes of one session.
pub trait Io: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

/// What is needed to open sessions; made once, used for each connection.
pub struct Helper {
    proxy: String,
    cluster: String,
    outer: TlsConnector,
    inner: TlsConnector,
    opening: Semaphore,
}

impl Helper {
    pub fn new(home: &Home, profile: &Profile) -> Result<Self, Failure> {
        let (trust, id) = (home.trust()?, home.tls_identity()?);
        let config = |alpn: &[&[u8]]| {
            tls::client(&trust, CaKind::Host, Some(&id), alpn)
                .map_err(|e| Failure::new(format!("{e}; run: postern login")))
        };
        Ok(Helper {
            proxy: profile.proxy.clone(),
            cluster: profile.cluster.clone(),
            outer: TlsConnector::from(config(&[b"postern-session"])?),
            inner: TlsConnector::from(config(&[])?),
            opening: Semaphore::new(OPENING),
        })
    }

    /// Opens a session with a resource.
    pub async fn open(&self, id: &ResourceId) -> Result<Box<dyn Io>, Failure> {
        let outer = self.dial(id).await?;
        // SSH is end to end by itself.
        if id.kind == "ssh" {
            Ok(Box::new(outer))
        } else {
            Ok(Box::new(self.end_to_end(outer, id).await?))
        }
    }

    async fn dial(&self, id: &ResourceId) -> Result<Outer, Failure> {
        let _turn = self.opening.acquire().await;
        let tcp = in_time(CONNECT, TcpStream::connect(&self.proxy))
            .await
            .map_err(|e| Failure::new(format!("cannot reach the proxy {}: {e}", self.proxy)))?;
        // Keystrokes must not wait for acknowledgements. Without it things work, only slower.
        let _ = tcp.set_nodelay(true);
        let name = server_name(proxy_dns(&self.cluster))?;
        let mut outer = in_time(
            CONNECT,
            self.outer
                .connect(name, BufReader::with_capacity(BUFFER, tcp)),
        )
        .await
        .map_err(|e| self.explain(&e))?;
        let reply = in_time(ANSWER, frame::exchange(&mut outer, id))
            .await
            .map_err(|e| self.explain(&e))?;
        if reply.ok {
            Ok(outer)
        } else {
            Err(refusal(&id.dns(&self.cluster), &reply))
        }
    }

    async fn end_to_end(&self, outer: Outer, id: &ResourceId) -> Result<TlsStream<Outer>, Failure> {
        let dns = id.dns(&self.cluster);
        let name = server_name(dns.clone())?;
        in_time(ANSWER, self.inner.connect(name, outer)).await.map_err(|e| match tls_error(&e) {
            Some(rustls::Error::AlertReceived(alert)) => Failure::new(format!("the agent of {dns} refused the session ({alert:?}): your certificate or a role does not allow it")),
            Some(rustls::Error::InvalidCertificate(why)) => Failure::new(format!("what answers for {dns} is not its agent: its certificate is not valid ({why:?}); tell your administrator")),
            _ if e.kind() == io::ErrorKind::UnexpectedEof => Failure::new(format!("the agent of {dns} closed the session before it began")),
            _ => Failure::new(format!("cannot begin the session with {dns}: {e}")),
        })
    }

    /// What a failed handshake or a missing answer means. With TLS 1.3, the proxy's verdict on our
    /// certificate arrives only after the handshake, as an alert in place of the answer.
    fn explain(&self, e: &io::Error) -> Failure {
        use rustls::{AlertDescription as A, CertificateError as C, Error};
        let (proxy, cluster) = (&self.proxy, &self.cluster);
        Failure::new(match tls_error(e) {
            Some(Error::AlertReceived(
                alert @ (A::CertificateExpired
                | A::BadCertificate
                | A::CertificateUnknown
                | A::CertificateRevoked
                | A::UnknownCA
                | A::AccessDenied
                | A::CertificateRequired
                | A::DecryptError),
            )) => format!(
                "the proxy {proxy} does not accept your certificate ({alert:?}); run: postern login"
            ),
            Some(Error::InvalidCertificate(
                C::UnknownIssuer
                | C::BadSignature
                | C::NotValidForName
                | C::NotValidForNameContext { .. },
            )) => {
                format!(
                    "what answers at {proxy} is not the proxy of cluster {cluster}: the cluster's CA did not sign its certificate; check the address, or log in again if the CA was replaced"
                )
            }
            Some(Error::InvalidCertificate(why)) => format!(
                "the certificate of the proxy {proxy} is not valid ({why:?}); tell your administrator"
            ),
            Some(other) => {
                format!("TLS with the proxy {proxy} failed: {other}; is it a Postern proxy?")
            }
            None if e.kind() == io::ErrorKind::UnexpectedEof => {
                format!("the proxy {proxy} closed the connection without an answer")
            }
            None => format!("no session through the proxy {proxy}: {e}"),
        })
    }
}

/// The proxy's refusal, in one line.
fn refusal(dns: &str, reply: &frame::Reply) -> Failure {
    let why = match (reply.message.as_str(), reply.code.as_str()) {
        ("", "") => "the proxy refused it".to_owned(),
        ("", code) => code.to_owned(),
        (message, _) => message.to_owned(),
    };
    // The message comes over the network and goes to a terminal.
    let why = crate::out::clean(&why);
    Failure::new(if why.contains(dns) {
        why
    } else {
        format!("{dns}: {why}")
    })
}

fn tls_error(e: &io::Error) -> Option<&rustls::Error> {
    e.get_ref()?.downcast_ref()
}

fn server_name(dns: String) -> Result<ServerName<'static>, Failure> {
    let shown = dns.clone();
    ServerName::try_from(dns).map_err(|_| Failure::new(format!("{shown:?} is not a DNS name")))
}

async fn in_time<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {} s", limit.as_secs()),
        )),
    }
}

#[cfg(test)]
mod tests;
