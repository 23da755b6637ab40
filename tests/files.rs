//! Files by scp, sftp and rsync, and amounts that cross SSH's re-keying; compared by hash.

use anyhow::{Context, Result, ensure};
use postern_tests::{Agent, Cluster, Lab, Run, User, run};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

fn setup() -> Result<(Cluster, Agent, User)> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let agent = cluster.agent("web-1").start()?;
    let user = cluster.user("alice", &[&agent.login])?;
    Ok((cluster, agent, user))
}

/// Bytes that do not compress.
fn random_file(path: &Path, len: u64) -> Result<()> {
    let mut from = File::open("/dev/urandom")?.take(len);
    std::io::copy(&mut from, &mut File::create(path)?)?;
    Ok(())
}

fn sha256(path: &Path) -> Result<String> {
    let out = Run::new(Command::new("sha256sum")).arg(path).ok()?;
    Ok(out.split(' ').next().unwrap_or_default().to_string())
}

#[test]
fn scp_and_sftp_both_ways() -> Result<()> {
    let (cluster, agent, alice) = setup()?;
    let local = cluster.lab.join("up.bin");
    random_file(&local, 20_000_003)?;
    let hash = sha256(&local)?;
    let there = format!("{}@{}:", agent.login, agent.host());

    // Today's scp speaks sftp; -O is the old protocol, an exec of `scp -t`.
    for (name, old) in [("by-sftp", false), ("by-rcp", true)] {
        let scp = || {
            if old {
                alice.openssh("scp").arg("-O")
            } else {
                alice.openssh("scp")
            }
        };
        scp().arg(&local).arg(format!("{there}{name}.bin")).ok()?;
        let far = alice
            .ssh(&agent)
            .arg(format!("sha256sum {name}.bin"))
            .ok()?;
        ensure!(far.starts_with(&hash), "{name}: {far}");
        let back = cluster.lab.join(&format!("{name}.back"));
        scp().arg(format!("{there}{name}.bin")).arg(&back).ok()?;
        ensure!(sha256(&back)? == hash, "{name}, down");
    }

    let back = cluster.lab.join("sftp.back");
    let batch = format!(
        "mkdir box\nput {} box/file\nrename box/file box/renamed\nchmod 640 box/renamed\nls -l box\nget box/renamed {}\nrm box/renamed\nrmdir box\n",
        local.display(),
        back.display()
    );
    let out = alice
        .openssh("sftp")
        .args(["-b", "-"])
        .arg(there.trim_end_matches(':'))
        .stdin(batch)
        .ok()?;
    ensure!(
        out.contains("renamed") && out.contains("-rw-r-----"),
        "{out}"
    );
    ensure!(sha256(&back)? == hash, "sftp, down");
    // What is not there is told, and the exit status says it.
    let gone = alice
        .openssh("scp")
        .arg(format!("{there}no-such-file"))
        .arg(&back)
        .run()?;
    gone.refused("no such file")?;
    Ok(())
}

#[test]
fn rsync_moves_only_what_changed() -> Result<()> {
    let (cluster, agent, alice) = setup()?;
    let tree = cluster.lab.join("site");
    std::fs::create_dir(&tree)?;
    for i in 0..40 {
        random_file(&tree.join(format!("{i:02}.bin")), 50_000 + i)?;
    }
    let rsync = || {
        Run::new(Command::new("rsync"))
            .env("POSTERN_HOME", &alice.home)
            .args(["-e", &alice.ssh_line(), "-a", "--stats"])
    };
    let there = format!("{}@{}:site/", agent.login, agent.host());
    let here = format!("{}/", tree.display());
    rsync().args([&here, &there]).ok()?;
    let second = rsync().args([&here, &there]).ok()?;
    ensure!(
        second.contains("Number of regular files transferred: 0"),
        "{second}"
    );
    let back = cluster.lab.join("back");
    rsync().arg(&there).arg(&back).ok()?;
    let same = Run::new(Command::new("diff"))
        .arg("-r")
        .arg(&tree)
        .arg(&back)
        .run()?;
    ensure!(same.status.success(), "{}", same.told());
    Ok(())
}

/// 3 GB each way: no buffer holds it, and SSH changes its keys on the way (OpenSSH's limit is far below).
const BIG: u64 = 3_000_000_000;

#[test]
fn three_gigabytes_down_and_up_by_hash() -> Result<()> {
    let (_cluster, agent, alice) = setup()?;
    let expected = stream_hash()?;
    // Down: the far side makes the stream, here it is hashed.
    let mut ssh = alice
        .ssh(&agent)
        .arg(generator())
        .background(Stdio::piped())?;
    let down = hash_of(ssh.child().stdout.take().context("stdout")?)?;
    ensure!(ssh.wait(Duration::from_secs(30))?.success(), "ssh failed");
    ensure!(down == expected, "down: {down}, not {expected}");
    // Up: made here, hashed there; with another limit for changing keys besides.
    let mut make = Command::new("sh")
        .args(["-c", &generator()])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut ssh = alice.ssh(&agent).into_command();
    ssh.args(["-o", "RekeyLimit=200M"])
        .arg("sha256sum")
        .stdin(make.stdout.take().context("stdout")?);
    let out = ssh.output()?;
    make.wait()?;
    let up = String::from_utf8_lossy(&out.stdout)
        .split(' ')
        .next()
        .unwrap_or_default()
        .to_string();
    ensure!(
        up == expected,
        "up: {up}, not {expected}; {}",
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(())
}

/// A deterministic stream that no layer can compress or mistake: AES-CTR of zeros where openssl is there, else numbers.
fn generator() -> String {
    format!(
        "if command -v openssl >/dev/null; then head -c {BIG} /dev/zero | openssl enc -aes-128-ctr -nosalt -K 00112233445566778899aabbccddeeff -iv 00000000000000000000000000000000; else seq 1 400000000 | head -c {BIG}; fi"
    )
}

fn stream_hash() -> Result<String> {
    let mut make = Command::new("sh")
        .args(["-c", &generator()])
        .stdout(Stdio::piped())
        .spawn()?;
    let hash = hash_of(make.stdout.take().context("stdout")?);
    make.wait()?;
    hash
}

fn hash_of(from: impl Into<Stdio>) -> Result<String> {
    let out = Command::new("sha256sum").stdin(from).output()?;
    Ok(String::from_utf8_lossy(&out.stdout)
        .split(' ')
        .next()
        .unwrap_or_default()
        .to_string())
}

#[test]
fn a_reader_that_stops_stalls_nobody_else() -> Result<()> {
    let (_cluster, agent, alice) = setup()?;
    // Its client never reads what comes.
    let mut stalled: run::Background = alice
        .ssh(&agent)
        .arg("cat /dev/zero")
        .background(Stdio::piped())?;
    let mut first = [0u8; 1];
    stalled
        .child()
        .stdout
        .as_mut()
        .context("stdout")?
        .read_exact(&mut first)?;
    let before = postern_tests::procfs::rss(agent.pid()?)?;
    let out = alice
        .ssh(&agent)
        .arg("head -c 100000000 /dev/zero | wc -c; head -c 50000000 /dev/zero")
        .run()?;
    ensure!(out.stdout.len() == 50_000_010, "{} bytes", out.stdout.len());
    let after = postern_tests::procfs::rss(agent.pid()?)?;
    ensure!(
        after < before + (64 << 20),
        "the agent grew from {before} to {after} bytes"
    );
    let mut pipe = stalled.child().stdin.take().context("stdin")?;
    let _ = pipe.write_all(b"x");
    ensure!(stalled.is_running(), "the stalled session is still there");
    Ok(())
}
