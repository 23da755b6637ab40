//! An edit of the configuration file, while the agent runs on: what each does, what is refused, and that nothing else
//! notices.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use postern_tests::{Agent, Cluster, Lab, Run, User, bin, plugin, run, testing_plugin, wait};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// From the save to the first byte served.
const AT_ONCE: Duration = Duration::from_secs(10);

/// An agent with an SSH service and a session on it that must survive everything, and a TCP server to serve.
struct World {
    cluster: Cluster,
    agent: Agent,
    alice: User,
    config: String,
    upstream: u16,
    witness: run::Background,
    pid: u32,
}

fn world() -> Result<World> {
    world_with("", "")
}

fn world_with(agent_lines: &str, services: &str) -> Result<World> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let upstream = hello_server()?;
    let services = services.replace("{upstream}", &upstream.to_string());
    let spec = cluster
        .agent("web-1")
        .agent_lines(agent_lines)
        .service("tcp", &services);
    let config = spec.config()?;
    let token = config
        .split("token = \"")
        .nth(1)
        .and_then(|t| t.split('"').next())
        .context("token")?
        .to_owned();
    let agent = spec.token(&token).start()?;
    let alice = cluster.user("alice", &[&agent.login])?;
    let witness = alice.ssh(&agent).arg("cat").background(Stdio::piped())?;
    let pid = agent.pid()?;
    let mut w = World {
        cluster,
        agent,
        alice,
        config,
        upstream,
        witness,
        pid,
    };
    w.untouched()?;
    Ok(w)
}

/// Says hello to everybody.
fn hello_server() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"hello");
        }
    });
    Ok(port)
}

impl World {
    fn save(&self, config: &str) -> Result<()> {
        self.agent.write_config(config)
    }

    /// The first configuration, with something after it.
    fn save_with(&self, more: &str) -> Result<()> {
        self.save(&format!("{}{more}", self.config))
    }

    fn tcp(&self, name: &str, lines: &str) -> String {
        format!(
            "[services.{name}]\nplugin = \"tcp\"\n{lines}\n[[services.{name}.resources]]\nname = \"{name}\"\naddress = \"127.0.0.1:{}\"\nlabels = {{ env = \"test\" }}\n",
            self.upstream
        )
    }

    /// What comes through the resource.
    fn fetch(&self, name: &str) -> Result<String> {
        let ran = self.alice.postern()?.args(["proxy", "--stdio"]);
        Ok(ran.arg(format!("{name}.tcp")).stdin("").run()?.out())
    }

    fn reachable(&self, name: &str) -> Result<()> {
        wait::holds(&format!("{name} to be reachable"), AT_ONCE, || {
            self.fetch(name).is_ok_and(|out| out == "hello")
        })
        .with_context(|| self.agent.log_tail(20))
    }

    fn unreachable(&self, name: &str) -> Result<()> {
        wait::holds(&format!("{name} to be gone"), wait::LONG, || {
            self.fetch(name).is_ok_and(|out| out.is_empty())
        })
        .with_context(|| self.agent.log_tail(20))
    }

    /// The session of the beginning goes on, in the process of the beginning.
    fn untouched(&mut self) -> Result<()> {
        let child = self.witness.child();
        child.stdin.as_mut().context("stdin")?.write_all(b"ping")?;
        let mut back = [0u8; 4];
        let out = child.stdout.as_mut().context("stdout")?;
        out.read_exact(&mut back)
            .context("the session that ran through it all has ended")?;
        ensure!(&back == b"ping" && self.agent.pid()? == self.pid);
        Ok(())
    }

    fn posternd(&self, args: &[&str]) -> Result<Run> {
        Ok(Run::new(self.agent.place().command(&bin("posternd")?)).args(args))
    }
}

/// Renamed over, as `cp` does not.
fn put(from: &Path, to: &Path) -> Result<()> {
    let new = to.with_extension("new");
    std::fs::copy(from, &new)?;
    Ok(std::fs::rename(&new, to)?)
}

#[test]
fn a_service_is_added_changed_and_removed() -> Result<()> {
    let mut w = world_with("drain_timeout = \"1m\"\nforget_after = \"1s\"\n", "")?;
    let saved = Instant::now();
    w.save_with(&w.tcp("orders", ""))?;
    w.reachable("orders")?;
    println!("reachable {:?} after the save", saved.elapsed());
    w.agent
        .wait_log("configuration: + service orders", wait::LONG)?;
    w.cluster.audited("agent.config", |e| {
        e["change"] == "+ service orders" && e["service"] == "orders"
    })?;
    w.untouched()?;
    // A second resource of a service that has joined already.
    let two = w.tcp("orders", "").replace(
        "labels",
        "labels = { env = \"test\" }\n[[services.orders.resources]]\nname = \"more\"\naddress = \"127.0.0.1:{port}\"\nlabels",
    );
    w.save_with(&two.replace("{port}", &w.upstream.to_string()))?;
    w.reachable("more")?;
    w.reachable("orders")?;
    w.agent
        .wait_log("configuration: ~ service orders: resources", wait::LONG)?;
    // Labels: what the roles see.
    w.cluster.role(&serde_json::json!({"name": "access", "allow": {"tcp": {"labels": {"env": ["prod"]}}, "ssh": {"labels": {"*": ["*"]}, "logins": ["{{internal.logins}}"]}}}))?;
    w.unreachable("orders")?;
    w.save_with(&w.tcp("orders", "").replace("\"test\"", "\"prod\""))?;
    w.reachable("orders")?;
    w.unreachable("more")?;
    // Removed: counts after five seconds, and leaves nothing.
    let dir = w.agent.data_dir().join("services/orders");
    ensure!(dir.exists());
    w.save(&w.config)?;
    w.unreachable("orders")?;
    w.agent
        .wait_log("configuration: - service orders", wait::LONG)?;
    w.cluster
        .audited("agent.leave", |e| e["service"] == "orders")?;
    wait::holds("its keys to be deleted", wait::LONG, || !dir.exists())?;
    let left = w.cluster.admin(&["agents", "ls"])?;
    ensure!(!left.to_string().contains("orders"), "{left}");
    w.untouched()?;
    // And added anew, within the host's grant.
    w.save_with(&w.tcp("orders", "").replace("\"test\"", "\"prod\""))?;
    w.reachable("orders")?;
    w.untouched()
}

#[test]
fn what_vanishes_for_a_moment_stays() -> Result<()> {
    let mut w = world_with(
        "",
        "[services.orders]\nplugin = \"tcp\"\n[[services.orders.resources]]\nname = \"orders\"\naddress = \"127.0.0.1:{upstream}\"\n",
    )?;
    w.reachable("orders")?;
    let (path, aside) = (w.agent.config_path(), w.agent.dir().join("aside"));
    let half = w.config.split("[services.orders]").next().context("half")?;
    w.save(half)?;
    wait::stays("orders", Duration::from_secs(2), || {
        w.fetch("orders").is_ok_and(|out| out == "hello")
    })?;
    w.save(&w.config)?;
    std::fs::rename(&path, &aside)?;
    wait::stays("orders", Duration::from_secs(2), || {
        w.fetch("orders").is_ok_and(|out| out == "hello")
    })?;
    std::fs::rename(&aside, &path)?;
    wait::stays("orders", Duration::from_secs(4), || {
        w.fetch("orders").is_ok_and(|out| out == "hello")
    })?;
    ensure!(!w.agent.log().contains("- service"), "{}", w.agent.log());
    w.untouched()
}

#[test]
fn a_service_that_is_put_back_in_time_is_as_it_was() -> Result<()> {
    let mut w = world()?;
    let before = w.agent.service("ssh")?;
    // Disabled counts at once, and its open session goes on.
    w.save(
        &w.config
            .replace("[services.ssh]\n", "[services.ssh]\nenabled = false\n"),
    )?;
    w.agent.service_state("ssh", "draining", wait::LONG)?;
    ensure!(!w.alice.ssh(&w.agent).arg("true").run()?.status.success());
    w.untouched()?;
    let shown = w
        .posternd(&["status", "-c"])?
        .arg(w.agent.config_path())
        .ok()?;
    ensure!(
        shown.contains("takes no new sessions; the open ones are ended at"),
        "{shown}"
    );
    let (ready, _) = w.agent.get("/readyz")?;
    ensure!(ready == 200);
    w.save(&w.config)?;
    w.agent.service_state("ssh", "up", wait::LONG)?;
    ensure!(w.alice.ssh(&w.agent).arg("echo back").ok()? == "back");
    let after = w.agent.service("ssh")?;
    ensure!(
        after["generation"] == before["generation"],
        "{before} {after}"
    );
    w.untouched()
}

#[test]
fn an_invalid_file_changes_nothing() -> Result<()> {
    let mut w = world()?;
    let cases = [
        ("[services.orders\n", "postern.toml:", "TOML"),
        ("[services.orders]\nplugn = \"tcp\"\n", "plugn", "plugin"),
        (
            "[services.orders]\nplugin = \"nosuch\"\n[[services.orders.resources]]\nname = \"orders\"\n",
            "no plugin \"nosuch\"",
            "agent.plugin_dir",
        ),
        (
            "[services.orders]\nplugin = \"tcp\"\nsettings = { colour = \"red\" }\n[[services.orders.resources]]\nname = \"orders\"\naddress = \"127.0.0.1:1\"\n",
            "service \"orders\"",
            "colour",
        ),
        (
            "[services.orders]\nplugin = \"tcp\"\nsha256 = \"0000000000000000000000000000000000000000000000000000000000000000\"\n[[services.orders.resources]]\nname = \"orders\"\naddress = \"127.0.0.1:1\"\n",
            "service \"orders\"",
            "sha256",
        ),
    ];
    for (more, what, hint) in cases {
        w.save_with(more)?;
        let said = w
            .posternd(&["reload", "-c"])?
            .arg(w.agent.config_path())
            .args(["--data-dir"])
            .arg(w.agent.data_dir())
            .run()?
            .refused(what)?;
        ensure!(said.contains(hint), "{said}");
        let shown = w
            .posternd(&["status", "--data-dir"])?
            .arg(w.agent.data_dir())
            .ok()?;
        ensure!(
            shown.contains("running the configuration of")
                && shown.contains("the file on disk is invalid")
                && shown.contains(what),
            "{shown}"
        );
        ensure!(w.agent.get("/readyz")?.0 == 200);
        w.untouched()?;
    }
    // What a running process can't change.
    w.save(&w.config.replace(
        "[log]",
        "shutdown_timeout = \"1s\"\n[diag]\nlisten = \"127.0.0.1:1\"\n[log]",
    ))?;
    let told = w
        .posternd(&["reload", "--data-dir"])?
        .arg(w.agent.data_dir())
        .run()?
        .refused("what a running process can't change")?;
    ensure!(told.contains("restart posternd"), "{told}");
    w.save(&w.config)?;
    let told = w
        .posternd(&["reload", "-c"])?
        .arg(w.agent.config_path())
        .ok()?;
    ensure!(told == "nothing has changed", "{told}");
    let shown = w.agent.status()?;
    ensure!(shown["config_state"]["invalid"].is_null(), "{shown}");
    w.untouched()
}

#[test]
fn check_shows_beforehand_what_a_file_would_change() -> Result<()> {
    let mut w = world()?;
    let draft = w.agent.dir().join("draft.toml");
    let orders = w.tcp("orders", "");
    let text = format!("{}{orders}", w.config)
        .replace("{data_dir}", &w.agent.data_dir().display().to_string());
    std::fs::write(&draft, text)?;
    let told = w
        .posternd(&["check", "--against-running"])?
        .arg(&draft)
        .ok()?;
    ensure!(told.contains("  + service orders"), "{told}");
    w.untouched()?;
    ensure!(w.agent.service("orders").is_err());
    // SIGHUP reads the files, too.
    w.save_with(&orders)?;
    w.agent.signal(Signal::SIGHUP)?;
    w.reachable("orders")?;
    w.untouched()
}

#[test]
fn a_new_plugin_version_serves_new_connections_and_a_broken_one_is_taken_back() -> Result<()> {
    let mut w = world()?;
    let file = w.agent.dir().join("my-tcp.wasm");
    put(&plugin("tcp")?, &file)?;
    let lines = format!(
        "[services.orders]\nplugin = {file:?}\nrollback = {{ traps = 2, of = 5 }}\n[[services.orders.resources]]\nname = \"orders\"\naddress = \"127.0.0.1:{}\"\n",
        w.upstream
    );
    w.save_with(&lines)?;
    w.reachable("orders")?;
    put(&testing_plugin("tcp-next")?, &file)?;
    w.agent.wait_log("0.1.0 → 0.1.1 (sha256 ", AT_ONCE)?;
    ensure!(
        w.agent.log().contains("it now also wants: endpoint admin"),
        "{}",
        w.agent.log_tail(5)
    );
    w.reachable("orders")?;
    let now = w.agent.service("orders")?;
    ensure!(
        now["plugin"].as_str().is_some_and(|p| p.ends_with("0.1.1")),
        "{now}"
    );
    // A file that is no plugin at all: the old one goes on.
    std::fs::write(&file, "garbage")?;
    wait::until("the status to say so", AT_ONCE, || {
        let shown = w.agent.status()?;
        let invalid = shown["config_state"]["invalid"].as_str().unwrap_or("");
        Ok(invalid.contains("my-tcp").then_some(()))
    })?;
    w.reachable("orders")?;
    // One that traps: after three connections the old one is back.
    put(&testing_plugin("tcp-broken")?, &file)?;
    w.agent.wait_log("0.1.1 → 0.1.2", AT_ONCE)?;
    for _ in 0..3 {
        ensure!(w.fetch("orders")?.is_empty(), "the broken plugin served?");
    }
    w.reachable("orders")?;
    let event = w
        .cluster
        .audited("agent.plugin_rollback", |e| e["service"] == "orders")?;
    ensure!(
        event["from"] == "0.1.2" && event["to"] == "0.1.1",
        "{event}"
    );
    let shown = w
        .posternd(&["status", "-c"])?
        .arg(w.agent.config_path())
        .ok()?;
    ensure!(shown.contains("0.1.1 is back"), "{shown}");
    ensure!(w.agent.metric("postern_plugin_rollbacks_total")? == 1.0);
    // An edit of something else does not bring the broken one again.
    w.save_with(&lines.replace("address", "labels = { a = \"b\" }\naddress"))?;
    w.agent
        .wait_log("configuration: ~ service orders: labels", AT_ONCE)?;
    w.reachable("orders")?;
    ensure!(w.agent.service("orders")?["rolled_back"].is_object());
    put(&testing_plugin("tcp-next")?, &file)?;
    wait::until("the rollback to be over", AT_ONCE, || {
        Ok(w.agent.service("orders")?["rolled_back"]
            .is_null()
            .then_some(()))
    })?;
    w.reachable("orders")?;
    w.untouched()
}

#[test]
fn another_way_to_the_proxy_is_dialled_before_the_old_one_goes() -> Result<()> {
    let mut w = world()?;
    // Nobody is there: the old tunnel stays.
    let nowhere = format!("127.0.0.1:{}", postern_tests::free_port()?);
    let elsewhere = w.config.replace(&w.cluster.proxy_addr, &nowhere);
    w.save(&elsewhere)?;
    w.agent
        .wait_log("configuration: ~ agent: proxy", wait::LONG)?;
    wait::stays("served", Duration::from_secs(2), || {
        w.alice
            .ssh(&w.agent)
            .arg("true")
            .run()
            .is_ok_and(|r| r.status.success())
    })?;
    w.untouched()?;
    // The same proxy by TLS.
    w.save(
        &w.config
            .replace("[agent]\n", "[agent]\ntransport = \"tls\"\n"),
    )?;
    w.agent
        .wait_log("configuration: ~ agent: proxy, transport", wait::LONG)?;
    wait::stays("served", Duration::from_secs(2), || {
        w.alice
            .ssh(&w.agent)
            .arg("true")
            .run()
            .is_ok_and(|r| r.status.success())
    })?;
    w.untouched()
}

#[test]
fn a_service_outside_the_grant_waits_for_its_token_and_disturbs_nobody() -> Result<()> {
    let mut w = world()?;
    let token_file = w.agent.dir().join("token");
    let ssh_only = w.cluster.token("ssh")?;
    // The token of the host covers ssh and tcp; a second host's covers ssh alone.
    let spec = w.cluster.agent("web-2").token(&ssh_only);
    let config = spec.config()?;
    let mut second = spec.start()?;
    let orders = format!(
        "[services.orders]\nplugin = \"tcp\"\njoin_params = {{ method = \"token\", token_file = {token_file:?} }}\n[[services.orders.resources]]\nname = \"orders\"\naddress = \"127.0.0.1:{}\"\n",
        w.upstream
    );
    second.write_config(&format!("{config}{orders}"))?;
    let why = second.service_state("orders", "join-failed", wait::LONG)?;
    ensure!(why.contains("token"), "{why}");
    ensure!(second.get("/readyz")?.0 == 503);
    second.service_state("ssh", "up", wait::LONG)?;
    let body = second.get("/metrics")?.1;
    ensure!(
        body.contains("postern_agent_services{state=\"join-failed\"} 1"),
        "{body}"
    );
    let id = second.status()?["agent"]["host_id"]
        .as_str()
        .context("host id")?
        .to_owned();
    let seen = w
        .cluster
        .admin(&["agents", "get", &format!("{id}/orders")])?;
    ensure!(
        seen["join_failed"]
            .as_str()
            .is_some_and(|why| why.contains("grant")),
        "{seen}"
    );
    // A token of the wrong kind, then the right one: each is tried at once.
    std::fs::write(&token_file, w.cluster.token("ssh")?)?;
    wait::until("the reason to change", AT_ONCE, || {
        let s = second.service("orders")?;
        let why = s["reason"].as_str().unwrap_or_default().to_owned();
        Ok(why.contains("does not cover kind \"tcp\"").then_some(()))
    })?;
    std::fs::write(&token_file, w.cluster.token("tcp")?)?;
    second.service_state("orders", "up", AT_ONCE)?;
    second.ready()?;
    let seen = w
        .cluster
        .admin(&["agents", "get", &format!("{id}/orders")])?;
    ensure!(seen["join_failed"].is_null(), "{seen}");
    w.untouched()
}

#[test]
fn a_service_removed_while_the_agent_was_down_still_leaves() -> Result<()> {
    let mut w = world_with(
        "forget_after = \"1s\"\n",
        "[services.orders]\nplugin = \"tcp\"\n[[services.orders.resources]]\nname = \"orders\"\naddress = \"127.0.0.1:{upstream}\"\n",
    )?;
    w.reachable("orders")?;
    w.agent.kill9()?;
    let half = w.config.split("[services.orders]").next().context("half")?;
    w.save(half)?;
    w.agent.launch()?;
    w.agent.ready()?;
    w.cluster
        .audited("agent.leave", |e| e["service"] == "orders")?;
    let dir = w.agent.data_dir().join("services/orders");
    wait::holds("its keys to be deleted", wait::LONG, || !dir.exists())
}
