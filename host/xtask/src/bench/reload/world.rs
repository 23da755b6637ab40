//! What is edited: an agent with SSH and one `tcp` service, and those who use it.

use anyhow::{Context, Result, bail};
use postern_tests::run::Background;
use postern_tests::{Agent, Cluster, Lab, Run, User, bin, plugin};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::SystemTime;

/// SSH sessions that are open all the time.
pub const SESSIONS: usize = 10;
/// The service that is there from the start.
pub const FIRST: &str = "first";

pub struct World {
    pub lab: Arc<Lab>,
    pub cluster: Cluster,
    pub agent: Agent,
    pub user: User,
    /// Of the agent, without what is added.
    pub config: String,
    /// The server behind all resources.
    pub upstream: u16,
}

impl World {
    pub fn start() -> Result<World> {
        let lab = Lab::quiet()?;
        let cluster = Cluster::start(&lab)?;
        let upstream = greeter()?;
        std::fs::copy(plugin("tcp")?, lab.join("first.wasm"))?;
        let path = lab.join("first.wasm").display().to_string();
        let token = token(&cluster)?;
        let spec = cluster.agent("web-1").token(&token);
        let spec = spec.agent_lines("forget_after = \"0s\"");
        let spec = spec.service("tcp", &service(FIRST, &path, upstream));
        let config = spec.config()?;
        let agent = spec.start()?;
        let user = cluster.user("alice", &[&agent.login])?;
        Ok(World {
            lab,
            cluster,
            agent,
            user,
            config,
            upstream,
        })
    }

    /// The plugin file of the first service.
    pub fn plugin_file(&self) -> PathBuf {
        self.lab.join("first.wasm")
    }

    /// The configuration with these services besides.
    pub fn with(&self, names: &[String]) -> String {
        let more = names.iter().map(|n| service(n, "tcp", self.upstream));
        self.config.clone() + &more.collect::<String>()
    }

    /// The load generator.
    pub fn probe(&self, args: &[&str]) -> Result<Command> {
        let mut c = Command::new(bin("examples/reload_probe")?);
        c.arg(&self.user.home).args(args);
        Ok(c)
    }

    /// Does it, and tries these resources until all were reached: the seconds from the beginning.
    pub fn until(
        &mut self,
        names: &[String],
        act: impl FnOnce(&mut World) -> Result<()>,
    ) -> Result<f64> {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let probe = self.probe(&[&["until"], names.as_slice()].concat())?;
        let mut probe = Run::new(probe).background(Stdio::piped())?;
        let mut lines = BufReader::new(probe.child().stdout.take().context("stdout")?).lines();
        lines.next().context("the probe is not ready")??;
        let began = now();
        act(self)?;
        writeln!(probe.child().stdin.as_mut().context("stdin")?)?;
        let told: Value = serde_json::from_str(&lines.next().context("never reached")??)?;
        Ok(told["at"].as_f64().context("at")? - began)
    }
}

/// Covers every name: another host takes over what the first one had.
pub fn token(cluster: &Cluster) -> Result<String> {
    cluster.token_with(&["--kinds", "ssh,tcp", "--names", "*"])
}

fn service(name: &str, plugin: &str, port: u16) -> String {
    format!(
        "[services.{name}]\nplugin = {plugin:?}\n[[services.{name}.resources]]\nname = {name:?}\naddress = \"127.0.0.1:{port}\"\nlabels = {{ env = \"test\" }}\n"
    )
}

/// Seconds since 1970.
pub fn now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

/// Says hello to everybody, and waits for them to go.
fn greeter() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = stream.write_all(b"hello");
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            });
        }
    });
    Ok(port)
}

/// Real `ssh` clients that are connected.
pub struct Sessions(Vec<Background>);

impl Sessions {
    pub fn open(world: &World) -> Result<Sessions> {
        let one = |_| {
            world
                .user
                .ssh(&world.agent)
                .arg("cat")
                .background(Stdio::piped())
        };
        let mut sessions = Sessions((0..SESSIONS).map(one).collect::<Result<_>>()?);
        match sessions.lost() {
            0.0 => Ok(sessions),
            lost => bail!("{lost} of {SESSIONS} sessions did not open"),
        }
    }

    /// How many no longer answer.
    pub fn lost(&mut self) -> f64 {
        let echoes = |session: &mut Background| -> Result<()> {
            let child = session.child();
            child.stdin.as_mut().context("stdin")?.write_all(b"ping")?;
            let out = child.stdout.as_mut().context("stdout")?;
            Ok(out.read_exact(&mut [0u8; 4])?)
        };
        let lost = self.0.iter_mut().filter_map(|s| echoes(s).err()).count();
        lost as f64
    }
}
