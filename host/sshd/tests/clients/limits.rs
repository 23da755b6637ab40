//! Many at once, clients that vanish or say nothing, drains; nothing is left behind.

use crate::support::*;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test(flavor = "multi_thread")]
async fn fifty_sessions_at_once_leave_nothing() {
    let mut lab = Lab::new().await;
    lab.sh("true").await;
    let before = open_fds();
    let mut running = tokio::task::JoinSet::new();
    for i in 0..50 {
        let mut ssh = lab.ssh();
        ssh.arg(format!(
            "echo {i}; head -c 100000 /dev/zero | wc -c; exit {}",
            i % 5
        ));
        running.spawn(async move { (i, run(ssh).await) });
    }
    while let Some(done) = running.join_next().await {
        let (i, out) = done.unwrap();
        assert_eq!(out.status.code(), Some(i % 5), "{}", text(&out));
        assert_eq!(out.stdout, format!("{i}\n100000\n").into_bytes());
    }
    for _ in 0..51 {
        lab.summary().await.unwrap();
    }
    until("all descriptors closed", || open_fds() <= before).await;
    until("all processes reaped", || children().is_empty()).await;
}

/// Children of this process, living or not reaped.
fn children() -> Vec<String> {
    let me = std::process::id();
    let tasks = std::fs::read_dir(format!("/proc/{me}/task")).unwrap();
    tasks
        .filter_map(|t| std::fs::read_to_string(t.ok()?.path().join("children")).ok())
        .flat_map(|c| c.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_clients_processes_hear_of_it() {
    let mut lab = Lab::new().await;
    lab.sh("true").await;
    lab.summary().await.unwrap();
    let before = open_fds();
    for tty in ["-T", "-tt"] {
        let marker = format!("86{}{}", std::process::id(), tty.len());
        let mut ssh = lab.program("ssh");
        ssh.args([
            tty,
            &format!("{}@127.0.0.1", login()),
            &format!("sleep {marker}; true"),
        ]);
        ssh.stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null());
        let mut ssh = ssh.spawn().unwrap();
        let needle = format!("sleep {marker}");
        // ssh itself, the shell, sleep.
        until("it runs", || processes(&needle).len() >= 3).await;
        ssh.kill().unwrap();
        ssh.wait().unwrap();
        until("the processes are gone", || processes(&needle).is_empty()).await;
        let summary = lab.summary().await.unwrap();
        assert_eq!(summary.exits, ["disconnected"]);
        let end = lab.event("session.end").await;
        assert!(end.text("session_id").is_some());
    }
    until("all descriptors closed", || open_fds() <= before).await;
    until("all processes reaped", || children().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_and_garbage_are_cut_off() {
    let mut lab = Lab::new().await;
    let mut garbage = TcpStream::connect(("127.0.0.1", lab.port)).await.unwrap();
    garbage.write_all(&[0x41; 4096]).await.unwrap();
    assert!(lab.summary().await.is_err());

    // One says nothing, one stops after its banner, one sends a byte a second.
    let begun = Instant::now();
    let silent = TcpStream::connect(("127.0.0.1", lab.port)).await.unwrap();
    let mut banner = TcpStream::connect(("127.0.0.1", lab.port)).await.unwrap();
    banner.write_all(b"SSH-2.0-slow\r\n").await.unwrap();
    let slow = TcpStream::connect(("127.0.0.1", lab.port)).await.unwrap();
    let (mut from_slow, mut to_slow) = slow.into_split();
    let drip = tokio::spawn(async move {
        for byte in b"SSH-2.0-slow".iter().cycle() {
            if to_slow.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let mut seen = Vec::new();
    let _ = from_slow.read_to_end(&mut seen).await;
    let (mut silent, mut rest) = (silent, Vec::new());
    let _ = silent.read_to_end(&mut rest).await;
    let _ = banner.read_to_end(&mut rest).await;
    assert!(
        begun.elapsed() < Duration::from_secs(14),
        "{:?}",
        begun.elapsed()
    );
    drip.abort();
    for _ in 0..3 {
        assert!(lab.summary().await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_lets_sessions_end_and_no_new_ones_begin() {
    let mut lab = Lab::new().await;
    let client = lab.client().await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.exec(true, "read x; echo bye $x").await.unwrap();
    // The answer to the request.
    assert!(matches!(
        channel.wait().await,
        Some(russh::ChannelMsg::Success)
    ));
    lab.drain.cancel();
    let refused = client.channel_open_session().await;
    assert!(refused.is_err());
    channel.data(&b"now\n"[..]).await.unwrap();
    let mut seen = Vec::new();
    while let Some(message) = channel.wait().await {
        if let russh::ChannelMsg::Data { data } = message {
            seen.extend_from_slice(&data);
        }
    }
    assert_eq!(seen, b"bye now\n");
    let summary = lab.summary().await.unwrap();
    assert_eq!(summary.reason, "agent is going away");
    assert_eq!(summary.exits, ["0"]);
}

/// A client that sends without end to a process that does not read: it is stopped, little waits in memory, and the
/// connection's other channels answer. (OpenSSH's client: russh's lets one full channel stop the others.)
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_does_not_read_stops_its_client_only() {
    let mut lab = Lab::new().await;
    let socket = lab.path("mux");
    let host = format!("{}@127.0.0.1", login());
    let mut master = lab.program("ssh");
    master.args(["-M", "-N", "-S", socket.to_str().unwrap(), &host]);
    let mut master = master.spawn().unwrap();
    until("the master listens", || socket.exists()).await;
    let mux = |command: &str| {
        let mut ssh = std::process::Command::new("ssh");
        ssh.args(["-F", "none", "-S", socket.to_str().unwrap(), &host, command]);
        ssh.stdin(std::process::Stdio::null());
        ssh
    };
    let total = 60 << 20;
    let waker = lab.path("wake");
    let stuck = mux(&format!(
        "while [ ! -e {} ]; do sleep 0.05; done; wc -c",
        waker.display()
    ));
    std::fs::set_permissions(
        lab.dir.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let before = resident_kb();
    let stuck = tokio::spawn(feed(stuck, vec![7; total]));
    let begun = Instant::now();
    for _ in 0..8 {
        let out = run(mux("echo hello; sleep 0.1")).await;
        assert_eq!(out.stdout, b"hello\n", "{}", text(&out));
    }
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "{:?}",
        begun.elapsed()
    );
    assert!(!stuck.is_finished());
    // `total` is in this process too, with its sender.
    let grown = resident_kb().saturating_sub(before);
    assert!(grown < (total >> 10) + 16_000, "{grown} KB");
    std::fs::write(&waker, "").unwrap();
    let out = stuck.await.unwrap();
    assert_eq!(
        String::from_utf8_lossy(&out.stdout).trim(),
        total.to_string()
    );
    master.kill().unwrap();
    master.wait().unwrap();
    assert_eq!(lab.summary().await.unwrap().bytes_in, total as u64);
}

/// A client that asks for much and reads nothing pins little, and nobody else notices.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_pins_little() {
    let lab = Lab::new().await;
    lab.sh("true").await;
    let before = resident_kb();
    let mut ssh = lab.ssh();
    ssh.arg("cat /dev/zero").stdout(std::process::Stdio::null());
    let mut ssh = ssh.spawn().unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let pid = nix::unistd::Pid::from_raw(ssh.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let begun = Instant::now();
    assert_eq!(
        lab.sh("head -c 20000000 /dev/zero | wc -c").await,
        "20000000\n"
    );
    assert!(begun.elapsed() < Duration::from_secs(5));
    let grown = resident_kb().saturating_sub(before);
    ssh.kill().unwrap();
    ssh.wait().unwrap();
    assert!(grown < 6_000, "{grown} KB");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_are_gone_without_a_word_are_found() {
    let mut lab = Lab::with(|o| {
        o.keepalive = Duration::from_millis(200);
        o.keepalive_max = 2;
    })
    .await;
    for command in ["echo up; sleep 100", "cat /dev/zero"] {
        let mut ssh = lab.ssh();
        ssh.arg(command).stdout(std::process::Stdio::piped());
        let mut ssh = ssh.spawn().unwrap();
        // It runs: its first byte is here.
        use std::io::Read;
        ssh.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let pid = nix::unistd::Pid::from_raw(ssh.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
        let summary = lab.summary().await.unwrap();
        assert!(
            summary.reason.starts_with("the client stopped"),
            "{}",
            summary.reason
        );
        ssh.kill().unwrap();
        ssh.wait().unwrap();
    }
}

/// What the agent does when a user is locked.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_connection_ends_at_once_and_is_recorded() {
    let mut lab = Lab::new().await;
    let marker = format!("87{}", std::process::id());
    let mut ssh = lab.ssh();
    ssh.arg(format!("sleep {marker}; true"));
    let running = tokio::spawn(run(ssh));
    until("it runs", || {
        processes(&format!("sleep {marker}")).len() >= 3
    })
    .await;
    lab.stop();
    let out = running.await.unwrap();
    assert_eq!(out.status.code(), Some(255));
    until("its processes are gone", || {
        processes(&format!("sleep {marker}")).is_empty()
    })
    .await;
    let end = lab.event("session.end").await;
    assert_eq!(end.text("reason"), Some("ended by the agent"));
}

fn resident_kb() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
