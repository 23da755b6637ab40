//! `cargo xtask demo`: the main job, in front of one's eyes. A cluster, an agent in a network that lets nothing in, the
//! OpenSSH client that logs in to it all the same, a role that refuses somebody, and the audit log that has seen it all.
//!
//! Everything lives in a temporary directory and ends with the demo.

use crate::product::{self, Profile};
use crate::{setup, sh};
use anyhow::{Context, Result, ensure};
use postern_tests::cluster::ClusterSpec;
use postern_tests::{Closed, Cluster, Lab, OTHER_LOGIN, Place, Run, is_root};
use std::process::Command;

#[derive(clap::Args)]
pub struct Args {
    /// Use the binaries as they were built last
    #[arg(long)]
    no_build: bool,
}

pub fn run(args: Args) -> Result<()> {
    if !args.no_build {
        sh::phase("what the demo needs");
        setup::debian(if is_root() {
            setup::Package::DEMO
        } else {
            &setup::Package::DEMO[..2]
        })?;
        sh::phase("building (the first time takes a few minutes)");
        product::plugins(Profile::Dev)?;
        product::binaries(Profile::Dev)?;
        println!();
    }
    let mut story = Story { step: 0 };
    tell(&mut story)
}

/// Numbers the steps.
struct Story {
    step: u32,
}

impl Story {
    fn step(&mut self, text: &str) {
        self.step += 1;
        println!("\n{:2}. {text}", self.step);
    }

    /// A command as one would type it, and what it prints.
    fn show(&self, typed: &str, output: &str) {
        println!("      $ {typed}");
        for line in output.lines() {
            println!("      {line}");
        }
    }

    fn note(&self, text: &str) {
        println!("      {text}");
    }
}

fn tell(story: &mut Story) -> Result<()> {
    println!("Postern: reach a server that no network path reaches.");
    let lab = Lab::quiet()?;
    let nets = Closed::possible().map(|()| Closed::new());
    let nets = match nets {
        Ok(made) => Some(made?),
        Err(why) => {
            println!("(Without network namespaces, all on loopback: {why}.)");
            None
        }
    };

    let cluster = start_cluster(story, &lab, nets.as_ref())?;
    let token = make_token(story, &cluster)?;
    let mut agent = start_agent(story, &cluster, nets.as_ref(), &token)?;

    story.step(
        "A user is made; the link sets her password and carries the pin of the cluster's CA.",
    );
    let logins = if lab.logins().is_some() {
        format!("{},{OTHER_LOGIN}", agent.login)
    } else {
        agent.login.clone()
    };
    let made = cluster.admin(&[
        "users",
        "create",
        "alice",
        "--roles",
        "access",
        "--logins",
        &agent.login,
    ])?;
    let link = made["link"].as_str().context("no link")?;
    story.show(
        &format!(
            "postern users create alice --roles access --logins {}",
            agent.login
        ),
        &shorten(link),
    );
    let alice = cluster_user(&cluster, "alice", link)?;
    story.show(
        "postern login 'https://…'",
        "Logged in to cluster demo as alice.",
    );

    story.step("She sees what her roles let her reach.");
    story.show("postern ls", &alice.postern()?.arg("ls").ok()?);

    story.step("The real OpenSSH client logs in, by her certificate, through the agent's tunnel, end to end encrypted.");
    alice.write_ssh_config()?;
    let remote = if nets.is_some() {
        "id -un; hostname; ip -br -4 addr show veth0"
    } else {
        "id -un; hostname"
    };
    let out = alice.ssh(&agent).arg(remote).ok()?;
    story.show("postern config >> ~/.ssh/config", "");
    story.show(
        &format!("ssh {}@{} '{remote}'", agent.login, agent.host()),
        &out,
    );
    ensure!(
        out.starts_with(&agent.login),
        "the session ran as somebody else: {out}"
    );
    let file = lab.file("report.txt", "carried by scp\n")?;
    let target = format!("{}@{}:report.txt", agent.login, agent.host());
    alice.openssh("scp").arg(&file).arg(&target).ok()?;
    let back = alice
        .ssh(&agent)
        .arg("cat report.txt; rm report.txt")
        .ok()?;
    story.show(
        &format!("scp report.txt {target}; ssh … cat report.txt"),
        &back,
    );

    story.step("What a role does not allow, the agent refuses: a login that is not hers, and a label that is not his.");
    let other = if lab.logins().is_some() {
        OTHER_LOGIN
    } else {
        "root-of-another-host"
    };
    let refused = alice.ssh_as(other, &agent.resource).arg("true").run()?;
    story.show(&format!("ssh {other}@{}", agent.host()), &refused.err());
    ensure!(
        !refused.status.success(),
        "that login should have been refused"
    );
    cluster.role(&serde_json::json!({
        "name": "staging-only",
        "allow": {"ssh": {"labels": {"env": ["staging"]}, "logins": ["{{internal.logins}}"]}}
    }))?;
    let bob = cluster.user_with(
        "bob",
        &["staging-only"],
        &logins.split(',').collect::<Vec<_>>(),
    )?;
    let refused = bob.ssh(&agent).arg("true").run()?;
    story.note("bob has the role staging-only; web-1 has the label env=prod:");
    story.show(
        &format!("ssh {}@{}    (as bob)", agent.login, agent.host()),
        &refused.err(),
    );
    ensure!(!refused.status.success(), "bob should have been refused");

    story.step("The agent's operator sees the same from the other side; the session was decided by plugins/ssh, a WASM component.");
    let status = Run::new(Command::new(postern_tests::bin("posternd")?))
        .args(["status", "-c"])
        .arg(agent.config_path());
    story.show("posternd status", &status.ok()?);
    let calls = agent.metric("postern_plugin_calls_total")?;
    story.note(&format!(
        "calls into the plugin so far: {calls:.0}; traps: {:.0}",
        agent.metric("postern_plugin_traps_total")?
    ));

    story.step("And the audit log has all of it.");
    for event in ["session.start", "session.end", "session.rejected"] {
        cluster.audited(event, |_| true)?;
    }
    cluster.audited("session.rejected", |e| e["user"] == "bob")?;
    story.show(
        "postern audit",
        &cluster.admin_run()?.args(["audit", "--last", "0"]).ok()?,
    );

    agent.stop(postern_tests::wait::LONG)?;
    println!("\nThat was it; everything it started has ended, and its directory is gone.");
    Ok(())
}

fn start_cluster(
    story: &mut Story,
    lab: &std::sync::Arc<Lab>,
    nets: Option<&Closed>,
) -> Result<Cluster> {
    story.step("A cluster starts: Auth Service and Proxy Service, one process, one public port.");
    let mut spec = ClusterSpec::new(lab);
    if let Some(nets) = nets {
        spec = spec.place(Place::here().net(&nets.outside), &nets.outside_addr);
    }
    let cluster = spec.start()?;
    story.show(
        "posternd start -c cluster.toml",
        &format!("listening on {}; ready", cluster.proxy_addr),
    );
    Ok(cluster)
}

fn make_token(story: &mut Story, cluster: &Cluster) -> Result<String> {
    story.step("The administrator makes a join token: what it covers, the agent's host may serve from now on.");
    let made = cluster.admin(&["tokens", "create", "--kinds", "ssh", "--uses", "1"])?;
    let token = made["token"].as_str().context("no token")?.to_string();
    let shown = token.rsplit_once('_').map_or("pt_…", |(id, _)| id);
    story.show(
        "postern tokens create --kinds ssh --uses 1",
        &format!("{shown}_…"),
    );
    Ok(token)
}

fn start_agent(
    story: &mut Story,
    cluster: &Cluster,
    nets: Option<&Closed>,
    token: &str,
) -> Result<postern_tests::Agent> {
    let mut spec = cluster.agent("web-1").labels("env = \"prod\"").token(token);
    match nets {
        Some(nets) => {
            story.step("An agent starts in a network of its own, whose firewall drops everything that comes in.");
            nets.inside.sh("iptables -nL INPUT")?;
            spec = spec.place(Place::here().net(&nets.inside));
        }
        None => story.step("An agent starts."),
    }
    let agent = spec.start()?;
    story.show(
        "posternd start -c agent.toml",
        "joined by its token, dialled out, tunnel up",
    );
    if let Some(nets) = nets {
        let knock = format!("exec 3<>/dev/tcp/{}/22", nets.inside_addr);
        let outside = cluster
            .place
            .run(std::path::Path::new("timeout"))
            .args(["1", "bash", "-c", &knock])
            .run()?;
        ensure!(
            !outside.status.success(),
            "the closed network let something in"
        );
        story.show(
            &format!("ssh {}    (straight, from outside)", nets.inside_addr),
            "no answer: the firewall drops it",
        );
    }
    Ok(agent)
}

fn cluster_user(cluster: &Cluster, name: &str, link: &str) -> Result<postern_tests::User> {
    postern_tests::User::enroll(cluster, name, link)
}

/// A link as far as it fits a line; its code works once, and has been used when this is printed.
fn shorten(link: &str) -> String {
    let short: String = link.chars().take(90).collect();
    if short.len() < link.len() {
        format!("{short}…")
    } else {
        short
    }
}
