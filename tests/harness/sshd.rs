//! OpenSSH's own server, for comparison: host and user certificates by a CA of its own, on a free loopback port.

use super::{Lab, Place, Run, free_port, wait};
use anyhow::{Context, Result};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// A running sshd; killed when dropped.
pub struct Sshd {
    dir: PathBuf,
    port: u16,
    login: String,
    child: Child,
}

impl Sshd {
    /// Serves this login, in a place where it exists.
    pub fn start(lab: &Arc<Lab>, login: &str, place: &Place) -> Result<Sshd> {
        let dir = lab.join("openssh");
        std::fs::create_dir_all(&dir)?;
        let _ = std::fs::create_dir_all("/run/sshd");
        let keygen = |args: &[&str]| {
            Run::new(Command::new("ssh-keygen"))
                .dir(&dir)
                .arg("-q")
                .args(args)
                .ok()
        };
        for key in ["ca", "host", "user"] {
            keygen(&["-t", "ed25519", "-N", "", "-f", key, "-C", key])?;
        }
        keygen(&[
            "-s", "ca", "-I", "host", "-h", "-n", "node1", "-V", "-1m:+1d", "host.pub",
        ])?;
        keygen(&[
            "-s", "ca", "-I", "user", "-n", login, "-V", "-1m:+1d", "user.pub",
        ])?;
        let ca = std::fs::read_to_string(dir.join("ca.pub"))?;
        std::fs::write(
            dir.join("known_hosts"),
            format!("@cert-authority node1 {ca}"),
        )?;
        let port = free_port()?;
        let d = dir.display();
        std::fs::write(
            dir.join("sshd_config"),
            format!(
                "Port {port}\nListenAddress 127.0.0.1\nHostKey {d}/host\nHostCertificate {d}/host-cert.pub\n\
                 TrustedUserCAKeys {d}/ca.pub\nPidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\n\
                 PermitRootLogin yes\nPrintMotd no\nMaxStartups 100:30:1000\nMaxSessions 1000\n\
                 Subsystem sftp /usr/lib/openssh/sftp-server\n"
            ),
        )?;
        let sshd = ["/usr/sbin/sshd", "/usr/bin/sshd"]
            .into_iter()
            .find(|p| Path::new(p).exists());
        let sshd = sshd.context("no sshd (Debian: openssh-server)")?;
        let mut command = place.command(Path::new(sshd));
        command
            .arg("-D")
            .arg("-f")
            .arg(dir.join("sshd_config"))
            .arg("-E")
            .arg(dir.join("log"));
        let child = command.stdin(Stdio::null()).spawn().context("sshd")?;
        let sshd = Sshd {
            dir,
            port,
            login: login.into(),
            child,
        };
        wait::holds("sshd to listen", wait::LONG, || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        })
        .with_context(|| std::fs::read_to_string(sshd.dir.join("log")).unwrap_or_default())?;
        Ok(sshd)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Writes an OpenSSH configuration with two hosts, `direct` and `jump` (through the same server).
    pub fn write_ssh_config(&self, cipher: &str) -> Result<PathBuf> {
        let d = self.dir.display();
        let common = format!(
            "  HostName 127.0.0.1\n  Port {}\n  User {}\n  HostKeyAlias node1\n  UserKnownHostsFile {d}/known_hosts\n\
             \x20 GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n  IdentitiesOnly yes\n  IdentityFile {d}/user\n\
             \x20 CertificateFile {d}/user-cert.pub\n  Ciphers {cipher}\n  BatchMode yes\n",
            self.port, self.login
        );
        let file = self.dir.join("config");
        std::fs::write(
            &file,
            format!("Host direct\n{common}Host jump\n{common}  ProxyJump direct\n"),
        )?;
        Ok(file)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
