//! Sessions through the helper path: `postern proxy` in all its forms, and `postern ssh` and
//! `postern config` with the real OpenSSH at both ends.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::cluster::{Cluster, me};
use common::{Ran, command, postern};
use postern_identity::ServiceKeys;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};

/// More than all buffers on the way hold, and not the same everywhere.
fn bulk() -> Vec<u8> {
    (0..8_000_003u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

/// Sends bulk through a command's pipes, closes, and takes what comes back.
async fn through_pipes(cluster: &Cluster, name: &str) -> (Vec<u8>, Option<i32>) {
    let mut child = command(&cluster.home())
        .args(["proxy", "--stdio", name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let send = async move { stdin.write_all(&bulk()).await.unwrap() };
    let mut back = Vec::new();
    tokio::join!(send, async { stdout.read_to_end(&mut back).await.unwrap() });
    (back, child.wait().await.unwrap().code())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_go_both_ways_and_each_way_ends_by_itself() {
    let cluster = Cluster::start().await;
    for name in ["echo.ssh.demo", "echo.tcp.demo"] {
        let (back, code) = through_pipes(&cluster, name).await;
        assert!(back == bulk(), "{name}: {} bytes came back", back.len());
        assert_eq!(code, Some(0), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_and_sockets_do_for_standard_input_and_output() {
    let cluster = Cluster::start().await;
    let (from, to) = (
        cluster.dir.path().join("from"),
        cluster.dir.path().join("to"),
    );
    std::fs::write(&from, bulk()).unwrap();
    let run = command(&cluster.home())
        .args(["proxy", "--stdio", "echo.ssh"])
        .stdin(File::open(&from).unwrap())
        .stdout(File::create(&to).unwrap())
        .status();
    assert!(run.await.unwrap().success());
    assert!(std::fs::read(&to).unwrap() == bulk());

    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let theirs = OwnedFd::from(theirs);
    let mut child = command(&cluster.home())
        .args(["proxy", "--stdio", "echo.tcp"])
        .stdin(theirs.try_clone().unwrap())
        .stdout(theirs)
        .spawn()
        .unwrap();
    ours.set_nonblocking(true).unwrap();
    let (mut read, mut write) = UnixStream::from_std(ours).unwrap().into_split();
    let send = async {
        write.write_all(&bulk()).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    tokio::join!(send, async { read.read_to_end(&mut back).await.unwrap() });
    assert!(back == bulk(), "{} bytes came back", back.len());
    assert!(child.wait().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loopback_port_leads_there() {
    let cluster = Cluster::start().await;
    let mut child = command(&cluster.home())
        .args(["proxy", "echo.tcp", "--port", "0", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line: serde_json::Value =
        serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
    assert_eq!(line["resource"], "echo.tcp.demo");
    let address = line["listen"].as_str().unwrap();
    // One helper connection each: they do not wait for one another.
    let mut first = TcpStream::connect(address).await.unwrap();
    let mut second = TcpStream::connect(address).await.unwrap();
    for (client, text) in [(&mut second, "second"), (&mut first, "first")] {
        client.write_all(text.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let mut back = String::new();
        client.read_to_string(&mut back).await.unwrap();
        assert_eq!(back, text);
    }
    child.kill().await.unwrap();
}

#[tokio::test]
async fn only_the_loopback_interface_is_listened_on() {
    let cluster = Cluster::start().await;
    let e = postern(
        &cluster.home(),
        ["proxy", "echo.tcp", "--listen", "0.0.0.0:7000"],
        "",
    )
    .await
    .failed(2);
    assert_eq!(
        e,
        "postern: 0.0.0.0:7000 is not a loopback address: whoever reached it would act as you; use for example 127.0.0.1:7000\n"
    );
}

async fn refused(cluster: &Cluster, name: &str) -> String {
    let e = postern(&cluster.home(), ["proxy", "--stdio", name], "")
        .await
        .failed(1);
    assert_eq!(e.lines().count(), 1, "{e}");
    e
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_wrong_is_one_line() {
    let cluster = Cluster::start().await;
    assert_eq!(
        refused(&cluster, "nobody.ssh.demo").await,
        "postern: no agent serves nobody.ssh.demo now; try again in a minute\n"
    );
    assert_eq!(
        refused(&cluster, "mute.ssh.demo").await,
        format!(
            "postern: the proxy {} closed the connection without an answer\n",
            cluster.address
        )
    );
    let e = refused(&cluster, "impostor.tcp.demo").await;
    assert!(
        e.starts_with("postern: what answers for impostor.tcp.demo is not its agent: "),
        "{e}"
    );
    let e = postern(&cluster.home(), ["proxy", "--stdio", "web-1.ssh.other"], "")
        .await
        .failed(2);
    assert!(e.contains("names nothing in cluster demo"), "{e}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_was_cut_is_not_taken_for_whole() {
    let cluster = Cluster::start().await;
    let Ran { code, out, err } =
        postern(&cluster.home(), ["proxy", "--stdio", "cut.tcp"], "").await;
    assert_eq!((code, out.as_str()), (Some(1), "half of it"));
    assert_eq!(
        err,
        "postern: the session with cut.tcp was cut: what came may be incomplete\n"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_the_cluster_does_not_know() {
    let cluster = Cluster::start().await;
    let keys = ServiceKeys::generate();
    cluster.log_in(&cluster.home(), &keys, &Cluster::foreign_ca(), 3600);
    let e = refused(&cluster, "echo.ssh").await;
    assert!(
        e.contains("does not accept your certificate") && e.ends_with("run: postern login\n"),
        "{e}"
    );
    cluster.log_in(&cluster.home(), &keys, &Cluster::foreign_ca(), -7300);
    let e = refused(&cluster, "echo.ssh").await;
    assert!(
        e.starts_with("postern: your certificate for cluster demo expired 2 h "),
        "{e}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_of_another_cluster_is_not_told_anything() {
    let (cluster, other) = (Cluster::start().await, Cluster::start().await);
    let profile = cluster.home().join("profile.json");
    let text = std::fs::read_to_string(&profile)
        .unwrap()
        .replace(&cluster.address.to_string(), &other.address.to_string());
    std::fs::write(&profile, text).unwrap();
    let e = refused(&cluster, "echo.ssh").await;
    assert!(
        e.starts_with(&format!(
            "postern: what answers at {} is not the proxy of cluster demo",
            other.address
        )),
        "{e}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssh_logs_in_and_its_exit_status_is_ours() {
    let cluster = Cluster::start().await;
    let Some(()) = cluster.sshd() else { return };
    let home = cluster.home();
    let destination = format!("{}@web-1", me());
    assert_eq!(
        postern(&home, ["ssh", &destination, "echo hello; exit 7"], "")
            .await
            .code,
        Some(7)
    );
    let shouted = postern(&home, ["ssh", "-T", "web-1", "tr a-z A-Z"], "through\n")
        .await
        .ok();
    assert_eq!(shouted, "THROUGH\n");
    let e = postern(&home, ["ssh", "nobody", "true"], "")
        .await
        .failed(255);
    assert!(
        e.starts_with("postern: no agent serves nobody.ssh.demo now; try again in a minute"),
        "{e}"
    );
    // A server that shows a bare key, and no certificate, is not asked about: it is refused.
    let e = postern(&home, ["ssh", "bare-1", "true"], "")
        .await
        .failed(255);
    assert!(!e.contains("continue connecting"), "{e}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_openssh_block_serves_ssh_and_sftp() {
    let cluster = Cluster::start().await;
    let Some(()) = cluster.sshd() else { return };
    let config = cluster.dir.path().join("ssh_config");
    std::fs::write(&config, postern(&cluster.home(), ["config"], "").await.ok()).unwrap();
    let up = cluster.dir.path().join("up");
    std::fs::write(&up, bulk()).unwrap();
    let down = cluster.dir.path().join("down");
    for (from, to) in [
        (
            format!("{}", up.display()),
            format!("web-1.ssh.demo:{}.there", up.display()),
        ),
        (
            format!("web-1.ssh.demo:{}.there", up.display()),
            format!("{}", down.display()),
        ),
    ] {
        let run = tokio::process::Command::new("scp")
            .arg("-q")
            .arg("-F")
            .arg(&config)
            .args([&from, &to])
            .status();
        let status = tokio::time::timeout(Duration::from_secs(60), run)
            .await
            .unwrap()
            .unwrap();
        assert!(status.success(), "{from} {to}");
    }
    assert!(std::fs::read(&down).unwrap() == bulk());
}
