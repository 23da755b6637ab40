//! Who gets in: roles, labels, locks and certificates, decided at the agent. Each refusal is clear where the person sits,
//! audited, and touches no other session.

use anyhow::{Context, Result, ensure};
use postern_tests::{Agent, Cluster, Lab, Run, User, is_root, run, skip_unless, wait};
use serde_json::json;
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

struct World {
    cluster: Cluster,
    agent: Agent,
    alice: User,
    /// Must survive everything.
    witness: run::Background,
}

fn world() -> Result<World> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let agent = cluster
        .agent("web-1")
        .labels("env = \"prod\", team = \"shop\"")
        .start()?;
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
    /// The session that was there all the time still echoes.
    fn untouched(&mut self) -> Result<()> {
        use std::io::Read;
        let child = self.witness.child();
        child.stdin.as_mut().context("stdin")?.write_all(b"ping")?;
        let mut back = [0u8; 4];
        child
            .stdout
            .as_mut()
            .context("stdout")?
            .read_exact(&mut back)?;
        ensure!(&back == b"ping");
        Ok(())
    }
}

#[test]
fn a_login_outside_the_role_is_refused() -> Result<()> {
    let mut w = world()?;
    let login = if is_root() { "backup-op" } else { "root" };
    w.alice
        .ssh_as(login, "web-1")
        .arg("true")
        .run()?
        .refused("no role of alice")?;
    let event = w
        .cluster
        .audited("session.rejected", |e| e["user"] == "alice")?;
    ensure!(
        event.to_string().contains(login),
        "the event should name the login: {event}"
    );
    w.untouched()
}

#[test]
fn labels_must_match_and_deny_wins() -> Result<()> {
    let mut w = world()?;
    let logins = json!(["{{internal.logins}}"]);
    w.cluster.role(&json!({"name": "staging", "allow": {"ssh": {"labels": {"env": ["staging"]}, "logins": logins}}}))?;
    w.cluster.role(&json!({"name": "shops", "allow": {"ssh": {"labels": {"env": ["^pr.d$", "x"], "team": ["sh*"]}, "logins": logins}}}))?;
    w.cluster
        .role(&json!({"name": "no-prod", "deny": {"ssh": {"labels": {"env": ["prod"]}}}}))?;
    let login = w.agent.login.clone();
    let staging = w.cluster.user_with("bob", &["staging"], &[&login])?;
    let shops = w.cluster.user_with("carol", &["shops"], &[&login])?;
    let denied = w
        .cluster
        .user_with("dave", &["shops", "no-prod"], &[&login])?;
    shops.ssh(&w.agent).arg("true").ok()?;
    for (user, name) in [(&staging, "bob"), (&denied, "dave")] {
        user.ssh(&w.agent).arg("true").run()?.refused("no")?;
        w.cluster
            .audited("session.rejected", |e| e["user"] == name)?;
        // What one may not reach is not shown either.
        let ls = user.postern()?.args(["--json", "ls"]).ok()?;
        ensure!(!ls.contains("web-1"), "{name}: {ls}");
    }
    w.untouched()
}

#[test]
fn a_changed_role_counts_from_the_next_session() -> Result<()> {
    let mut w = world()?;
    let role = |label: &str| json!({"name": "ops", "allow": {"ssh": {"labels": {"env": [label]}, "logins": ["{{internal.logins}}"]}}});
    w.cluster.role(&role("prod"))?;
    let login = w.agent.login.clone();
    let bob = w.cluster.user_with("bob", &["ops"], &[&login])?;
    bob.ssh(&w.agent).arg("true").ok()?;
    w.cluster.role(&role("staging"))?;
    wait::until("the agent to refuse by the new role", wait::LONG, || {
        Ok((!bob.ssh(&w.agent).arg("true").run()?.status.success()).then_some(()))
    })?;
    w.cluster.role(&role("prod"))?;
    wait::until("the agent to admit by the role again", wait::LONG, || {
        Ok(bob
            .ssh(&w.agent)
            .arg("true")
            .run()?
            .status
            .success()
            .then_some(()))
    })?;
    w.untouched()
}

#[test]
fn what_is_not_there_is_said_to_be_not_there() -> Result<()> {
    let mut w = world()?;
    let ran = w
        .alice
        .ssh_as(&w.agent.login, "no-such-host")
        .arg("true")
        .run()?;
    let said = ran.refused("no-such-host")?;
    ensure!(
        said.contains("postern:"),
        "the helper should say it: {said}"
    );
    w.alice
        .ssh_as(&w.agent.login, "Not..A..Name")
        .arg("true")
        .run()?
        .refused("postern:")?;
    w.untouched()
}

#[test]
fn a_lock_counts_at_once() -> Result<()> {
    let mut w = world()?;
    let bob = w.cluster.user("bob", &[&w.agent.login.clone()])?;
    bob.ssh(&w.agent).arg("true").ok()?;
    w.cluster
        .admin(&["locks", "create", "user:bob", "--reason", "laptop stolen"])?;
    wait::until("bob to be locked out", Duration::from_secs(10), || {
        Ok((!bob.ssh(&w.agent).arg("true").run()?.status.success()).then_some(()))
    })?;
    w.untouched()
}

#[test]
fn an_expired_login_says_so() -> Result<()> {
    let mut w = world()?;
    w.alice
        .postern()?
        .args(["login", "--password-stdin", "--ttl", "1m"])
        .stdin(format!("{}\n", w.alice.password))
        .ok()?;
    w.alice.ssh(&w.agent).arg("true").ok()?;
    // A minute is the shortest login there is.
    let said = wait::until("the login to expire", Duration::from_secs(80), || {
        let ran = w.alice.ssh(&w.agent).arg("true").run()?;
        Ok((!ran.status.success()).then(|| ran.told()))
    })?;
    // In its last seconds it is "expires within 5 s", not OpenSSH's "Permission denied".
    ensure!(
        said.contains("your certificate for cluster demo expire") && said.contains("postern login"),
        "{said}"
    );
    wait::until("the helper to say so", Duration::from_secs(10), || {
        let said = w.alice.ssh(&w.agent).arg("true").run()?.told();
        Ok((said.contains("expired") && said.contains("postern login")).then_some(()))
    })?;
    w.untouched()
}

#[test]
fn without_a_login_one_is_told_to_log_in() -> Result<()> {
    let w = world()?;
    let bob = User::nobody(&w.cluster, "bob");
    bob.postern()?.arg("ls").run()?.refused("postern login")?;
    w.alice.postern()?.arg("logout").ok()?;
    w.alice
        .ssh(&w.agent)
        .arg("true")
        .run()?
        .refused("postern login")?;
    ensure!(!w.alice.home.join("id_ed25519").exists() && !w.alice.home.join("tls.key").exists());
    Ok(())
}

#[test]
fn wrong_passwords_and_used_links_are_refused() -> Result<()> {
    let w = world()?;
    let made = w.cluster.admin(&[
        "users", "create", "bob", "--roles", "access", "--logins", "x",
    ])?;
    let link = made["link"].as_str().context("link")?.to_string();
    let bob = User::nobody(&w.cluster, "bob");
    let enroll = |link: &str| {
        Ok::<_, anyhow::Error>(
            bob.postern()?
                .args(["login", "--password-stdin", link])
                .stdin("first password\n"),
        )
    };
    let wrong_pin = link.replace("sha256:", "sha256:0000000000");
    let wrong_pin = wrong_pin[..wrong_pin.len() - 10].to_string();
    ensure!(
        !enroll(&wrong_pin)?.run()?.status.success(),
        "a link with another pin must not be served"
    );
    enroll(&link)?.ok()?;
    enroll(&link)?.run()?.refused("code")?;
    let wrong = bob
        .postern()?
        .args(["login", "--password-stdin"])
        .stdin("not it\n")
        .run()?;
    wrong.refused("password")?;
    let unknown = User::nobody(&w.cluster, "mallory");
    unknown.login(&w.cluster.pin)?.run()?.refused("password")?;
    w.cluster.audited("user.login", |e| {
        e["user"] == "bob" && e.to_string().contains("false")
    })?;
    Ok(())
}

#[test]
fn a_host_certificate_is_no_users() -> Result<()> {
    let mut w = world()?;
    skip_unless!(is_root(), "reads the agent's own keys");
    // The agent's own SSH key and its host certificate, offered as a user's.
    let state = w.agent.data_dir().join("services/ssh/credentials.json");
    let state: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(state)?)?;
    let text = |key: &str| {
        state[key]
            .as_str()
            .with_context(|| format!("no {key} in credentials.json"))
    };
    let stolen = w.cluster.lab.file("stolen", text("ssh_key")?)?;
    std::fs::set_permissions(&stolen, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    w.cluster
        .lab
        .file("stolen-cert.pub", text("ssh_host_cert")?)?;
    let config = std::fs::read_to_string(w.alice.ssh_config())?;
    let kept = config
        .lines()
        .filter(|l| !l.contains("IdentityFile") && !l.contains("CertificateFile"));
    let config = kept.collect::<Vec<_>>().join("\n");
    let file = w.cluster.lab.file("stolen.config", config)?;
    let ssh = w
        .alice
        .place()
        .run(std::path::Path::new("ssh"))
        .env("POSTERN_HOME", &w.alice.home)
        .arg("-F")
        .arg(file);
    let identity = format!("IdentityFile={}", stolen.display());
    let certificate = format!(
        "CertificateFile={}",
        w.cluster.lab.join("stolen-cert.pub").display()
    );
    let ran = ssh.args(["-o", "BatchMode=yes", "-o", &identity, "-o", &certificate]);
    let ran: Run = ran
        .arg(format!("{}@{}", w.agent.login, w.agent.host()))
        .arg("true");
    ran.run()?.refused("permission denied")?;
    w.cluster.audited("session.rejected", |e| {
        e.to_string().contains("certificate")
    })?;
    w.untouched()
}
