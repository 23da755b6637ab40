//! Peers that never say who they are: silent, garbage, a byte a second. Each is cut off within 10 s, none reaches an agent,
//! and none keeps the others from being served.

use anyhow::{Result, ensure};
use postern_tests::{Agent, Cluster, Lab, User, procfs, wait};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

fn setup() -> Result<(Cluster, Agent, User)> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let agent = cluster.agent("web-1").start()?;
    let user = cluster.user("alice", &[&agent.login])?;
    Ok((cluster, agent, user))
}

/// Ten seconds, and a little for a loaded machine to notice.
const LIMIT: Duration = Duration::from_millis(11_500);

/// What the peer says: at once, and then a byte of it each second.
struct Peer {
    name: &'static str,
    at_once: Vec<u8>,
    drip: Vec<u8>,
}

/// The beginning of a TLS ClientHello: record header, and a handshake that promises 4000 bytes more.
fn half_hello() -> Vec<u8> {
    let mut hello = vec![
        0x16, 0x03, 0x01, 0x0f, 0xa4, 0x01, 0x00, 0x0f, 0xa0, 0x03, 0x03,
    ];
    hello.extend([7u8; 32]);
    hello
}

fn peers() -> Vec<Peer> {
    let peer = |name, at_once: &[u8], drip: &[u8]| Peer {
        name,
        at_once: at_once.to_vec(),
        drip: drip.to_vec(),
    };
    let noise: Vec<u8> = (0..60_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    vec![
        peer("silent", b"", b""),
        peer("garbage", &noise, b""),
        peer("zeros", &[0; 4096], b""),
        peer("half a ClientHello", &half_hello(), b""),
        peer("a ClientHello a byte a second", b"", &half_hello()),
        peer("an SSH banner and silence", b"SSH-2.0-OpenSSH_9.2\r\n", b""),
        peer(
            "an SSH banner and garbage",
            &[b"SSH-2.0-x\r\n".as_slice(), &noise].concat(),
            b"",
        ),
        peer(
            "an SSH banner a byte a second",
            b"",
            b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
        ),
        peer("half a banner", b"SSH-2", b""),
        peer(
            "HTTP without TLS",
            b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
            b"",
        ),
        peer(
            "HTTP a byte a second",
            b"",
            b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        ),
        peer(
            "a Postgres SSLRequest and silence",
            &[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f],
            b"",
        ),
        peer(
            "Postgres GSSENCRequests for ever",
            &[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30].repeat(500),
            b"",
        ),
        peer(
            "a TLS record that is too long",
            &[0x16, 0x03, 0x01, 0xff, 0xff, 1, 2, 3],
            b"",
        ),
    ]
}

impl Peer {
    /// How long until the other side ended it; what it said on the way.
    fn meet(&self, addr: &str) -> Result<(Duration, Vec<u8>)> {
        let mut stream = TcpStream::connect(addr)?;
        let started = Instant::now();
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.set_write_timeout(Some(Duration::from_secs(1)))?;
        let mut alive = stream.write_all(&self.at_once).is_ok() || !self.at_once.is_empty();
        let mut drip = self.drip.iter();
        let mut said = Vec::new();
        while alive && started.elapsed() < Duration::from_secs(25) {
            let mut buffer = [0u8; 4096];
            match stream.read(&mut buffer) {
                Ok(0) => alive = false,
                Ok(n) => said.extend_from_slice(&buffer[..n]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if let Some(byte) = drip.next() {
                        alive = stream.write_all(&[*byte]).is_ok();
                    }
                }
                Err(_) => alive = false,
            }
        }
        Ok((started.elapsed(), said))
    }
}

#[test]
fn strangers_are_cut_off_within_ten_seconds() -> Result<()> {
    let (cluster, agent, alice) = setup()?;
    let threads: Vec<_> = peers()
        .into_iter()
        .map(|peer| {
            let addr = cluster.proxy_addr.clone();
            std::thread::spawn(move || (peer.name, peer.meet(&addr)))
        })
        .collect();
    // Meanwhile people are served.
    alice.ssh(&agent).arg("true").ok()?;
    let mut late = Vec::new();
    for thread in threads {
        let (name, met) = thread.join().map_err(|_| anyhow::anyhow!("thread"))?;
        let (took, said) = met?;
        eprintln!("{name}: {took:.1?}, heard {} bytes", said.len());
        if took > LIMIT {
            late.push(format!("{name} was cut only after {took:?}"));
        }
        ensure!(said.len() < 4096, "{name} was told {} bytes", said.len());
    }
    ensure!(late.is_empty(), "{}", late.join("; "));
    no_stranger_reached(&cluster)
}

/// Only alice's sessions are in the log.
fn no_stranger_reached(cluster: &Cluster) -> Result<()> {
    for event in cluster.audit()? {
        let name = event["event"].as_str().unwrap_or_default();
        if name.starts_with("session.") {
            ensure!(
                event["user"] == "alice",
                "a stranger reached the agent: {event}"
            );
        }
    }
    Ok(())
}

#[test]
fn five_hundred_silent_peers_leave_room_for_people() -> Result<()> {
    let (mut cluster, agent, alice) = setup()?;
    let before = procfs::rss(cluster.proxy_daemon().pid()?)?;
    // From many addresses: one alone is held to a share of its own (the next test).
    let idle: Vec<TcpStream> = (0..500u16)
        .filter_map(|i| connect_from([127, 0, 1, (i / 20) as u8 + 1], &cluster.proxy_addr).ok())
        .collect();
    ensure!(
        idle.len() == 500,
        "only {} connections were taken",
        idle.len()
    );
    alice.ssh(&agent).arg("true").ok()?;
    let after = procfs::rss(cluster.proxy_daemon().pid()?)?;
    ensure!(
        after < before + (48 << 20),
        "500 silent peers cost {} KB",
        (after.saturating_sub(before)) >> 10
    );
    let pid = cluster.proxy_daemon().pid()?;
    drop(idle);
    wait::holds(
        "their descriptors to be closed",
        Duration::from_secs(15),
        || procfs::open_files(pid) < 200,
    )?;
    Ok(())
}

/// A connection whose source is this loopback address.
fn connect_from(source: [u8; 4], to: &str) -> Result<TcpStream> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind((source, 0).into())?;
        Ok(socket.connect(to.parse()?).await?.into_std()?)
    })
}

#[test]
fn an_address_that_hoards_connections_shuts_out_only_itself() -> Result<()> {
    let (cluster, agent, alice) = setup()?;
    let hoard: Vec<TcpStream> = (0..2000)
        .filter_map(|_| connect_from([127, 0, 2, 2], &cluster.proxy_addr).ok())
        .collect();
    for _ in 0..5 {
        alice.ssh(&agent).arg("true").ok()?;
    }
    drop(hoard);
    no_stranger_reached(&cluster)
}

#[test]
fn the_admin_and_auth_ports_keep_strangers_out_too() -> Result<()> {
    let (cluster, agent, alice) = setup()?;
    let mut met = Vec::new();
    for peer in peers()
        .into_iter()
        .filter(|p| ["silent", "garbage", "half a ClientHello"].contains(&p.name))
    {
        let addr = cluster.auth_addr.clone();
        met.push(std::thread::spawn(move || (peer.name, peer.meet(&addr))));
    }
    for thread in met {
        let (name, met) = thread.join().map_err(|_| anyhow::anyhow!("thread"))?;
        let (took, _) = met?;
        ensure!(took < LIMIT, "{name}: Auth cut it only after {took:?}");
    }
    let stream = TcpStream::connect(&cluster.auth_addr)?;
    stream.shutdown(Shutdown::Write)?;
    use std::os::unix::fs::PermissionsExt;
    let socket = std::fs::metadata(cluster.data_dir().join("admin.sock"))?
        .permissions()
        .mode()
        & 0o777;
    ensure!(socket == 0o600, "admin.sock is {socket:o}");
    alice.ssh(&agent).arg("true").ok().map(drop)
}

#[test]
fn an_anonymous_tls_client_gets_no_further_than_the_proxy() -> Result<()> {
    let (cluster, _agent, _alice) = setup()?;
    // No `direct = true` on the resource: its name in SNI opens nothing for who has no certificate.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    for name in [
        "web-1.ssh.demo",
        "nobody.ssh.demo",
        "auth.other",
        "proxy.demo",
    ] {
        let reached = runtime.block_on(tls_reaches(
            &cluster.proxy_addr,
            name,
            &[b"postern-session"],
        ));
        eprintln!("{name}: {reached:?}");
        if name != "proxy.demo" {
            ensure!(reached.is_err(), "SNI {name} was served to a stranger");
        }
    }
    no_stranger_reached(&cluster)
}

/// A TLS handshake without a certificate, trusting nobody in particular; then one byte must come back.
async fn tls_reaches(addr: &str, name: &str, alpn: &[&[u8]]) -> Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let pins: [postern_identity::CaPin; 0] = [];
    let config = postern_identity::tls::client_pinned(&pins, alpn)?;
    let connector = tokio_rustls::TlsConnector::from(config);
    let tcp = tokio::net::TcpStream::connect(addr).await?;
    let server = rustls::pki_types::ServerName::try_from(name.to_string())?;
    let mut stream =
        tokio::time::timeout(Duration::from_secs(10), connector.connect(server, tcp)).await??;
    stream
        .write_all(b"\0\0\0\x20{\"kind\":\"ssh\",\"name\":\"web-1\"}  ")
        .await?;
    let mut byte = [0u8; 1];
    tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut byte)).await??;
    Ok(())
}
