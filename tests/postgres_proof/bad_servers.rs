//! Servers that are none, or break off, or lie about lengths: whoever connects gets an end soon, and a word of why; the agent and
//! the sessions beside it go on.

use crate::{NO_SERVER, SLACK, SOON, crowd, runtime};
use anyhow::{Context, Result, bail, ensure};
use postern_tests::{DatabaseSpec, Login, Postgres, procfs, skip_unless, wait};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A server has 10 seconds to answer while a session starts; the rest is for a loaded machine.
const SERVERS: Duration = Duration::from_secs(20);

/// What a bad server does: before TLS, in its login, or when it is asked something.
#[derive(Clone, Copy)]
enum Bad {
    /// Speaks at once.
    Banner(&'static [u8]),
    /// Answers whatever it is sent.
    Answer(&'static [u8]),
    Silent,
    Closes,
    /// `S`, and then no TLS.
    SilentInTls,
    Login(&'static [u8]),
    /// And closes.
    Query(&'static [u8]),
}

const OK: &[u8] = b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\x01\0\0\0\x02Z\0\0\0\x05I";

const SERVERS_THAT_ARE_NONE: &[(&str, Bad)] = &[
    ("speaks-ssh", Bad::Banner(b"SSH-2.0-OpenSSH_9.2p1\r\n")),
    (
        "speaks-http",
        Bad::Answer(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n"),
    ),
    (
        "speaks-mysql",
        Bad::Banner(b"\x4a\0\0\0\x0a8.0.36\0\x08\0\0\0abcdefgh\0\xff\xff"),
    ),
    ("says-nothing", Bad::Silent),
    ("closes", Bad::Closes),
    ("has-no-tls", Bad::Answer(b"N")),
    ("more-than-tls", Bad::Answer(b"SE\0\0\0\x08oops")),
    ("no-tls-after-all", Bad::Answer(b"S")),
    ("silent-in-tls", Bad::SilentInTls),
    ("silent-in-login", Bad::Login(b"")),
    ("login-too-long", Bad::Login(b"R\x7f\xff\xff\xff\0\0\0\0")),
    ("login-too-short", Bad::Login(b"R\0\0\0\x03")),
    ("login-unknown", Bad::Login(b"R\0\0\0\x08\0\0\0\x63")),
    (
        "login-garbage",
        Bad::Login(b"\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8\xf7\xf6"),
    ),
    ("login-data", Bad::Login(b"D\0\0\0\x0b\0\x01\0\0\0\x01x")),
    (
        "key-too-long",
        Bad::Login(b"R\0\0\0\x08\0\0\0\0K\0\x10\0\0"),
    ),
    ("breaks-off", Bad::Query(b"T\0\0\0\x64\0\x01col")),
    ("length-negative", Bad::Query(b"D\xff\xff\xff\xff\0\x01")),
    ("length-three", Bad::Query(b"C\0\0\0\x03")),
    (
        "length-huge",
        Bad::Query(b"D\x7f\xff\xff\xff\0\x01\0\0\0\x01x"),
    ),
    ("zeros", Bad::Query(&[0; 64])),
    (
        "letters",
        Bad::Query(b"this is no message of any protocol at all"),
    ),
];

impl Bad {
    async fn serve(self, mut tcp: tokio::net::TcpStream, tls: TlsAcceptor) -> Result<()> {
        match self {
            Bad::Closes => return Ok(()),
            Bad::Banner(said) => tcp.write_all(said).await?,
            Bad::Silent => {}
            _ => {
                // A request for TLS.
                tcp.read_exact(&mut [0; 8]).await?;
                match self {
                    Bad::Answer(said) => tcp.write_all(said).await?,
                    _ => tcp.write_all(b"S").await?,
                }
            }
        }
        if !matches!(self, Bad::Login(_) | Bad::Query(_)) {
            return until_gone(tcp).await;
        }
        let mut stream = tls.accept(tcp).await?;
        let len = stream.read_u32().await?;
        stream.read_exact(&mut vec![0; len as usize - 4]).await?;
        match self {
            Bad::Login(said) => stream.write_all(said).await?,
            Bad::Query(said) => {
                stream.write_all(OK).await?;
                stream.read_u8().await?;
                stream.write_all(said).await?;
                stream.flush().await?;
                return Ok(stream.shutdown().await?);
            }
            _ => {}
        }
        stream.flush().await?;
        until_gone(stream).await
    }
}

async fn until_gone(mut stream: impl tokio::io::AsyncRead + Unpin) -> Result<()> {
    let mut buf = [0; 1024];
    while stream.read(&mut buf).await? > 0 {}
    Ok(())
}

/// As the database's server shows itself.
fn acceptor(certs: &Path) -> Result<TlsAcceptor> {
    let chain =
        CertificateDer::pem_file_iter(certs.join("server.crt"))?.collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(certs.join("server.key"))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.with_no_client_auth().with_single_cert(chain, key)?).into())
}

#[test]
fn servers_that_are_none() -> Result<()> {
    skip_unless!(Postgres::is_there(), NO_SERVER);
    let runtime = runtime()?;
    let mut spec = DatabaseSpec::new(Login::Scram);
    let mut listeners = Vec::new();
    for (name, bad) in SERVERS_THAT_ARE_NONE {
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        spec = spec.resource(name, &listener.local_addr()?.to_string());
        listeners.push((*bad, listener));
    }
    let db = spec.start()?;
    let tls = acceptor(&db.lab.join("db-certs"))?;
    for (bad, listener) in listeners {
        let tls = tls.clone();
        runtime.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(bad.serve(tcp, tls.clone()));
            }
        });
    }
    let helper = db.helper("orders")?;
    let held = runtime.block_on(crowd::open(helper.port))?;
    let (pid, files) = (db.agent.pid()?, procfs::open_files(db.agent.pid()?));
    let told = std::thread::scope(|scope| {
        let one = |name: &'static str| {
            let db = &db;
            scope.spawn(move || -> Result<()> {
                let run = db.connect_to(name, "app", "select 1")?.timeout(SERVERS);
                let ran = run.run().with_context(|| name)?;
                ensure!(!ran.status.success(), "{name}: {}", ran.told());
                ensure!(
                    ran.err().len() > 10,
                    "{name}: no word of why: {}",
                    ran.told()
                );
                println!("{name}, {:?}: {}", ran.took, ran.err());
                Ok(())
            })
        };
        let all: Vec<_> = SERVERS_THAT_ARE_NONE
            .iter()
            .map(|(name, _)| one(name))
            .collect();
        let ended = all
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|_| bail!("panicked")));
        ended.collect::<Result<Vec<_>>>()
    });
    told?;
    runtime.block_on(async {
        let answer = held.query_one("select $1::int4", &[&4]);
        ensure!(tokio::time::timeout(SOON, answer).await??.get::<_, i32>(0) == 4);
        Ok(())
    })?;
    wait::holds("the others to be over", SOON, || {
        db.sessions().is_ok_and(|n| n == 1.0)
    })?;
    ensure!(db.agent.pid()? == pid);
    wait::holds("descriptors to be given back", wait::LONG, || {
        procfs::open_files(pid) <= files + SERVERS_THAT_ARE_NONE.len() + SLACK
    })
}
