//! Real guests between real sockets: bytes by hash, half-close, both sides full, denials, contract breaches, bounded memory.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use postern_plugin::*;
use postern_plugin_testing::{guest, runtime};
use postern_relay::*;
use std::sync::Mutex;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Dials what it is told to; says no where it is told to.
#[derive(Default)]
struct Host {
    upstream: Option<std::net::SocketAddr>,
    deny: Option<&'static str>,
    asked: Mutex<Vec<Vec<(String, String)>>>,
    events: Mutex<Vec<PluginEvent>>,
    /// `connect` takes this long.
    slow: Duration,
    needs_tls: bool,
}

impl CodecHost for Host {
    async fn authorize(&self, asked: &[(String, String)]) -> Result<(), String> {
        self.asked.lock().unwrap().push(asked.to_vec());
        tokio::task::yield_now().await;
        self.deny.map_or(Ok(()), |why| Err(why.into()))
    }
    async fn connect(&self, endpoint: Endpoint) -> Result<BoxedStream, String> {
        assert_eq!(endpoint, Endpoint::Main);
        tokio::time::sleep(self.slow).await;
        let Some(addr) = self.upstream else {
            return Err("no route to it".into());
        };
        match TcpStream::connect(addr).await {
            Ok(s) => Ok(Box::new(s)),
            Err(e) => Err(e.to_string()),
        }
    }
    fn needs_tls(&self, _: Endpoint) -> bool {
        self.needs_tls
    }
    async fn event(&self, event: PluginEvent) -> Result<(), String> {
        self.events.lock().unwrap().push(event);
        Ok(())
    }
}

struct Setup {
    _dir: tempfile::TempDir,
    _rt: Runtime,
    plugin: Plugin,
}

async fn load(name: &str) -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let rt = runtime(dir.path());
    let plugin = rt
        .load(&PluginSource::file(name, guest(name)), Limits::default())
        .await
        .unwrap();
    Setup {
        _dir: dir,
        _rt: rt,
        plugin,
    }
}

async fn misbehave(mode: &str) -> (Setup, Codec) {
    let s = load("misbehave").await;
    let c = s
        .plugin
        .codec(&format!(r#"{{"mode":"{mode}"}}"#), "s")
        .await
        .unwrap();
    (s, c)
}

/// A connected pair of sockets.
async fn pair() -> (TcpStream, TcpStream) {
    let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (a, b) = tokio::join!(TcpStream::connect(l.local_addr().unwrap()), l.accept());
    (a.unwrap(), b.unwrap().0)
}

/// A listener that serves one connection with `f`.
async fn upstream<F, Fut>(f: F) -> (std::net::SocketAddr, tokio::task::JoinHandle<Fut::Output>)
where
    F: FnOnce(TcpStream) -> Fut + Send + 'static,
    Fut: Future + Send,
    Fut::Output: Send + 'static,
{
    let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = l.local_addr().unwrap();
    (
        addr,
        tokio::spawn(async move { f(l.accept().await.unwrap().0).await }),
    )
}

async fn echo(mut s: TcpStream) {
    let (mut r, mut w) = s.split();
    let _ = tokio::io::copy(&mut r, &mut w).await;
    let _ = w.shutdown().await;
}

fn dials(addr: std::net::SocketAddr) -> Host {
    Host {
        upstream: Some(addr),
        ..Host::default()
    }
}

/// Runs it in the background, with a deadline: nothing here may hang.
fn run(
    client: TcpStream,
    codec: Codec,
    host: Host,
) -> tokio::task::JoinHandle<(Result<RelayStats, RelayError>, Host)> {
    tokio::spawn(async move {
        let r = tokio::time::timeout(Duration::from_secs(120), run_codec(client, codec, &host))
            .await
            .expect("no hang");
        (r, host)
    })
}

/// The next bytes of a repeatable stream, and their digest.
struct Bytes {
    state: u64,
    digest: aws_lc_rs::digest::Context,
}
impl Bytes {
    fn new(seed: u64) -> Self {
        Bytes {
            state: seed,
            digest: aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256),
        }
    }
    fn next(&mut self, n: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(n + 8);
        while out.len() < n {
            self.state = self
                .state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            out.extend_from_slice(&self.state.to_le_bytes());
        }
        out.truncate(n);
        self.digest.update(&out);
        out
    }
    fn hash(self) -> Vec<u8> {
        self.digest.finish().as_ref().to_vec()
    }
}

async fn send(mut w: impl tokio::io::AsyncWrite + Unpin, seed: u64, mut left: usize) -> Vec<u8> {
    let mut b = Bytes::new(seed);
    let mut size = 1;
    while left > 0 {
        let n = size.min(left);
        w.write_all(&b.next(n)).await.unwrap();
        left -= n;
        size = size * 3 % 100_003 + 1;
    }
    w.shutdown().await.unwrap();
    b.hash()
}

async fn receive(mut r: impl tokio::io::AsyncRead + Unpin) -> Vec<u8> {
    let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let mut b = vec![0; 50_000];
    loop {
        match r.read(&mut b).await.unwrap() {
            0 => return digest.finish().as_ref().to_vec(),
            n => digest.update(&b[..n]),
        }
    }
}

const BULK: usize = 30 << 20;

/// Different bytes both ways at the same time.
async fn bulk_both_ways(codec: Codec) {
    let (addr, up) = upstream(|s| async move {
        let (r, w) = s.into_split();
        tokio::join!(receive(r), send(w, 2, BULK))
    })
    .await;
    let (client, agent) = pair().await;
    let relay = run(agent, codec, dials(addr));
    let (r, w) = client.into_split();
    let (got, sent) = tokio::join!(receive(r), send(w, 1, BULK));
    let (up_got, up_sent) = up.await.unwrap();
    assert!(got == up_sent && up_got == sent);
    let stats = relay.await.unwrap().0.unwrap();
    assert_eq!(
        (stats.to_upstream, stats.to_client, stats.closed),
        (BULK as u64, BULK as u64, None)
    );
}

#[tokio::test]
async fn bulk_through_tcp() {
    let s = load("tcp").await;
    bulk_both_ways(s.plugin.codec("{}", "s").await.unwrap()).await;
}

/// The guest looks at every byte; the guest copies every byte; one direction is spliced.
#[tokio::test]
async fn bulk_looked_at_copied_and_half_spliced() {
    for mode in ["pass", "copy", "splice", "event"] {
        let (_s, codec) = misbehave(mode).await;
        bulk_both_ways(codec).await;
    }
}

#[tokio::test]
async fn half_close_is_passed_on_and_the_answer_comes_after_it() {
    for (plugin, settings) in [
        ("tcp", "{}"),
        ("misbehave", r#"{"mode":"pass"}"#),
        ("misbehave", r#"{"mode":"goodbye"}"#),
    ] {
        let s = load(plugin).await;
        let codec = s.plugin.codec(settings, "s").await.unwrap();
        let (addr, up) = upstream(|mut s| async move {
            let mut all = String::new();
            s.read_to_string(&mut all).await.unwrap();
            s.write_all(b"answer").await.unwrap();
            all
        })
        .await;
        let (mut client, agent) = pair().await;
        let relay = run(agent, codec, dials(addr));
        client.write_all(b"question\n").await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
        let asked = up.await.unwrap();
        // What the plugin says on the client's end still gets there.
        let expected = if settings.contains("goodbye") {
            "client left\n"
        } else {
            "question\n"
        };
        assert_eq!(asked, expected);
        relay.await.unwrap().0.unwrap();
    }
}

#[tokio::test]
async fn the_upstream_closes_first() {
    let s = load("tcp").await;
    let (addr, _) = upstream(|mut s| async move { s.write_all(b"bye").await.unwrap() }).await;
    let (mut client, agent) = pair().await;
    let relay = run(agent, s.plugin.codec("{}", "s").await.unwrap(), dials(addr));
    let mut all = Vec::new();
    client.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"bye");
    drop(client);
    relay.await.unwrap().0.unwrap();
}

/// Both ends write before they read anything: every buffer on the way is full, and nothing may wait for the wrong side.
#[tokio::test]
async fn both_sides_full() {
    for (plugin, settings) in [
        ("tcp", "{}"),
        ("misbehave", r#"{"mode":"pass"}"#),
        ("misbehave", r#"{"mode":"copy"}"#),
    ] {
        let s = load(plugin).await;
        let codec = s.plugin.codec(settings, "s").await.unwrap();
        let full = std::sync::Arc::new(tokio::sync::Barrier::new(2));
        let up_full = full.clone();
        // Writes until nothing goes any more; once the other end is there too, writes on and reads.
        async fn stuff(s: TcpStream, full: std::sync::Arc<tokio::sync::Barrier>) -> (usize, usize) {
            let (mut r, mut w) = s.into_split();
            let (mut sent, chunk) = (0, [7; 64 << 10]);
            while let Ok(n) =
                tokio::time::timeout(Duration::from_millis(500), w.write(&chunk)).await
            {
                sent += n.unwrap();
            }
            full.wait().await;
            let rest = async {
                w.write_all(&chunk).await.unwrap();
                w.shutdown().await.unwrap();
            };
            let mut sink = tokio::io::sink();
            let (got, ()) = tokio::join!(tokio::io::copy(&mut r, &mut sink), rest);
            (sent + chunk.len(), usize::try_from(got.unwrap()).unwrap())
        }
        let (addr, up) = upstream(|s| stuff(s, up_full)).await;
        let (client, agent) = pair().await;
        let relay = run(agent, codec, dials(addr));
        let (sent, got) = stuff(client, full).await;
        let (up_sent, up_got) = up.await.unwrap();
        assert_eq!((sent, got), (up_got, up_sent), "{plugin} {settings}");
        relay.await.unwrap().0.unwrap();
    }
}

/// One direction is stuck for good; the other goes on.
#[tokio::test]
async fn a_stalled_direction_does_not_stop_the_other() {
    for (plugin, settings) in [
        ("tcp", "{}"),
        ("misbehave", r#"{"mode":"pass"}"#),
        ("misbehave", r#"{"mode":"copy"}"#),
    ] {
        let s = load(plugin).await;
        let codec = s.plugin.codec(settings, "s").await.unwrap();
        let (addr, up) = upstream(|s| async move {
            let (r, mut w) = s.into_split();
            let flood =
                tokio::spawn(async move { while w.write_all(&[1; 64 << 10]).await.is_ok() {} });
            let hash = receive(r).await;
            flood.abort();
            hash
        })
        .await;
        let (client, agent) = pair().await;
        let relay = run(agent, codec, dials(addr));
        let (_unread, w) = client.into_split();
        let sent = tokio::time::timeout(Duration::from_secs(60), send(w, 9, BULK))
            .await
            .expect("not stuck");
        assert_eq!(up.await.unwrap(), sent);
        relay.abort();
    }
}

#[tokio::test]
async fn a_denial_reaches_the_client_and_nothing_is_dialled() {
    let (_s, codec) = misbehave("pass").await;
    let (mut client, agent) = pair().await;
    // The client talks on; its unread bytes must not reset our last words away.
    client.write_all(&[0; 100_000]).await.unwrap();
    let host = Host {
        deny: Some("role dev does not allow things \"one\""),
        ..Host::default()
    };
    let relay = run(agent, codec, host);
    let mut said = String::new();
    client.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "refused: role dev does not allow things \"one\"\n");
    let (stats, host) = relay.await.unwrap();
    let stats = stats.unwrap();
    assert_eq!(
        stats.closed.as_deref(),
        Some("role dev does not allow things \"one\"")
    );
    assert_eq!(stats.to_client, said.len() as u64);
    assert_eq!(host.asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn an_upstream_that_refuses() {
    let s = load("tcp").await;
    let gone = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let (mut client, agent) = pair().await;
    let relay = run(agent, s.plugin.codec("{}", "s").await.unwrap(), dials(gone));
    let mut all = Vec::new();
    client.read_to_end(&mut all).await.unwrap();
    assert!(all.is_empty());
    let closed = relay.await.unwrap().0.unwrap().closed.unwrap();
    assert!(closed.contains("refused"), "{closed}");
}

#[tokio::test]
async fn greetings_principals_events_and_close() {
    let (_s, codec) = misbehave("greet").await;
    let (addr, _up) = upstream(echo).await;
    let (mut client, agent) = pair().await;
    let relay = run(agent, codec, dials(addr));
    let mut hello = [0; 6];
    client.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello\n");
    client.shutdown().await.unwrap();
    let (stats, host) = relay.await.unwrap();
    stats.unwrap();
    assert_eq!(
        *host.asked.lock().unwrap(),
        [[("things".to_string(), "one".to_string())]]
    );

    let (_s, codec) = misbehave("event").await;
    let (addr, _up) = upstream(echo).await;
    let (mut client, agent) = pair().await;
    let relay = run(agent, codec, dials(addr));
    client.write_all(b"abc").await.unwrap();
    client.read_exact(&mut [0; 3]).await.unwrap();
    client.shutdown().await.unwrap();
    let (_, host) = relay.await.unwrap();
    assert_eq!(
        *host.events.lock().unwrap(),
        [PluginEvent {
            name: "seen".into(),
            fields: vec![("bytes".into(), "3".into())]
        }]
    );

    let (_s, codec) = misbehave("close").await;
    let (addr, _up) = upstream(echo).await;
    let (mut client, agent) = pair().await;
    let relay = run(agent, codec, dials(addr));
    client.write_all(b"x").await.unwrap();
    let mut all = String::new();
    client.read_to_string(&mut all).await.unwrap();
    assert_eq!(all, "bye\n");
    assert_eq!(
        relay.await.unwrap().0.unwrap().closed.as_deref(),
        Some("asked to")
    );
}

/// Unconsumed input comes again with what follows it, and after an answer.
#[tokio::test]
async fn unconsumed_input_is_kept() {
    for mode in ["lines", "ask-late"] {
        let (_s, codec) = misbehave(mode).await;
        let (addr, _up) = upstream(echo).await;
        let (mut client, agent) = pair().await;
        client.set_nodelay(true).unwrap();
        let relay = run(agent, codec, dials(addr));
        for piece in ["on", "e\ntw", "o", "\n"] {
            client.write_all(piece.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut all = [0; 8];
        client.read_exact(&mut all).await.unwrap();
        assert_eq!(&all, b"one\ntwo\n", "{mode}");
        // A last line without an end is dropped with the connection, by that plugin's own rule.
        client.write_all(b"rest").await.unwrap();
        client.shutdown().await.unwrap();
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, if mode == "lines" { "" } else { "rest" });
        relay.await.unwrap().0.unwrap();
    }
}

#[tokio::test]
async fn broken_contracts_end_the_connection_with_the_rule() {
    for (mode, words) in [
        ("pass-too-much", "pass of more bytes than there are"),
        ("pass-overflow", "pass of more bytes than there are"),
        ("question-in-the-middle", "must end its list"),
        ("connect-twice", "connected already"),
        ("send-too-much", "more than 1 MiB"),
        ("never", "full 64 KiB"),
        ("connect-unasked", "without an authorize"),
        ("send-early", "before connect"),
        ("ask-forever", "asks and asks"),
        ("unannounced-endpoint", "Admin"),
    ] {
        let (_s, codec) = misbehave(mode).await;
        let (addr, _up) = upstream(echo).await;
        let (mut client, agent) = pair().await;
        let relay = run(agent, codec, dials(addr));
        let _ = client.write_all(&[b'x'; 200_000]).await;
        let e = relay
            .await
            .unwrap()
            .0
            .err()
            .unwrap_or_else(|| panic!("{mode} was let through"))
            .to_string();
        assert!(
            e.contains("broke the contract") && e.contains(words),
            "{mode}: {e}"
        );
    }
}

#[tokio::test]
async fn traps_close_both_sides() {
    for mode in ["trap", "result-trap", "upstream-trap"] {
        let (_s, codec) = misbehave(mode).await;
        let (addr, up) = upstream(echo).await;
        let (mut client, agent) = pair().await;
        let relay = run(agent, codec, dials(addr));
        let _ = client.write_all(b"x").await;
        let e = relay.await.unwrap().0.unwrap_err();
        assert!(
            matches!(&e, RelayError::Plugin(p) if p.trap() == Some(TrapKind::Unreachable)),
            "{mode}: {e}"
        );
        assert!(matches!(client.read(&mut [0; 8]).await, Ok(0) | Err(_)));
        up.await.unwrap();
    }
}

/// A plugin may ask a server for TLS that it must have; what the server says to that is not gone on from without.
#[tokio::test]
async fn where_tls_must_be_nothing_is_sent_after_the_servers_first_word() {
    let (_s, codec) = misbehave("copy").await;
    let (addr, up) = upstream(|mut s| async move {
        let mut all = vec![0; 4];
        s.read_exact(&mut all).await.unwrap();
        s.write_all(b"N").await.unwrap();
        let _ = s.read_to_end(&mut all).await;
        all
    })
    .await;
    let (mut client, agent) = pair().await;
    let host = Host {
        needs_tls: true,
        ..dials(addr)
    };
    let relay = run(agent, codec, host);
    client.write_all(b"tls?").await.unwrap();
    let mut answer = [0; 1];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"N");
    client.write_all(b"secrets").await.unwrap();
    let e = relay.await.unwrap().0.unwrap_err().to_string();
    assert!(
        e.contains("broke the contract") && e.contains("goes on without TLS"),
        "{e}"
    );
    assert_eq!(up.await.unwrap(), b"tls?");
}

/// While the host dials, the client's bytes wait; one who goes away meanwhile is noticed.
#[tokio::test]
async fn a_slow_dial() {
    let s = load("tcp").await;
    let (addr, _up) = upstream(echo).await;
    let (mut client, agent) = pair().await;
    let slow = Host {
        slow: Duration::from_millis(200),
        ..dials(addr)
    };
    let relay = run(agent, s.plugin.codec("{}", "s").await.unwrap(), slow);
    client.write_all(b"early").await.unwrap();
    let mut b = [0; 5];
    client.read_exact(&mut b).await.unwrap();
    assert_eq!(&b, b"early");
    drop(client);
    let _ = relay.await.unwrap();

    let (mut client, agent) = pair().await;
    let slow = Host {
        slow: Duration::from_secs(3600),
        ..dials(addr)
    };
    let relay = run(agent, s.plugin.codec("{}", "s").await.unwrap(), slow);
    client.write_all(b"x").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    client.set_zero_linger().unwrap();
    drop(client);
    let e = relay.await.unwrap().0.unwrap_err();
    assert!(matches!(e, RelayError::Client(_)), "{e}");
}

/// A side that stopped reading pins a bounded amount, whatever the other sends. (Memory streams: there is no kernel buffer
/// that could hide it.)
#[tokio::test]
async fn a_stalled_side_takes_bounded_memory() {
    struct Mem(Mutex<Option<tokio::io::DuplexStream>>);
    impl CodecHost for Mem {
        async fn authorize(&self, _: &[(String, String)]) -> Result<(), String> {
            Ok(())
        }
        async fn connect(&self, _: Endpoint) -> Result<BoxedStream, String> {
            Ok(Box::new(self.0.lock().unwrap().take().unwrap()))
        }
        async fn event(&self, _: PluginEvent) -> Result<(), String> {
            Ok(())
        }
    }
    for mode in ["pass", "copy", "splice"] {
        let (_s, codec) = misbehave(mode).await;
        let (mut client, agent) = tokio::io::duplex(4096);
        let (mut up, agent_up) = tokio::io::duplex(4096);
        let host = Mem(Mutex::new(Some(agent_up)));
        let relay = tokio::spawn(async move { run_codec(agent, codec, &host).await });
        client.write_all(b"x").await.unwrap();
        up.read_exact(&mut [0; 1]).await.unwrap();
        let mut taken = 0;
        while let Ok(n) =
            tokio::time::timeout(Duration::from_millis(300), up.write(&[0; 4096])).await
        {
            taken += n.unwrap();
            assert!(
                taken < 256 << 10,
                "{mode}: still taking bytes after {taken}"
            );
        }
        relay.abort();
    }
}

/// Futures of the relay can be spawned, whatever the host is.
#[allow(dead_code)]
fn is_send(client: TcpStream, codec: Codec, host: &Host) {
    fn check(_: impl Send) {}
    check(run_codec(client, codec, host));
}
