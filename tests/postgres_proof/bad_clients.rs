//! Clients that are none, or break off, or lie about lengths: they get an end soon; the agent and the sessions beside them go on.

use crate::{NO_SERVER, SLACK, SOON, crowd, runtime};
use anyhow::{Context, Result, bail, ensure};
use postern_tests::{Database, Login, Postgres, procfs, skip_unless, wait};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// A start as psql's, for `app` in `orders`.
const START: &[u8] = b"\0\0\0\x22\0\x03\0\0user\0app\0database\0orders\0\0";

/// What a client says after it has (`true`) or has not logged in.
fn bad_clients() -> Vec<(&'static str, bool, Vec<u8>)> {
    let mut long = vec![0, 0, 0x30, 0, 0, 3, 0, 0];
    long.resize(0x3000, b'a');
    let many = |n: usize| {
        let mut body = b"\0\x03\0\0user\0app\0".to_vec();
        (0..n).for_each(|i| body.extend(format!("p{i}\0v\0").bytes()));
        body.push(0);
        [
            &u32::try_from(body.len() + 4).unwrap_or(0).to_be_bytes()[..],
            &body,
        ]
        .concat()
    };
    let b = |bytes: &[u8]| bytes.to_vec();
    vec![
        ("http", false, b(b"GET / HTTP/1.1\r\nhost: orders\r\n\r\n")),
        ("ssh", false, b(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")),
        (
            "tls-again",
            false,
            b(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abcdefgh"),
        ),
        ("zeros", false, vec![0; 64]),
        ("ones", false, vec![255; 64]),
        ("length-three", false, b(b"\0\0\0\x03")),
        (
            "length-huge",
            false,
            b(b"\x7f\xff\xff\xff\0\x03\0\0user\0app\0\0"),
        ),
        ("start-too-long", false, long),
        ("start-of-2000-settings", false, many(2000)),
        ("version-2", false, b(b"\0\0\0\x0d\0\x02\0\0app\0\0")),
        ("version-9", false, b(b"\0\0\0\x12\0\x09\0\0user\0app\0\0")),
        ("no-user", false, b(b"\0\0\0\x09\0\x03\0\0\0")),
        ("no-end", false, b(b"\0\0\0\x10\0\x03\0\0user\0app")),
        (
            "no-text",
            false,
            b(b"\0\0\0\x11\0\x03\0\0user\0\xff\xfe\0\0"),
        ),
        (
            "user-of-100-bytes",
            false,
            [
                b"\0\0\0\x73\0\x03\0\0user\0".as_slice(),
                &[b'u'; 100],
                b"\0\0",
            ]
            .concat(),
        ),
        (
            "asks-for-tls-for-ever",
            false,
            b"\0\0\0\x08\x04\xd2\x16\x2f".repeat(5),
        ),
        (
            "cancel-of-nobody",
            false,
            b(b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x01\0\0\0\x02"),
        ),
        ("cancel-too-short", false, b(b"\0\0\0\x08\x04\xd2\x16\x2e")),
        ("query-length-three", true, b(b"Q\0\0\0\x03")),
        (
            "query-length-negative",
            true,
            b(b"Q\xff\xff\xff\xffselect 1\0"),
        ),
        ("letters", true, b(b"this is no message of any protocol")),
        ("types-zero", true, vec![0; 64]),
        ("bind-without-names", true, message(b'B', b"abcd")),
        ("parse-without-end", true, message(b'P', b"select 1")),
        (
            "name-of-100-bytes",
            true,
            message(
                b'P',
                &[[b's'; 100].as_slice(), b"\0select 1\0\0\0"].concat(),
            ),
        ),
        (
            "execute-of-nothing",
            true,
            [message(b'E', b"none\0\0\0\0\0"), message(b'S', b"")].concat(),
        ),
        (
            "data-without-a-copy",
            true,
            [
                message(b'd', b"1\n"),
                message(b'c', b""),
                message(b'f', b"\0"),
            ]
            .concat(),
        ),
        ("password-again", true, message(b'p', b"secret\0")),
        (
            "query-in-a-copy",
            true,
            [copy(), message(b'd', b"1\n"), message(b'Q', b"select 1\0")].concat(),
        ),
        ("a-start-again", true, START.to_vec()),
    ]
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    [&[kind], &len.to_be_bytes()[..], body].concat()
}

/// A query that waits for data.
fn copy() -> Vec<u8> {
    message(b'Q', b"create temp table c (n int); copy c from stdin\0")
}

/// Says it and waits for the end; gives what was answered.
fn end_of(port: u16, logged_in: bool, said: &[u8]) -> Result<Vec<u8>> {
    let mut tcp = TcpStream::connect(("127.0.0.1", port))?;
    tcp.set_read_timeout(Some(SOON))?;
    if logged_in {
        log_in(&mut tcp)?;
    }
    match tcp.write_all(said) {
        Err(e) if !gone(&e) => return Err(e.into()),
        _ => {}
    }
    let mut answer = Vec::new();
    match tcp.read_to_end(&mut answer) {
        Err(e) if !gone(&e) => Err(e).context("no end within 10 s"),
        _ => Ok(answer),
    }
}

fn gone(e: &std::io::Error) -> bool {
    matches!(
        e.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::NotConnected
    )
}

/// Until it is the client's turn.
fn log_in(tcp: &mut TcpStream) -> Result<()> {
    tcp.write_all(START)?;
    loop {
        let mut head = [0; 5];
        tcp.read_exact(&mut head)?;
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut body = vec![0; len.checked_sub(4).context("a length")?];
        tcp.read_exact(&mut body)?;
        match head[0] {
            b'Z' => return Ok(()),
            b'E' => bail!("{}", String::from_utf8_lossy(&body)),
            _ => {}
        }
    }
}

#[test]
fn clients_that_are_none() -> Result<()> {
    skip_unless!(Postgres::is_there(), NO_SERVER);
    let db = Database::start(Login::Scram)?;
    let helper = db.helper("orders")?;
    let runtime = runtime()?;
    let held = runtime.block_on(crowd::open(helper.port))?;
    let before = procfs::open_files(db.agent.pid()?);
    let mut failed = String::new();
    for (name, logged_in, said) in bad_clients() {
        let started = Instant::now();
        // Where the protocol lets a session go on after it, this ends it.
        let said = match logged_in {
            true => [said, message(b'X', b"")].concat(),
            false => said,
        };
        match end_of(helper.port, logged_in, &said) {
            Ok(answer) => {
                let shown = answer.escape_ascii().to_string();
                println!(
                    "{name}, {:?}: {}",
                    started.elapsed(),
                    &shown[..shown.len().min(300)]
                );
            }
            Err(e) => failed += &format!("{name}: {e:#}\n"),
        }
    }
    ensure!(failed.is_empty(), "{failed}");

    // Cut off: in the start, in a query that is announced as 2 GiB, in a Bind, in a COPY.
    let data = [copy(), b"d\0\0\x10\0abc".to_vec()].concat();
    for (logged_in, said) in [
        (false, &START[..20]),
        (true, b"Q\x7f\xff\xff\xffselect"),
        (true, b"B\0\0\x10\0\0\0"),
        (true, &data),
    ] {
        let mut tcp = TcpStream::connect(("127.0.0.1", helper.port))?;
        if logged_in {
            log_in(&mut tcp)?;
        }
        tcp.write_all(said)?;
        tcp.shutdown(Shutdown::Both)?;
    }
    wait::holds("those that were cut off to be over", SOON, || {
        db.sessions().is_ok_and(|n| n == 1.0)
    })?;

    // Slow is not bad: a byte at a time.
    let mut slow = TcpStream::connect(("127.0.0.1", helper.port))?;
    slow.set_nodelay(true)?;
    slow.set_read_timeout(Some(SOON))?;
    for byte in START {
        slow.write_all(&[*byte])?;
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut answer = [0; 9];
    slow.read_exact(&mut answer)?;
    ensure!(answer == *b"R\0\0\0\x08\0\0\0\0", "{answer:?}");
    drop(slow);

    runtime.block_on(async {
        let answer = held.query_one("select $1::int4", &[&5]);
        ensure!(tokio::time::timeout(SOON, answer).await??.get::<_, i32>(0) == 5);
        Ok(())
    })?;
    wait::holds("all but one to be over", SOON, || {
        db.sessions().is_ok_and(|n| n == 1.0)
    })?;
    wait::holds("descriptors to be given back", wait::LONG, || {
        db.agent
            .pid()
            .is_ok_and(|pid| procfs::open_files(pid) <= before + 10 + SLACK)
    })
}
