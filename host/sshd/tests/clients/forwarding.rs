//! `-L`, and what else clients may ask to be forwarded.

use crate::support::*;
use std::process::{Child, Command};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

struct Running(Child);
impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn free_port() -> u16 {
    let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
    l.local_addr().unwrap().port()
}

/// `ssh -N -L` to a target; the local port, connectable.
async fn tunnel(lab: &Lab, target: &str) -> (Running, u16) {
    let port = free_port().await;
    let mut ssh = lab.program("ssh");
    ssh.args(["-N", "-L", &format!("127.0.0.1:{port}:{target}")]);
    ssh.arg(format!("{}@127.0.0.1", login()));
    ssh.stderr(std::fs::File::create(lab.path("ssh.log")).unwrap());
    let running = Running(ssh.spawn().unwrap());
    let log = lab.path("ssh.log");
    for _ in 0..500 {
        if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            return (running, port);
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!(
        "ssh -L does not listen: {}",
        std::fs::read_to_string(log).unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_forward_carries_bytes_and_half_closes() {
    let mut lab = Lab::new().await;
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = target.local_addr().unwrap();
    let (_ssh, port) = tunnel(&lab, &format!("localhost:{}", address.port())).await;
    // The probe's connection.
    drop(target.accept().await.unwrap());

    let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (mut server, _) = target.accept().await.unwrap();
    let payload: Vec<u8> = (0..8_000_000u32).map(|i| i as u8).collect();
    let echo = async {
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        server.write_all(&got).await.unwrap();
        server.shutdown().await.unwrap();
    };
    let ask = async {
        client.write_all(&payload).await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert!(got == payload);
    };
    tokio::join!(echo, ask);
    let event = lab.event("port.forward").await;
    assert_eq!(event.fields["success"], serde_json::json!(true));
    assert_eq!(
        event.text("target"),
        Some(format!("localhost:{}", address.port()).as_str())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn own_sockets_plugin_and_roles_refuse() {
    let mut lab = Lab::new().await;
    let own = format!("localhost:{}", lab.port);
    for (target, why) in [
        (own.as_str(), "one of posternd's own sockets"),
        ("127.0.0.1:9", "no discarding"),
    ] {
        let mut ssh = lab.program("ssh");
        ssh.args(["-W", target, &format!("{}@127.0.0.1", login())]);
        let out = run(ssh).await;
        assert!(!out.status.success());
        assert!(stderr(&out).contains(why), "{}", text(&out));
        assert!(
            stderr(&out).contains("administratively prohibited"),
            "{}",
            text(&out)
        );
        let event = lab.event("port.forward").await;
        assert_eq!(event.fields["success"], serde_json::json!(false));
        assert!(event.text("reason").unwrap().contains(why));
    }
    let unreachable = free_port().await;
    let mut ssh = lab.program("ssh");
    ssh.args([
        "-W",
        &format!("127.0.0.1:{unreachable}"),
        &format!("{}@127.0.0.1", login()),
    ]);
    let out = run(ssh).await;
    assert!(stderr(&out).contains("connect failed"), "{}", text(&out));

    for (lab, why) in [
        (
            Lab::guarded(Rules, false, |_| {}).await,
            "roles do not allow port forwarding",
        ),
        (
            Lab::with(|o| o.port_forwarding = false).await,
            "port forwarding is off",
        ),
    ] {
        let mut ssh = lab.program("ssh");
        ssh.args([
            "-W",
            &format!("127.0.0.1:{unreachable}"),
            &format!("{}@127.0.0.1", login()),
        ]);
        let out = run(ssh).await;
        assert!(stderr(&out).contains(why), "{}", text(&out));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn remote_agent_and_x11_forwarding_are_refused_and_the_session_goes_on() {
    let lab = Lab::new().await;
    let mut ssh = lab.program("ssh");
    ssh.args([
        "-A",
        "-R",
        "0:127.0.0.1:1",
        &format!("{}@127.0.0.1", login()),
    ]);
    ssh.arg("echo still here; echo agent=$SSH_AUTH_SOCK display=$DISPLAY");
    ssh.env("SSH_AUTH_SOCK", "/nonexistent")
        .env("DISPLAY", ":77");
    let out = run(ssh).await;
    assert_eq!(
        String::from_utf8_lossy(&out.stdout),
        "still here\nagent= display=\n"
    );
    assert!(
        stderr(&out).contains("remote port forwarding failed"),
        "{}",
        text(&out)
    );

    let mut ssh = lab.program("ssh");
    ssh.args([
        "-o",
        "ExitOnForwardFailure=yes",
        "-N",
        "-R",
        "0:127.0.0.1:1",
    ]);
    ssh.arg(format!("{}@127.0.0.1", login()));
    let out = run(ssh).await;
    assert_eq!(out.status.code(), Some(255), "{}", text(&out));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_sessions_share_one_connection() {
    let mut lab = Lab::new().await;
    let socket = lab.path("mux");
    let host = format!("{}@127.0.0.1", login());
    let mut master = lab.program("ssh");
    master.args(["-M", "-N", "-S", socket.to_str().unwrap(), &host]);
    let master = Running(master.spawn().unwrap());
    until("the master listens", || socket.exists()).await;
    let mut running = tokio::task::JoinSet::new();
    for i in 0..20 {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-S", socket.to_str().unwrap(), &host]);
        ssh.arg(format!("echo {i}; exit {i}"))
            .stdin(std::process::Stdio::null());
        running.spawn(async move { (i, run(ssh).await) });
    }
    while let Some(done) = running.join_next().await {
        let (i, out) = done.unwrap();
        assert_eq!(out.stdout, format!("{i}\n").into_bytes(), "{}", text(&out));
        assert_eq!(out.status.code(), Some(i));
    }
    drop(master);
    let summary = lab.summary().await.unwrap();
    assert_eq!(summary.exits.len(), 20);
}
