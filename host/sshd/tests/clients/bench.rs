//! Measurements, not tests: `CARGO_PROFILE_DEV_OPT_LEVEL=3 cargo test -p postern-sshd --test clients bench -- --ignored --nocapture`

use crate::support::*;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const MB: usize = 600;

/// The system's sshd with a plain key, for comparison.
struct OpenSsh {
    child: Child,
    port: u16,
}

impl OpenSsh {
    async fn start(lab: &Lab) -> OpenSsh {
        let port = {
            let l = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            l.local_addr().unwrap().port()
        };
        let key = lab.path("sshd_key");
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&key)
            .status();
        assert!(made.unwrap().success());
        std::fs::create_dir_all("/run/sshd").unwrap();
        let keys = lab.path("authorized_keys");
        std::fs::copy(lab.path("id.pub"), &keys).unwrap();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nPidFile none\nSubsystem sftp /usr/lib/openssh/sftp-server\n",
            key.display(),
            keys.display()
        );
        std::fs::write(lab.path("sshd_config"), config).unwrap();
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-f"])
            .arg(lab.path("sshd_config"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let sshd = OpenSsh { child, port };
        for _ in 0..200 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        sshd
    }
}

impl Drop for OpenSsh {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ssh(lab: &Lab, port: Option<u16>) -> Command {
    let mut c = Command::new("ssh");
    match port {
        None => return lab.ssh_as("root"),
        Some(port) => {
            c.args(["-F", "none", "-p", &port.to_string(), "-i"])
                .arg(lab.path("id"));
            c.args([
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
            ]);
            c.args([
                "-o",
                "Ciphers=aes256-gcm@openssh.com",
                "-o",
                "LogLevel=ERROR",
                "root@127.0.0.1",
            ]);
        }
    }
    c
}

/// Wall and the server's CPU seconds. (OpenSSH's include the `cat`.)
async fn timed(mut c: Command, sshd: Option<u32>) -> (f64, f64) {
    let (begun, before) = (Instant::now(), cpu(sshd));
    let done = tokio::task::spawn_blocking(move || c.status().unwrap().success());
    assert!(done.await.unwrap());
    let wall = begun.elapsed().as_secs_f64();
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    (wall, cpu(sshd) - before)
}

/// Of this process, or of the ended children of another.
fn cpu(children_of: Option<u32>) -> f64 {
    let (pid, first) = children_of.map_or(("self".into(), 11), |p| (p.to_string(), 13));
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after = stat.rsplit_once(')').unwrap().1;
    let ticks = after.split_whitespace().skip(first).take(2);
    ticks.map(|t| t.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

#[tokio::test(flavor = "multi_thread")]
#[ignore]
async fn against_openssh() {
    let lab = Lab::with(|o| o.allow_same_user = true).await;
    let openssh = OpenSsh::start(&lab).await;
    let big = lab.path("zero");
    let file = std::fs::File::create(&big).unwrap();
    file.set_len((MB as u64) << 20).unwrap();
    let mut rows = Vec::new();
    for name in ["down", "up", "true"] {
        let (mut ours, mut theirs) = (vec![], vec![]);
        for _ in 0..5 {
            for (port, into) in [(None, &mut ours), (Some(openssh.port), &mut theirs)] {
                let mut c = ssh(&lab, port);
                c.stdin(Stdio::null()).stdout(Stdio::null());
                match name {
                    "down" => c.arg(format!("cat {}", big.display())),
                    "up" => c
                        .arg("cat > /dev/null")
                        .stdin(std::fs::File::open(&big).unwrap()),
                    _ => c.arg("true"),
                };
                into.push(timed(c, port.map(|_| openssh.child.id())).await);
            }
        }
        rows.push((name, ours, theirs));
    }
    let median = |mut v: Vec<f64>| {
        v.sort_by(f64::total_cmp);
        v[v.len() / 2]
    };
    for (name, ours, theirs) in rows {
        let (ours, our_cpu): (Vec<_>, Vec<_>) = ours.into_iter().unzip();
        let (theirs, their_cpu): (Vec<_>, Vec<_>) = theirs.into_iter().unzip();
        let (ours, theirs) = (median(ours), median(theirs));
        println!(
            "{name}: postern {ours:.3} s, OpenSSH {theirs:.3} s, {:.2} x; CPU {:.2} s and {:.2} s",
            theirs / ours,
            median(our_cpu),
            median(their_cpu),
        );
    }
}

/// What an idle terminal session adds to this process (proportional set size, KB).
#[tokio::test(flavor = "multi_thread")]
#[ignore]
async fn idle_sessions() {
    let lab = Lab::new().await;
    let mut held = Vec::new();
    let mut hold = |n: usize| {
        for _ in 0..n {
            let mut ssh = lab.program("ssh");
            ssh.args(["-tt", &format!("{}@127.0.0.1", login())]);
            ssh.stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            held.push(ssh.spawn().unwrap());
        }
    };
    let settle = || tokio::time::sleep(std::time::Duration::from_secs(6));
    hold(5);
    settle().await;
    let before = pss_kb();
    hold(50);
    settle().await;
    println!("per idle terminal session: {} KB", (pss_kb() - before) / 50);
    for mut ssh in held {
        let _ = ssh.kill();
        let _ = ssh.wait();
    }
}

fn pss_kb() -> i64 {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = rollup.lines().find(|l| l.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
