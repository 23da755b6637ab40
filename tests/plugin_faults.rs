//! Plugins that trap, loop, eat memory or are none at all: one connection ends, with a reason; nothing else notices.

use anyhow::{Context, Result, ensure};
use postern_tests::{
    Agent, Cluster, Lab, User, free_port, plugin, procfs, run, testing_plugin, wait,
};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// An agent whose ssh service is decided by `misbehave-ssh`, and a session that must survive.
struct World {
    cluster: Cluster,
    agent: Agent,
    alice: User,
    witness: run::Background,
}

fn world() -> Result<World> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let path = testing_plugin("misbehave-ssh")?.display().to_string();
    let agent = cluster
        .agent("web-1")
        .plugin(&path)
        .ssh_lines("kind = \"ssh\"\nlimits = { memory_mb = 16, cpu_ms_per_call = 200 }");
    let agent = agent.start()?;
    let alice = cluster.user("alice", &[&agent.login])?;
    let witness = alice.ssh(&agent).arg("cat").background(Stdio::piped())?;
    Ok(World {
        cluster,
        agent,
        alice,
        witness,
    })
}

impl World {
    fn untouched(&mut self) -> Result<()> {
        let child = self.witness.child();
        child.stdin.as_mut().context("stdin")?.write_all(b"ping")?;
        let mut back = [0u8; 4];
        child
            .stdout
            .as_mut()
            .context("stdout")?
            .read_exact(&mut back)?;
        ensure!(&back == b"ping");
        self.alice.ssh(&self.agent).arg("echo fine").ok()?;
        Ok(())
    }
}

#[test]
fn an_ssh_plugin_that_traps_loops_or_eats_memory_ends_that_session_alone() -> Result<()> {
    let mut w = world()?;
    let memory = procfs::rss(w.agent.pid()?)?;
    for (command, limit) in [
        ("trap", "unreachable"),
        ("loop", "cpu"),
        ("memory", "memory"),
    ] {
        let started = Instant::now();
        let ran = w.alice.ssh(&w.agent).arg(command).run()?;
        ensure!(ran.code() != Some(0), "{command}: {}", ran.told());
        ensure!(
            started.elapsed() < Duration::from_secs(10),
            "{command} took {:?}",
            started.elapsed()
        );
        let event = w.cluster.audited("plugin.trap", |e| {
            e.to_string().to_lowercase().contains(limit)
        })?;
        ensure!(
            event.to_string().contains("misbehave"),
            "{command}: the event should name the plugin: {event}"
        );
        w.untouched()?;
    }
    ensure!(w.agent.metric("postern_plugin_traps_total")? >= 3.0);
    let log = w.agent.log();
    ensure!(
        log.contains("misbehave-ssh"),
        "the log should name the plugin"
    );
    let after = procfs::rss(w.agent.pid()?)?;
    ensure!(
        after < memory + (64 << 20),
        "the agent grew from {memory} to {after}"
    );
    Ok(())
}

#[test]
fn a_plugin_may_narrow_what_a_role_allows() -> Result<()> {
    let mut w = world()?;
    let ran = w.alice.ssh(&w.agent).arg("deny").run()?;
    ensure!(ran.code() != Some(0), "{}", ran.told());
    ensure!(
        format!("{}{}", ran.out(), ran.err()).contains("denied on channel"),
        "the person should see why: {}",
        ran.told()
    );
    w.untouched()
}

#[test]
fn many_traps_in_a_row_leak_nothing() -> Result<()> {
    let mut w = world()?;
    w.alice.ssh(&w.agent).arg("trap").run()?;
    let before = procfs::open_files(w.agent.pid()?);
    for _ in 0..20 {
        w.alice.ssh(&w.agent).arg("trap").run()?;
    }
    let pid = w.agent.pid()?;
    wait::holds("descriptors to be closed", wait::LONG, || {
        procfs::open_files(pid) <= before + 4
    })?;
    wait::holds("instances to be gone", wait::LONG, || {
        w.agent
            .metric("postern_plugin_instances_live")
            .is_ok_and(|n| n <= 3.0)
    })?;
    w.untouched()
}

#[test]
fn files_that_are_no_plugin_are_refused_with_the_reason() -> Result<()> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let text = lab.file("text.wasm", "this is no component\n")?;
    let mut torn = std::fs::read(plugin("ssh")?)?;
    torn.truncate(torn.len() / 2);
    let torn = lab.file("torn.wasm", torn)?;
    // An empty core module: valid WebAssembly, no component.
    let module = lab.file("module.wasm", b"\0asm\x01\0\0\0")?;
    let writable = lab.file("writable.wasm", std::fs::read(plugin("ssh")?)?)?;
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&writable, std::fs::Permissions::from_mode(0o666))?;
    let cases = [
        ("text", text, "component"),
        ("torn", torn, "component"),
        ("module", module, "component"),
        ("empty", testing_plugin("empty")?, "export"),
        ("hollow", testing_plugin("hollow")?, "export"),
        ("gone", lab.join("no-such-file.wasm"), "no-such-file.wasm"),
        ("writable", writable, "writ"),
    ];
    for (name, path, why) in cases {
        let agent = cluster
            .agent(&format!("web-{name}"))
            .plugin(&path.display().to_string());
        let agent = agent.ssh_lines("kind = \"ssh\"").launch()?;
        let reason = agent
            .service_state("ssh", "plugin-failed", wait::LONG)
            .with_context(|| name.to_string())?;
        ensure!(
            reason.to_lowercase().contains(why),
            "{name}: no {why:?} in: {reason}"
        );
        ensure!(
            reason.contains(
                &path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned()
            ),
            "{name}: {reason}"
        );
    }
    // A pin that the file does not have.
    let pinned = cluster
        .agent("web-pin")
        .ssh_lines(&format!("sha256 = \"{}\"", "0".repeat(64)))
        .launch()?;
    let reason = pinned.service_state("ssh", "plugin-failed", wait::LONG)?;
    ensure!(reason.contains("sha256"), "{reason}");
    Ok(())
}

#[test]
fn a_codec_that_misbehaves_ends_its_connection_alone() -> Result<()> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let upstream = echo_server()?;
    let path = testing_plugin("misbehave")?.display().to_string();
    let modes = [
        "trap",
        "loop",
        "memory",
        "stack",
        "pass-too-much",
        "steps-too-many",
        "huge-answer",
        "unannounced-endpoint",
        "pass",
    ];
    let mut spec = cluster.agent("web-1").no_ssh();
    for mode in modes {
        spec = spec.service(
            "tcp",
            &format!(
                "[services.{mode}]\nplugin = \"{path}\"\nkind = \"tcp\"\nsettings = {{ mode = \"{mode}\" }}\nlimits = {{ memory_mb = 16, cpu_ms_per_call = 200 }}\n[[services.{mode}.resources]]\nname = \"{mode}\"\naddress = \"127.0.0.1:{upstream}\""
            ),
        );
    }
    let agent = spec.start()?;
    cluster.role(&serde_json::json!({"name": "anything", "allow": {"tcp": {"labels": {"*": ["*"]}, "things": ["*"]}}}))?;
    let alice = cluster.user_with("alice", &["anything"], &[])?;
    // The well-behaved one, open all the time.
    let (_keep, steady) = connect(&alice, "pass")?;
    exchange(&steady, b"before")?;
    for mode in modes.iter().filter(|m| **m != "pass") {
        let (_helper, stream) = connect(&alice, mode)?;
        (&stream).write_all(b"hello")?;
        stream.set_read_timeout(Some(Duration::from_secs(15)))?;
        let mut rest = Vec::new();
        let ended = (&stream).read_to_end(&mut rest);
        let open = matches!(&ended, Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut));
        ensure!(!open, "{mode}: the connection should have ended");
        exchange(&steady, b"still here").with_context(|| format!("after {mode}"))?;
    }
    ensure!(agent.metric("postern_plugin_traps_total")? >= 3.0);
    Ok(())
}

/// A resource through `postern proxy`, and a connection to it.
fn connect(user: &User, name: &str) -> Result<(run::Background, TcpStream)> {
    let port = free_port()?;
    let helper = user
        .postern()?
        .args(["proxy", &format!("{name}.tcp"), "--port", &port.to_string()])
        .background(Stdio::null())?;
    let stream = wait::until("postern proxy to listen", wait::LONG, || {
        Ok(TcpStream::connect(("127.0.0.1", port)).ok())
    })?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok((helper, stream))
}

fn exchange(mut stream: &TcpStream, bytes: &[u8]) -> Result<()> {
    stream.write_all(bytes)?;
    let mut back = vec![0u8; bytes.len()];
    stream.read_exact(&mut back)?;
    ensure!(back == bytes);
    Ok(())
}

fn echo_server() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || std::io::copy(&mut stream.try_clone()?, &mut &stream));
        }
    });
    Ok(port)
}
