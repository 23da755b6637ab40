//! Agents look whether their databases answer; users see it, and are sent where they do.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use postern_tests::{
    Agent, Cluster, Lab, Postgres, PostgresSpec, Run, User, bin, free_port, skip_unless, wait,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

const PROBES: &str = "health_check = { interval = \"1s\", timeout = \"1s\" }";

/// Two agents, each beside a server of its own, and both serve it as `orders`.
struct Two {
    cluster: Cluster,
    agents: [Agent; 2],
    servers: [Postgres; 2],
    alice: User,
}

fn server(lab: &Arc<Lab>, name: &str) -> Result<Postgres> {
    let spec = PostgresSpec {
        name: name.into(),
        settings: vec![format!("cluster_name = '{name}'")],
        ..PostgresSpec::default()
    };
    let server = Postgres::start(lab, &spec)?;
    server.sql("postgres", "create user app")?;
    Ok(server)
}

fn service(server: &Postgres, lines: &str) -> String {
    format!(
        "[services.db]\nplugin = \"postgres\"\nsettings = {{ upstream_tls = \"allow-plain\" }}\n{lines}\n\
         [[services.db.resources]]\nname = \"orders\"\naddress = \"{}\"\n",
        server.address()
    )
}

impl Two {
    fn start() -> Result<Two> {
        let lab = Lab::new()?;
        let cluster = Cluster::start(&lab)?;
        let servers = [server(&lab, "one")?, server(&lab, "two")?];
        // A token that names them: so the second host may share what the first one has.
        let names = ["--kinds", "postgres", "--names", "orders,billing"];
        let token = cluster.token_with(&names)?;
        let agent = |name: &str, server: &Postgres| {
            let agent = cluster.agent(name).no_ssh().token(&token);
            agent.service("postgres", &service(server, PROBES)).start()
        };
        let agents = [agent("one", &servers[0])?, agent("two", &servers[1])?];
        cluster.role(&json!({
            "name": "dba",
            "allow": {"postgres": {"labels": {"*": ["*"]}, "db_users": ["app"], "db_names": ["postgres"]}},
        }))?;
        let alice = cluster.user_with("alice", &["dba"], &[])?;
        Ok(Two {
            cluster,
            agents,
            servers,
            alice,
        })
    }

    fn login(&self) -> Result<Run> {
        let run = self.alice.postern()?;
        let run = run.args(["db", "connect", "orders", "--db-user", "app"]);
        let args = ["--db-name", "postgres", "--", "-X", "-A", "-t"];
        Ok(run.args(args).args(["-c", "show cluster_name"]))
    }

    /// Which servers ten logins in a row come to; all of them have to succeed.
    fn logins(&self) -> Result<BTreeSet<String>> {
        (0..10).map(|_| self.login()?.ok()).collect()
    }

    /// What `postern ls` says of the database.
    fn seen(&self) -> Result<Value> {
        let list = self.alice.postern()?.args(["--json", "ls"]).ok()?;
        let list: Vec<Value> = serde_json::from_str(&list)?;
        let orders = list.into_iter().find(|r| r["name"] == "orders");
        orders.context("no orders in the list")
    }

    fn state(&self, state: &str) -> Result<Value> {
        let mut last = Value::Null;
        wait::until(&format!("orders to be {state}"), wait::LONG, || {
            last = self.seen()?;
            Ok((last["state"] == state && last["agents"] == 2).then(|| last.clone()))
        })
        .with_context(|| last.to_string())
    }
}

/// Waits until an agent says this of one of its resources, and gives all that it says of it.
fn health(agent: &Agent, resource: &str, state: &str) -> Result<Value> {
    let what = format!("{resource} to be {state} at {}", agent.name);
    let mut last = Value::Null;
    wait::until(&what, wait::LONG, || {
        last = agent.service("db")?["health"][resource].clone();
        Ok((last["state"] == state).then(|| last.clone()))
    })
    .with_context(|| last.to_string())
}

fn metric(agent: &Agent, resource: &str) -> Result<Option<String>> {
    let (_, body) = agent.get("/metrics")?;
    let line =
        format!("postern_agent_resource_healthy{{kind=\"postgres\",resource=\"{resource}\"}} ");
    let mut values = body.lines().filter_map(|l| l.strip_prefix(&line));
    Ok(values.next().map(str::to_owned))
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

#[test]
fn users_are_sent_to_the_agent_that_reaches_the_database() -> Result<()> {
    skip_unless!(
        Postgres::is_there(),
        "no PostgreSQL (Debian: postgresql-15)"
    );
    let mut two = Two::start()?;
    for agent in &two.agents {
        health(agent, "orders", "healthy")?;
        ensure!(metric(agent, "orders")?.as_deref() == Some("1"));
    }
    let seen = two.state("up")?;
    ensure!(seen["unreachable"].is_null(), "{seen}");
    // While both are there they share the users: otherwise what follows would prove nothing.
    ensure!(two.logins()? == names(&["one", "two"]));

    two.servers[1].down(Signal::SIGINT)?;
    let seen = two.state("degraded")?;
    ensure!(
        seen["healthy"] == true && seen["unreachable"]["reason"] == "connection refused",
        "{seen}"
    );
    ensure!(two.logins()? == names(&["one"]));
    let list = two.alice.postern()?.args(["db", "ls"]).ok()?;
    ensure!(
        list.contains("degraded")
            && list.contains("1 of 2 agents can't reach it: connection refused, since "),
        "{list}"
    );
    // What its own operator sees.
    let agent = &two.agents[1];
    ensure!(metric(agent, "orders")?.as_deref() == Some("0"));
    let status = Run::new(agent.place().command(&bin("posternd")?));
    let status = status
        .args(["status", "-c"])
        .arg(agent.config_path())
        .ok()?;
    ensure!(
        status.contains("1 of 1 unhealthy") && status.contains("db: orders is unhealthy since "),
        "{status}"
    );
    agent.wait_log("does not answer: connection refused", wait::LONG)?;
    let id = agent.status()?["agent"]["host_id"].clone();
    let id = id.as_str().context("no host id")?;
    let record = two.cluster.admin(&["agents", "get", &format!("{id}/db")])?;
    ensure!(
        record.to_string().contains("connection refused"),
        "{record}"
    );

    // None: it is tried all the same, and says so.
    two.servers[0].down(Signal::SIGINT)?;
    let seen = two.state("unreachable")?;
    ensure!(seen["healthy"] == false, "{seen}");
    let ran = two.login()?.run()?;
    ensure!(!ran.status.success(), "{}", ran.told());
    two.cluster.audited("session.end", |e| {
        e["resource"] == "orders" && e["reason"].to_string().contains("refused")
    })?;

    two.servers[1].up()?;
    two.state("degraded")?;
    ensure!(two.logins()? == names(&["two"]));
    two.servers[0].up()?;
    two.state("up")?;
    ensure!(two.logins()? == names(&["one", "two"]));
    two.agents[1].wait_log("answers again", wait::LONG)?;
    ensure!(metric(&two.agents[1], "orders")?.as_deref() == Some("1"));
    // A probe says nothing, and so does the server.
    for server in &two.servers {
        let log = server.log();
        ensure!(!log.contains("incomplete startup packet"), "{log}");
    }
    Ok(())
}

#[test]
fn an_edit_keeps_the_health_of_what_it_leaves_alone() -> Result<()> {
    skip_unless!(
        Postgres::is_there(),
        "no PostgreSQL (Debian: postgresql-15)"
    );
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let mut server = server(&lab, "one")?;
    let spec = cluster.agent("one").no_ssh();
    let spec = spec.service("postgres", &service(&server, PROBES));
    let config = spec.config()?;
    let agent = spec.start()?;
    health(&agent, "orders", "healthy")?;
    server.down(Signal::SIGINT)?;
    let before = health(&agent, "orders", "unhealthy")?;

    let billing = format!(
        "[[services.db.resources]]\nname = \"billing\"\naddress = \"127.0.0.1:{}\"\n",
        free_port()?
    );
    let edit = |config: &str| -> Result<String> {
        agent.write_config(config)?;
        let applied = agent.reload()?;
        applied.map_err(|why| anyhow::anyhow!("{why}"))
    };
    edit(&(config.clone() + &billing))?;
    health(&agent, "billing", "unhealthy")?;
    ensure!(agent.service("db")?["health"]["orders"] == before);
    ensure!(metric(&agent, "billing")?.as_deref() == Some("0"));

    // Another address is another server; and one that is gone is shown no more.
    server.up()?;
    health(&agent, "orders", "healthy")?;
    let elsewhere = format!("127.0.0.1:{}", free_port()?);
    edit(&config.replace(&server.address(), &elsewhere))?;
    health(&agent, "orders", "unhealthy")?;
    ensure!(metric(&agent, "billing")?.is_none());

    let off = config.replace(PROBES, "health_check = { enabled = false }");
    let applied = edit(&off)?;
    ensure!(applied.contains("health_check"), "{applied}");
    wait::holds("nothing to be probed", wait::LONG, || {
        agent.service("db").is_ok_and(|s| s["health"] == json!({}))
    })?;
    ensure!(metric(&agent, "orders")?.is_none());
    Ok(())
}

#[test]
fn a_thousand_resources_of_a_service() -> Result<()> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let mut service = format!("[services.db]\nplugin = \"tcp\"\n{PROBES}\n");
    for n in 0..1000 {
        service +=
            &format!("[[services.db.resources]]\nname = \"r{n}\"\naddress = \"{address}\"\n");
    }
    let agent = cluster.agent("one").no_ssh();
    let agent = agent.service("tcp", &service).start()?;
    let alice = cluster.user_with("alice", &["access"], &[])?;
    let count = |state: &str| -> Result<usize> {
        let service = agent.service("db")?;
        let health = service["health"].as_object().context("no health")?;
        Ok(health.values().filter(|h| h["state"] == state).count())
    };
    let seen = |state: &str| -> Result<usize> {
        let list = alice.postern()?.args(["--json", "ls"]).ok()?;
        let list: Vec<Value> = serde_json::from_str(&list)?;
        Ok(list.iter().filter(|r| r["state"] == state).count())
    };
    let accepting = std::thread::spawn(move || {
        // Until one says something.
        for stream in listener.incoming().flatten() {
            let mut byte = [0];
            if std::io::Read::read(&mut &stream, &mut byte).is_ok_and(|n| n > 0) {
                break;
            }
        }
    });
    wait::holds("all to be healthy", wait::LONG, || {
        count("healthy").is_ok_and(|n| n == 1000)
    })?;
    std::io::Write::write_all(&mut std::net::TcpStream::connect(address)?, b"x")?;
    accepting
        .join()
        .map_err(|_| anyhow::anyhow!("the listener"))?;
    wait::holds("all to be unhealthy", wait::LONG, || {
        count("unhealthy").is_ok_and(|n| n == 1000)
    })?;
    wait::holds("users to see it", wait::LONG, || {
        seen("unreachable").is_ok_and(|n| n == 1000)
    })?;
    let list = alice.postern()?.arg("ls").ok()?;
    ensure!(list.contains("… and 980 more"), "{list}");
    Ok(())
}
