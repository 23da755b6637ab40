//! Joining: what is refused, that the reason stands where the operator looks and in the audit log, and that nothing else
//! is disturbed by it.

use anyhow::{Context, Result, ensure};
use postern_identity::{CaKind, TrustBundle, tls};
use postern_tests::{Agent, Cluster, Lab, wait};
use std::time::Duration;

struct World {
    cluster: Cluster,
    /// Joined before, and served all the time.
    good: Agent,
    alice: postern_tests::User,
}

fn world() -> Result<World> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let good = cluster.agent("web-1").start()?;
    let alice = cluster.user("alice", &[&good.login])?;
    Ok(World {
        cluster,
        good,
        alice,
    })
}

impl World {
    fn untouched(&self) -> Result<()> {
        self.alice.ssh(&self.good).arg("true").ok().map(drop)
    }

    /// The agent's ssh service must be refused, saying this.
    fn refused(&self, agent: &Agent, saying: &[&str]) -> Result<()> {
        let reason = agent.service_state("ssh", "join-failed", wait::LONG)?;
        for word in saying {
            ensure!(
                reason.to_lowercase().contains(&word.to_lowercase()),
                "no {word:?} in the reason: {reason}"
            );
        }
        ensure!(
            !reason.contains(SECRET_MARK),
            "the reason shows a secret: {reason}"
        );
        ensure!(!agent.log().contains(SECRET_MARK), "the log shows a secret");
        // The operator's own command says the same.
        let status = agent.status()?.to_string();
        ensure!(status.contains("join-failed"), "{status}");
        ensure!(agent.get("/readyz")?.0 == 503);
        self.untouched()
    }

    fn audited(&self, saying: &str) -> Result<()> {
        self.cluster
            .audited("agent.join.refused", |e| e.to_string().contains(saying))
            .map(drop)
    }
}

/// Part of the secrets that tests make up.
const SECRET_MARK: &str = "5ec4e75ec4e75ec4e7";

#[test]
fn a_token_whose_secret_is_wrong() -> Result<()> {
    let w = world()?;
    let token = w.cluster.token("ssh")?;
    let (id, secret) = token.rsplit_once('_').context("pt_<id>_<secret>")?;
    let wrong: String = SECRET_MARK
        .chars()
        .chain(secret.chars().skip(SECRET_MARK.len()))
        .collect();
    let agent = w
        .cluster
        .agent("web-2")
        .token(&format!("{id}_{wrong}"))
        .launch()?;
    w.refused(&agent, &["token"])?;
    let public_id = id.trim_start_matches("pt_");
    w.audited(public_id)
}

#[test]
fn a_token_that_nobody_made() -> Result<()> {
    let w = world()?;
    let token = w.cluster.token("ssh")?;
    let secret = token.rsplit_once('_').context("pt_<id>_<secret>")?.1;
    let id: String = token[3..]
        .split('_')
        .next()
        .unwrap_or_default()
        .chars()
        .map(|_| '0')
        .collect();
    let agent = w
        .cluster
        .agent("web-2")
        .token(&format!("pt_{id}_{secret}"))
        .launch()?;
    w.refused(&agent, &["token"])?;
    w.audited(&id)
}

#[test]
fn a_token_that_expired() -> Result<()> {
    let w = world()?;
    let made = w
        .cluster
        .admin(&["tokens", "create", "--kinds", "ssh", "--ttl", "1s"])?;
    let token = made["token"].as_str().context("token")?.to_string();
    let expires = made["expires_unix"].as_u64().context("expires_unix")?;
    wait::holds("the token to expire", wait::LONG, || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.is_ok_and(|n| n.as_secs() > expires)
    })?;
    let agent = w.cluster.agent("web-2").token(&token).launch()?;
    w.refused(&agent, &["token", "expired"])?;
    w.audited("expired")
}

#[test]
fn a_token_that_was_used_up() -> Result<()> {
    let w = world()?;
    let token = w.cluster.token_with(&["--kinds", "ssh", "--uses", "1"])?;
    let mut first = w.cluster.agent("web-2").token(&token).start()?;
    let second = w.cluster.agent("web-3").token(&token).launch()?;
    w.refused(&second, &["token", "used"])?;
    w.audited("used")?;
    // The first needs no token any more: within its grant, its key is enough.
    first.stop(wait::LONG)?;
    std::fs::remove_dir_all(first.data_dir().join("services"))?;
    first.launch()?;
    first.ready()
}

#[test]
fn a_token_of_another_kind() -> Result<()> {
    let w = world()?;
    let token = w.cluster.token("tcp")?;
    let agent = w.cluster.agent("web-2").token(&token).launch()?;
    // Worded as D9 shows it: what it covers, and what to do.
    w.refused(
        &agent,
        &[
            "does not cover",
            "ssh",
            "tcp",
            "postern tokens create --kinds ssh",
        ],
    )?;
    w.audited("ssh")
}

#[test]
fn a_token_for_other_names() -> Result<()> {
    let w = world()?;
    let token = w
        .cluster
        .token_with(&["--kinds", "ssh", "--names", "db-*"])?;
    let agent = w.cluster.agent("web-2").token(&token).launch()?;
    w.refused(&agent, &["web-2"])?;
    w.audited("web-2")?;
    w.cluster.agent("db-7").token(&token).start()?;
    Ok(())
}

#[test]
fn something_that_is_no_token() -> Result<()> {
    let w = world()?;
    let agent = w.cluster.agent("web-2").token("not-a-token").launch();
    let mut agent = agent?;
    // Either the configuration check or the join says so; never a crash loop without a word.
    wait::until("the bad token to be told", wait::LONG, || {
        let told = agent.log().contains("pt_")
            || agent
                .service("ssh")
                .is_ok_and(|s| s["state"] == "join-failed");
        Ok((told || !agent.is_running()).then_some(()))
    })?;
    let said = format!(
        "{}{}",
        agent.log(),
        agent
            .service("ssh")
            .map(|s| s.to_string())
            .unwrap_or_default()
    );
    ensure!(said.contains("token"), "{said}");
    w.untouched()
}

#[test]
fn a_wrong_pin_and_the_secret_is_not_sent() -> Result<()> {
    let w = world()?;
    let wrong = format!("sha256:{}", "ab".repeat(32));
    let before = w
        .cluster
        .audit()?
        .iter()
        .filter(|e| e["event"] == "agent.join.refused")
        .count();
    let agent = w.cluster.agent("web-2").pin(&wrong).launch()?;
    w.refused(&agent, &["pin"])?;
    let after = w
        .cluster
        .audit()?
        .iter()
        .filter(|e| e["event"] == "agent.join.refused")
        .count();
    ensure!(
        before == after,
        "the token reached Auth although the pin did not match"
    );
    Ok(())
}

#[test]
fn a_name_that_belongs_to_another_host() -> Result<()> {
    let w = world()?;
    // The second host must not even be named like the first one: its directory differs, its resource is the same.
    let lab2 = Lab::new()?;
    let mut spec = w.cluster.agent("web-1").config()?;
    spec = spec.replace("[agent]", "[agent]\nwarm_connections = 1");
    let place = postern_tests::Place::here().with_logins(&lab2);
    let thief = postern_tests::Daemon::start(&lab2, "thief", place, &spec)?;
    let reason = thief.service_state("ssh", "join-failed", wait::LONG)?;
    ensure!(
        reason.contains("web-1") && reason.contains("host"),
        "{reason}"
    );
    w.cluster
        .audited("resource.conflict", |e| e.to_string().contains("web-1"))?;
    for _ in 0..5 {
        w.untouched()?;
    }
    // With a token that lists the name, the second host shares it; when one dies, the other serves.
    let shared = w
        .cluster
        .token_with(&["--kinds", "ssh", "--names", "web-1"])?;
    let old = spec
        .split("token = \"")
        .nth(1)
        .and_then(|s| s.split('"').next())
        .context("token in the config")?;
    let config = spec.replace(old, &shared);
    drop(thief);
    let place = postern_tests::Place::here().with_logins(&lab2);
    let mut pool = postern_tests::Daemon::start(&lab2, "pool", place, &config)?;
    pool.ready()?;
    let mut first = w.good;
    first.kill9()?;
    wait::until(
        "the other agent of the pool to serve",
        Duration::from_secs(20),
        || {
            Ok(w.alice
                .ssh_as(&first.login, "web-1")
                .arg("true")
                .run()?
                .status
                .success()
                .then_some(()))
        },
    )
}

#[test]
fn one_refused_service_leaves_the_other_alone_until_its_token_comes() -> Result<()> {
    let w = world()?;
    let token_file = w.cluster.lab.file("token", w.cluster.token("ssh")?)?;
    let with_file = format!(
        "join_params = {{ method = \"token\", token_file = \"{}\" }}",
        token_file.display()
    );
    let config = w
        .cluster
        .agent("web-2")
        .service("tcp", "[services.orders]\nplugin = \"tcp\"\n[[services.orders.resources]]\nname = \"orders\"\naddress = \"127.0.0.1:9\"")
        .token("TOKEN")
        .config()?
        .replace("join_params = { method = \"token\", token = \"TOKEN\" }", &with_file);
    let place = postern_tests::Place::here().with_logins(&w.cluster.lab);
    let agent = postern_tests::Daemon::start(&w.cluster.lab, "agent-two", place, &config)?;
    agent.service_state("ssh", "up", wait::LONG)?;
    let reason = agent.service_state("orders", "join-failed", wait::LONG)?;
    ensure!(reason.contains("tcp"), "{reason}");
    // A better token in the same file: tried at once, no restart.
    std::fs::write(&token_file, w.cluster.token("tcp")?)?;
    agent
        .service_state("orders", "up", Duration::from_secs(40))
        .map(drop)?;
    w.untouched()
}

#[test]
fn a_removed_host_needs_a_new_token() -> Result<()> {
    let w = world()?;
    let token = w.cluster.token_with(&["--kinds", "ssh", "--uses", "1"])?;
    let mut agent = w.cluster.agent("web-2").token(&token).start()?;
    let host = agent.status()?["agent"]["host_id"]
        .as_str()
        .context("host_id")?
        .to_string();
    w.cluster.admin(&["agents", "rm", &host])?;
    wait::until("its tunnel to be cut", wait::LONG, || {
        Ok((agent.service("ssh")?["state"] != "up").then_some(()))
    })?;
    // Nor does a restart bring it back; the operator is told why.
    agent.stop(wait::LONG)?;
    agent.launch()?;
    wait::until("the removal to be told", wait::LONG, || {
        let service = agent.service("ssh").ok();
        Ok(service.filter(|s| s["state"] != "up" && s["reason"].to_string().contains("removed")))
    })?;
    // The administrator lifts the lock that keeps its certificates out, and gives it a new token.
    w.cluster.admin(&["locks", "rm", &format!("host:{host}")])?;
    agent.stop(wait::LONG)?;
    let config = std::fs::read_to_string(agent.config_path())?;
    agent.write_config(&config.replace(&token, &w.cluster.token("ssh")?))?;
    agent.launch()?;
    agent.ready()?;
    w.untouched()
}

#[test]
fn a_copied_disk_is_found_out() -> Result<()> {
    let w = world()?;
    // Certificates so short that renewals come while we watch would make this slow; the generation is what counts:
    // restore an old state directory after a renewal and the next renewal is stale.
    let mut agent = w.cluster.agent("web-2").start()?;
    agent.stop(wait::LONG)?;
    let services = agent.data_dir().join("services");
    let copy = agent.dir().join("services-copy");
    copy_dir(&services, &copy)?;
    std::fs::remove_dir_all(&services)?;
    agent.launch()?; // joins within its grant: a new generation
    agent.ready()?;
    agent.stop(wait::LONG)?;
    std::fs::remove_dir_all(&services)?;
    copy_dir(&copy, &services)?;
    make_due(&services)?;
    agent.launch()?;
    w.cluster
        .audited("agent.copied", |e| e.to_string().contains("ssh"))?;
    w.untouched()
}

/// Makes the stored credentials look due for renewal.
fn make_due(services: &std::path::Path) -> Result<()> {
    let path = services.join("ssh/credentials.json");
    let mut state: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
    state["not_after_unix"] = 1.into();
    Ok(std::fs::write(&path, state.to_string())?)
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    let run = postern_tests::Run::new(std::process::Command::new("cp"));
    run.arg("-a").arg(from).arg(to).ok().map(drop)
}

#[test]
fn an_agents_certificate_is_no_users_at_auth() -> Result<()> {
    use postern_api::v1::{StatusRequest, user_service_client::UserServiceClient};
    let w = world()?;
    let trust: TrustBundle =
        serde_json::from_str(&std::fs::read_to_string(w.alice.home.join("trust.json"))?)?;
    let identity = |chain: String, key: String| tls::TlsIdentity {
        chain_pem: chain,
        key_pem: key.into(),
    };
    let read = |path: std::path::PathBuf| {
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    let user = identity(
        read(w.alice.home.join("tls.crt"))?,
        read(w.alice.home.join("tls.key"))?,
    );
    let state = read(w.good.data_dir().join("services/ssh/credentials.json"))?;
    let state: serde_json::Value = serde_json::from_str(&state)?;
    let text = |key: &str| {
        state[key]
            .as_str()
            .map(str::to_string)
            .with_context(|| format!("no {key}"))
    };
    let agent = (text("tls_client_cert_pem")?, text("x509_key_pem")?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ask = |id: &tls::TlsIdentity| {
        runtime.block_on(async {
            let config = tls::client(&trust, CaKind::Host, Some(id), &[b"h2"]).context("TLS")?;
            let channel = postern_api::connect_lazy(&w.cluster.auth_addr, "demo", config);
            let answer = UserServiceClient::new(channel)
                .status(StatusRequest {})
                .await;
            anyhow::Ok(answer.map(|a| a.into_inner()))
        })
    };
    let me =
        ask(&user)?.map_err(|e| anyhow::anyhow!("the user's own certificate must work: {e}"))?;
    ensure!(me.user == "alice", "{me:?}");
    match ask(&identity(agent.0, agent.1))? {
        Ok(_) => anyhow::bail!("Auth took an agent's certificate for a user's"),
        Err(e) => ensure!(
            matches!(
                e.code(),
                tonic::Code::PermissionDenied | tonic::Code::Unauthenticated
            ),
            "{e:?}"
        ),
    }
    w.cluster.audited("auth.refused", |_| true).map(drop)
}
