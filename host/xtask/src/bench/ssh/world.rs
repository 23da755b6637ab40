//! What is measured: a cluster (Auth and proxy in one process) and an agent in another, all release builds on loopback, and
//! beside them OpenSSH's own server, once direct and once through itself as a jump host. The same login and cipher everywhere.

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use postern_tests::{Agent, Cluster, Lab, Place, Run, Sshd, User, procfs};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const CIPHER: &str = "aes256-gcm@openssh.com";

/// How one gets to the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    Postern,
    Direct,
    Jump,
}

pub struct World {
    pub lab: Arc<Lab>,
    pub cluster: Cluster,
    pub agent: Agent,
    pub user: User,
    sshd: Sshd,
    openssh_config: PathBuf,
}

impl World {
    pub fn start() -> Result<World> {
        let lab = Lab::quiet()?;
        let cluster = Cluster::start(&lab)?;
        let agent = cluster.agent("web-1").start()?;
        let user = cluster.user("alice", &[&agent.login])?;
        let sshd = Sshd::start(&lab, &agent.login, &Place::here().with_logins(&lab))?;
        let openssh_config = sshd.write_ssh_config(CIPHER)?;
        let world = World {
            lab,
            cluster,
            agent,
            user,
            sshd,
            openssh_config,
        };
        for way in [Way::Postern, Way::Direct, Way::Jump] {
            let ran = Run::new(world.client(way, "ssh", &["true"])?).run()?;
            ensure!(
                ran.status.success(),
                "{way:?} does not work: {}",
                ran.told()
            );
        }
        Ok(world)
    }

    /// `ssh` or `scp` with its options; for `ssh` the host and then `rest`, for `scp` only options.
    pub fn client(&self, way: Way, program: &str, rest: &[&str]) -> Result<Command> {
        let mut c = Command::new(program);
        let config = if way == Way::Postern {
            self.user.ssh_config()
        } else {
            self.openssh_config.clone()
        };
        c.arg("-F")
            .arg(config)
            .args(["-o", "BatchMode=yes", "-c", CIPHER])
            .env("POSTERN_HOME", &self.user.home);
        if program == "ssh" {
            c.arg(self.host(way));
        }
        c.args(rest);
        Ok(c)
    }

    pub fn host(&self, way: Way) -> String {
        match way {
            Way::Postern => format!("{}@{}", self.agent.login, self.agent.host()),
            Way::Direct => "direct".into(),
            Way::Jump => "jump".into(),
        }
    }

    fn servers(&self, way: Way) -> Result<Vec<u32>> {
        Ok(match way {
            Way::Postern => vec![self.cluster.auth.pid()?, self.agent.pid()?],
            _ => vec![self.sshd.pid()],
        })
    }

    /// Runs the client to its end: seconds, and CPU seconds of it and of all servers on the way.
    pub fn time(&self, way: Way, mut client: Command, settle: bool) -> Result<(f64, f64)> {
        let servers = self.servers(way)?;
        let cpu = || servers.iter().map(|p| procfs::cpu_tree(*p)).sum::<f64>() + children_cpu();
        let before = cpu();
        let started = Instant::now();
        let status = client.stderr(Stdio::piped()).status().context("client")?;
        let took = started.elapsed().as_secs_f64();
        ensure!(status.success(), "{way:?}: {client:?}: {status}");
        if settle {
            self.settle(way)?;
        }
        Ok((took, cpu() - before))
    }

    /// Waits until the servers' processes for the session have ended, so that their CPU time counts.
    fn settle(&self, way: Way) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(3);
        while Instant::now() < deadline {
            let alone = self
                .servers(way)?
                .iter()
                .all(|p| procfs::tree(*p).len() == 1);
            if alone {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// A file of that many megabytes which the session's login may read.
    pub fn file(&self, mb: u64) -> Result<PathBuf> {
        let path = self.lab.join(&format!("bulk-{mb}.bin"));
        if !path.exists() {
            use std::io::Read;
            let mut from = std::fs::File::open("/dev/urandom")?.take(mb * 1_000_000);
            std::io::copy(&mut from, &mut std::fs::File::create(&path)?)?;
        }
        Ok(path)
    }
}

/// CPU seconds of our children that have ended, and of theirs (ProxyCommand, the jump's client).
pub fn children_cpu() -> f64 {
    getrusage(UsageWho::RUSAGE_CHILDREN)
        .map(|u| {
            (u.user_time().num_microseconds() + u.system_time().num_microseconds()) as f64 / 1e6
        })
        .unwrap_or(0.0)
}
