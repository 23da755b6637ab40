//! What authors of plugins are promised: `posternd plugin check` and `run`, and two plugins from outside of this project (in
//! Rust, in Python) that a configuration edit brings into service.

use anyhow::{Context, Result, ensure};
use postern_tests::{
    Agent, Cluster, Lab, Place, Run, User, bin, example_plugin, plugin, skip_unless,
    testing_plugin, wait,
};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

const NO_PYTHON: &str = "the example in Python is not built (needs Python with pip, and PyPI)";
/// What the example in Python needs: an interpreter.
const PYTHON_LIMITS: &str = "limits = { memory_mb = 128 }";

/// A finger server: one line in, something about that user out.
fn finger_server() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || -> std::io::Result<()> {
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line)?;
                write!(&stream, "Login: {}\r\nPlan: none\r\n", line.trim_end())
            });
        }
    });
    Ok(port)
}

struct World {
    cluster: Cluster,
    agent: Agent,
    config: String,
    alice: User,
}

/// An agent that serves something else so far, and alice, who may ask about herself.
fn world() -> Result<World> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let token = cluster.token("tcp,finger")?;
    let spec = cluster.agent("web-1").no_ssh().token(&token).service(
        "tcp",
        "[services.other]\nplugin = \"tcp\"\n[[services.other.resources]]\nname = \"other\"\naddress = \"127.0.0.1:9\"\n",
    );
    let config = spec.config()?;
    let agent = spec.start()?;
    cluster.role(&serde_json::json!({"name": "self", "allow": {"finger": {"labels": {"*": ["*"]}, "users": ["alice"]}}}))?;
    let alice = cluster.user_with("alice", &["self"], &[])?;
    Ok(World {
        cluster,
        agent,
        config,
        alice,
    })
}

impl World {
    /// Adds a service to the agent's configuration, and waits until it is up.
    fn serve(&mut self, service: &str, plugin: &Path, limits: &str) -> Result<()> {
        let upstream = finger_server()?;
        self.config += &format!(
            "[services.{service}]\nplugin = {:?}\n{limits}\n[[services.{service}.resources]]\nname = \"{service}\"\naddress = \"127.0.0.1:{upstream}\"\n",
            plugin.display().to_string()
        );
        self.agent.write_config(&self.config)?;
        // An interpreter takes ten seconds to compile, at low priority beside other tests.
        self.agent
            .service_state(service, "up", 4 * wait::LONG)
            .map(drop)
    }

    /// What alice is told about somebody.
    fn finger(&self, service: &str, query: &str) -> Result<String> {
        let ran = self
            .alice
            .postern()?
            .args(["proxy", "--stdio", &format!("{service}.finger")])
            .stdin(query)
            .run()?;
        Ok(ran.out().replace('\r', ""))
    }

    fn serves_by_role(&self, service: &str) -> Result<()> {
        let said = wait::until("the proxy to know the resource", wait::LONG, || {
            let said = self.finger(service, "/W  alice\r\n")?;
            Ok((!said.is_empty()).then_some(said))
        })?;
        ensure!(said == "Login: /W alice\nPlan: none", "{service}: {said}");
        let said = self.finger(service, "bob\r\n")?;
        ensure!(
            said == format!("no role of alice (self) allows user \"bob\" on finger \"{service}\""),
            "{service}: {said}"
        );
        let said = self.finger(service, "alice@elsewhere\r\n")?;
        ensure!(
            said == "queries are not forwarded to other hosts",
            "{service}: {said}"
        );
        self.cluster.audited("session.start", |e| {
            e["user"] == "alice" && e["resource"] == service
        })?;
        self.cluster.audited("session.rejected", |e| {
            e["resource"] == service && e.to_string().contains("bob")
        })?;
        Ok(())
    }
}

#[test]
fn a_plugin_of_ones_own_is_served_after_a_configuration_edit() -> Result<()> {
    let plugin = example_plugin("finger")?.context("finger.wasm")?;
    let mut world = world()?;
    world.serve("people", &plugin, "")?;
    world.serves_by_role("people")
}

#[test]
fn a_plugin_in_python_is_served_after_a_configuration_edit() -> Result<()> {
    let built = example_plugin("finger-python")?;
    skip_unless!(built.is_some(), NO_PYTHON);
    let mut world = world()?;
    world.serve("snakes", &built.context(NO_PYTHON)?, PYTHON_LIMITS)?;
    world.serves_by_role("snakes")
}

fn posternd(args: &[&str]) -> Result<Run> {
    let run = Run::new(Place::here().command(&bin("posternd")?));
    // Not into the home of whoever runs the tests.
    let cache = std::env::temp_dir().join("postern-tests-cache");
    Ok(run.env("XDG_CACHE_HOME", cache).arg("plugin").args(args))
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples")
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("no UTF-8")
}

#[test]
fn one_script_is_passed_in_both_languages() -> Result<()> {
    let script = examples().join("plugin-rust/session.toml");
    let rust = example_plugin("finger")?.context("finger.wasm")?;
    let out = posternd(&["run", text(&rust)?, "--script", text(&script)?])?.ok()?;
    for line in [
        "session \"somebody whom a role allows\"",
        "      authorize users=\"alice\"",
        "  the upstream got \"alice\\r\\n\"",
        "session.toml: 5 sessions played, 12 expectations met",
    ] {
        ensure!(
            out.contains(line.trim_start()),
            "no {line:?} in what it printed:\n{out}"
        );
    }
    let python = example_plugin("finger-python")?;
    skip_unless!(python.is_some(), NO_PYTHON);
    let python = python.context(NO_PYTHON)?;
    let script = text(&script)?;
    let args = [
        "run",
        text(&python)?,
        "--memory-mb",
        "128",
        "--script",
        script,
        "--json",
    ];
    let report: serde_json::Value = serde_json::from_str(&posternd(&args)?.ok()?)?;
    ensure!(report["checked"] == 12, "{report}");
    ensure!(
        report["sessions"][0]["events"][2]["calls"][0]["steps"][0] == "skip 7",
        "{report}"
    );
    Ok(())
}

/// The whole text: what an author sees first.
#[test]
fn check_says_what_a_plugin_is() -> Result<()> {
    let file = example_plugin("finger")?.context("finger.wasm")?;
    let file = text(&file)?;
    let json = posternd(&["check", file, "--json"])?.ok()?;
    let json: serde_json::Value = serde_json::from_str(&json)?;
    let sha = json["sha256"].as_str().context("sha256")?;
    ensure!(json["wants"]["endpoints"][0] == "main", "{json}");
    ensure!(
        json["settings_schema"]["properties"]["list"]["type"] == "boolean",
        "{json}"
    );
    let out = posternd(&["check", file])?.ok()?;
    let real = std::fs::canonicalize(file)?;
    let said = out
        .replace(sha, "SHA256")
        .replace(&format!("\"{}\"", real.display()), "\"FILE\"")
        .replace(file, "FILE");
    let expected = "\
FILE: a plugin of world codec that this posternd can run

  kind        finger
  protocol    Finger (RFC 1288)
  version     0.1.0
  summary     asks a finger server about a user
  sha256      SHA256
  principals  users: whom the query is about
  wants       endpoint main
  settings    list (boolean, default false): Whether an empty line, which asks who is there, is passed on
              longest (integer, default 512): Bytes of a query at most, 16 to 4096

To serve it, in an agent's configuration:

  [services.finger]
  plugin = \"FILE\"
  sha256 = \"SHA256\"";
    ensure!(said == expected, "{said}");
    Ok(())
}

/// The whole texts of what is refused, `FILE` and `SETTINGS` put for the paths.
#[test]
fn what_is_refused_says_what_to_change() -> Result<()> {
    let lab = Lab::new()?;
    let finger = example_plugin("finger")?.context("finger.wasm")?;
    let ssh = plugin("ssh")?;
    let module = lab.file("module.wasm", b"\0asm\x01\0\0\0")?;
    let wrong = lab.file("wrong.toml", "longest = 3\n")?;
    let unknown = lab.file("unknown.json", r#"{"lists": true}"#)?;
    let script = |name: &str, text: &str| lab.file(name, text);
    let differs = script(
        "differs.toml",
        "[[session]]\nname = \"s\"\nevents = [{ client = \"al\\n\", expect = [\"skip 3\", 'authorize users=\"bob\"'] }]",
    )?;
    let early = script(
        "early.toml",
        "[[session]]\nevents = [{ client = \"al\\n\" }, { upstream = \"x\" }]",
    )?;
    let over = script(
        "over.toml",
        "[[session]]\nevents = [{ client = \"a@b\\n\" }, { client = \"al\\n\" }]",
    )?;
    let unasked = script(
        "unasked.toml",
        "[[session]]\nevents = [{ connect = \"ok\" }]",
    )?;
    let shell = script("shell.toml", "[[session]]\nevents = [{ shell = true }]")?;
    let bytes = script("bytes.toml", "[[session]]\nevents = [{ client = \"x\" }]")?;
    let hollow = testing_plugin("hollow")?;
    let gone = lab.join("gone.wasm");
    let run = |plugin: &Path, script: &Path| -> Result<String> {
        let ran = posternd(&["run", text(plugin)?, "--script", text(script)?])?.run()?;
        ensure!(ran.code() == Some(1), "{}", ran.told());
        Ok(ran.err().replace(text(script)?, "SCRIPT"))
    };
    let check = |plugin: &Path, more: &[&str]| -> Result<String> {
        let ran = posternd(&[&["check", text(plugin)?], more].concat())?.run()?;
        ensure!(ran.code() == Some(1), "{}", ran.told());
        Ok(ran.err().replace(text(plugin)?, "FILE"))
    };
    let cases = [
        (
            check(&gone, &[])?,
            "posternd: plugin \"gone\": cannot read FILE: there is no such file; `plugin` names a built-in plugin or the path of a .wasm",
        ),
        (
            check(&module, &[])?,
            "posternd: plugin \"module\": FILE is not a WebAssembly component: it is a core module; build it with --target wasm32-wasip2 (not wasip1 or unknown-unknown)",
        ),
        (
            check(&hollow, &[])?,
            "posternd: plugin \"hollow\": FILE lacks the export postern:plugin/codec-service or ssh-service@0.1.0: it says who it is, but serves nothing; build it for world `codec` or `ssh`",
        ),
        (
            check(&finger, &["--settings", text(&wrong)?])?,
            "posternd: plugin \"finger\" 0.1.0: settings: longest: must be 16 to 4096 bytes",
        ),
        (
            check(&finger, &["--settings", text(&unknown)?])?,
            "posternd: plugin \"finger\" 0.1.0: settings: lists: unknown field `lists`, expected `list` or `longest`",
        ),
        (
            run(&finger, &differs)?,
            "posternd: SCRIPT: session \"s\", event 1 (client \"al\\n\"): the plugin answered something else than expected (- expected, + answered)\n    skip 3\n  - authorize users=\"bob\"\n  + authorize users=\"al\"",
        ),
        (
            run(&finger, &early)?,
            "posternd: SCRIPT: session \"1\", event 2 (upstream \"x\"): there is no upstream yet: the plugin has to ask `connect`, and the script to answer connect = \"ok\"; it waits for the answer to: authorize users=\"al\" (an event with the key authorize)",
        ),
        (
            run(&finger, &over)?,
            "posternd: SCRIPT: session \"1\", event 2 (client \"al\\n\"): the plugin has closed the connection, nothing happens after that; begin another [[session]]",
        ),
        (
            run(&finger, &unasked)?,
            "posternd: SCRIPT: session \"1\", event 1 (connect: ok): the plugin did not ask `connect`; no question is open, it waits for bytes",
        ),
        (
            run(&finger, &shell)?,
            "posternd: SCRIPT: session \"1\", event 1 (shell): that happens in world ssh, but the plugin is of world codec, where events are: open, client, client_hex, upstream, upstream_hex, close, authorize, connect, start_tls, answer, send_secret, offer_cancel, find_cancel",
        ),
        (
            run(&ssh, &bytes)?,
            "posternd: SCRIPT: session \"1\", event 1 (client \"x\"): that happens in world codec, but the plugin is of world ssh, where events are: open, shell, exec, pty, env, subsystem, forward",
        ),
    ];
    for (said, expected) in cases {
        ensure!(said == expected, "\nsaid:     {said}\nexpected: {expected}");
    }
    Ok(())
}
