//! Awaits a whole TLS ClientHello and keeps its bytes, so that it can be passed on as it came.

use rustls::server::Acceptor;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Largest ClientHello (post-quantum key shares make 2 KB; 16 KB is one TLS record).
pub(crate) const MAX_HELLO: usize = 16 * 1024;

/// What routes a TLS connection, and the bytes read so far.
#[derive(Debug, Default)]
pub(crate) struct Hello {
    pub sni: Option<String>,
    pub alpn: Vec<Vec<u8>>,
    pub raw: Vec<u8>,
}

impl Hello {
    pub fn offers(&self, protocol: &[u8]) -> bool {
        self.alpn.iter().any(|p| p == protocol)
    }
}

/// Reads until the ClientHello is whole. `raw` are the bytes already read.
pub(crate) async fn read_hello(
    io: &mut (impl AsyncRead + Unpin),
    raw: Vec<u8>,
) -> io::Result<Hello> {
    let mut acceptor = Acceptor::default();
    let mut raw = raw;
    let mut fed = 0;
    loop {
        while fed < raw.len() {
            fed += acceptor.read_tls(&mut &raw[fed..])?;
            if let Some(hello) = parse(&mut acceptor)? {
                return Ok(Hello { raw, ..hello });
            }
        }
        if raw.len() >= MAX_HELLO {
            return Err(invalid("the ClientHello is longer than 16 KB"));
        }
        let room = (MAX_HELLO - raw.len()).min(4096) as u64;
        let n = (&mut *io).take(room).read_buf(&mut raw).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn parse(acceptor: &mut Acceptor) -> io::Result<Option<Hello>> {
    match acceptor.accept() {
        Ok(None) => Ok(None),
        Ok(Some(accepted)) => {
            let hello = accepted.client_hello();
            Ok(Some(Hello {
                sni: hello.server_name().map(str::to_ascii_lowercase),
                alpn: hello
                    .alpn()
                    .into_iter()
                    .flatten()
                    .map(<[u8]>::to_vec)
                    .collect(),
                raw: Vec::new(),
            }))
        }
        Err((e, _)) => Err(invalid(&format!("no TLS ClientHello: {e}"))),
    }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::io::AsyncWriteExt;

    pub(crate) fn client_hello(sni: &str, alpn: &[&[u8]]) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        let name = sni.to_owned().try_into().unwrap();
        let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut raw = Vec::new();
        connection.write_tls(&mut raw).unwrap();
        raw
    }

    #[tokio::test]
    async fn keeps_the_bytes_as_they_came_in_any_pieces() {
        let raw = client_hello("Orders.tcp.demo", &[b"postern-session"]);
        for piece in [1, 7, raw.len()] {
            let (mut a, mut b) = tokio::io::duplex(64 * 1024);
            let sent = raw.clone();
            let writer = tokio::spawn(async move {
                for chunk in sent.chunks(piece) {
                    a.write_all(chunk).await.unwrap();
                    tokio::task::yield_now().await;
                }
                a
            });
            let hello = read_hello(&mut b, Vec::new()).await.unwrap();
            assert_eq!(hello.sni.as_deref(), Some("orders.tcp.demo"));
            assert!(hello.offers(b"postern-session") && !hello.offers(b"h2"));
            assert_eq!(hello.raw, raw);
            writer.await.unwrap();
        }
    }

    #[tokio::test]
    async fn garbage_and_endless_hellos_are_refused() {
        let (mut a, mut b) = tokio::io::duplex(64 * 1024);
        a.write_all(b"\x16\x03\x01\x00\x05hello").await.unwrap();
        assert!(read_hello(&mut b, Vec::new()).await.is_err());
        let (mut a, mut b) = tokio::io::duplex(64 * 1024);
        // A handshake message that claims to be 16 MB, in full records.
        let mut record = vec![0x16, 3, 1, 0x40, 0];
        record.extend([1, 0xff, 0xff, 0xff]);
        record.resize(5 + 0x4000, 0);
        a.write_all(&record).await.unwrap();
        a.write_all(&record).await.unwrap();
        assert!(read_hello(&mut b, Vec::new()).await.is_err());
    }
}
