//! Joining without a secret: ID tokens of a real OpenID Connect provider (npm's oidc-provider) and of the environments
//! with presets, and key pairs that outlive a data directory.

use anyhow::{Context, Result, bail, ensure};
use postern_tests::{Agent, Background, Cluster, Lab, Place, Run, bin, skip_unless, wait};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// The cluster's name is the default audience on both sides.
const AUDIENCE: &str = postern_tests::cluster::NAME;

/// A running oidc-provider; killed when dropped.
struct Provider {
    url: String,
    _process: Background,
}

/// Installed by `cargo xtask test`.
fn modules() -> Option<PathBuf> {
    let named = std::env::var_os("POSTERN_TEST_OIDC_PROVIDER").map(PathBuf::from);
    named.or_else(|| {
        let tools = postern_tests::bin_dir().ok()?.parent()?.join("tools");
        let mut found = std::fs::read_dir(tools)
            .ok()?
            .flatten()
            .map(|e| e.path().join("node_modules"));
        found.find(|p| p.join("oidc-provider").is_dir())
    })
}

impl Provider {
    fn start(modules: PathBuf) -> Result<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/oidc/provider.mjs");
        let mut process = Run::new(Command::new("node"))
            .arg(script)
            .arg(modules)
            .arg(AUDIENCE)
            .background(Stdio::piped())?;
        let out = process.child().stdout.take().context("its output")?;
        let mut url = String::new();
        BufReader::new(out).read_line(&mut url)?;
        ensure!(url.starts_with("http://127.0.0.1:"), "node said {url:?}");
        Ok(Provider {
            url: url.trim().to_owned(),
            _process: process,
        })
    }

    /// A signed JWT for the client `deploy-job`.
    fn token(&self, audience: &str) -> Result<String> {
        let answer = Run::new(Command::new("curl"))
            .args(["--silent", "--show-error", "--fail"])
            .args(["-u", "deploy-job:for-tests-on-loopback"])
            .args(["-d", "grant_type=client_credentials"])
            .args(["-d", &format!("resource=urn:postern:{audience}")])
            .arg(format!("{}/token", self.url))
            .ok()?;
        let answer: Value = serde_json::from_str(&answer)?;
        Ok(answer["access_token"]
            .as_str()
            .context("access_token")?
            .to_owned())
    }
}

struct World {
    lab: Arc<Lab>,
    cluster: Cluster,
}

fn world() -> Result<World> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    Ok(World { lab, cluster })
}

impl World {
    fn reached(&self, user: &str, agent: &Agent) -> Result<()> {
        let user = self.cluster.user(user, &[&agent.login])?;
        user.ssh(agent).arg("true").ok().map(drop)
    }

    fn create(&self, args: &[&str]) -> Result<Value> {
        let mut all = vec!["tokens", "create", "--kinds", "ssh"];
        all.extend(args);
        self.cluster.admin(&all)
    }
}

fn refused(agent: &Agent, saying: &str) -> Result<()> {
    let reason = agent.service_state("ssh", "join-failed", wait::LONG)?;
    ensure!(reason.contains(saying), "no {saying:?} in: {reason}");
    Ok(())
}

#[test]
fn an_id_token_of_an_openid_provider() -> Result<()> {
    let modules = modules();
    skip_unless!(
        modules.is_some(),
        "no oidc-provider; `cargo xtask test` installs it"
    );
    let provider = Provider::start(modules.context("modules")?)?;
    let w = world()?;
    let made = w.create(&[
        "--name",
        "deploy",
        "--method",
        "oidc",
        "--issuer",
        &provider.url,
        "--must-match",
        "sub=deploy-job",
    ])?;
    ensure!(made["token"] == "", "no secret is made: {made}");
    let file = w.lab.join("id-token");
    let params =
        format!("{{ method = \"oidc\", token_name = \"deploy\", id_token_file = {file:?} }}");
    // The file comes late, then holds a token for somebody else, then the right one: each is seen without a restart.
    let mut agent = w.cluster.agent("web-1").join_params(&params).launch()?;
    refused(&agent, "id-token")?;
    std::fs::write(&file, provider.token("other")?)?;
    wait::holds("the other audience to be refused", wait::LONG, || {
        refused(&agent, "is for audience \"other\"").is_ok()
    })?;
    let token = provider.token(AUDIENCE)?;
    std::fs::write(&file, &token)?;
    agent.ready()?;
    w.reached("alice", &agent)?;

    // Whoever got hold of the token can't use it on another host.
    let stolen = w.cluster.agent("web-2").join_params(&params).launch()?;
    refused(&stolen, "has joined with this ID token already")?;
    std::fs::write(&file, provider.token(AUDIENCE)?)?;
    let mut stolen = stolen;
    stolen.ready()?;
    ensure!(!agent.log().contains(&token[..60]), "the log shows a token");
    ensure!(!stolen.log().contains(&token[..60]));
    w.cluster.audited("agent.join", |e| {
        e["token"] == "deploy" && e["method"] == "oidc"
    })?;

    let listed = w.cluster.admin_run()?.args(["tokens", "ls"]).ok()?;
    ensure!(
        listed
            .lines()
            .any(|l| l.starts_with("deploy") && l.contains("oidc") && l.contains("never")),
        "{listed}"
    );
    w.cluster
        .admin_run()?
        .args(["tokens", "rm", "deploy"])
        .ok()?;
    Ok(())
}

#[test]
fn a_job_of_gitlab_and_a_pod_of_kubernetes() -> Result<()> {
    let modules = modules();
    skip_unless!(
        modules.is_some(),
        "no oidc-provider; `cargo xtask test` installs it"
    );
    let provider = Provider::start(modules.context("modules")?)?;
    let w = world()?;
    // A GitLab of one's own; its job finds the token in its environment.
    w.create(&[
        "--name",
        "jobs",
        "--method",
        "gitlab",
        "--issuer",
        &provider.url,
        "--must-match",
        "client_id=deploy-*",
    ])?;
    let job = Place::here().env("POSTERN_ID_TOKEN", &provider.token(AUDIENCE)?);
    let agent = w
        .cluster
        .agent("job-1")
        .place(job)
        .join_params("{ method = \"gitlab\", token_name = \"jobs\" }")
        .start()?;
    w.reached("alice", &agent)?;
    // A process outside of a job says what is missing.
    let outside = w
        .cluster
        .agent("job-2")
        .join_params("{ method = \"gitlab\", token_name = \"jobs\" }")
        .launch()?;
    refused(&outside, "POSTERN_ID_TOKEN is not set")?;

    // A cluster whose issuer Auth can't reach: its keys are given as a file.
    let jwks = Run::new(Command::new("curl"))
        .args(["--silent", "--fail"])
        .arg(format!("{}/jwks", provider.url))
        .ok()?;
    let jwks = w.lab.file("jwks.json", jwks)?;
    w.create(&[
        "--name",
        "pods",
        "--method",
        "kubernetes",
        "--issuer",
        &provider.url,
        "--jwks",
        &jwks.display().to_string(),
        "--must-match",
        "sub=deploy-job",
    ])?;
    let projected = w.lab.file("projected", provider.token(AUDIENCE)?)?;
    let agent = w
        .cluster
        .agent("pod-1")
        .join_params(&format!(
            "{{ method = \"kubernetes\", token_name = \"pods\", id_token_file = {projected:?} }}"
        ))
        .start()?;
    w.reached("bob", &agent)
}

#[test]
fn a_job_of_github_asks_for_its_token() -> Result<()> {
    let modules = modules();
    skip_unless!(
        modules.is_some(),
        "no oidc-provider; `cargo xtask test` installs it"
    );
    let provider = Provider::start(modules.context("modules")?)?;
    let w = world()?;
    w.create(&[
        "--name",
        "actions",
        "--method",
        "github",
        "--issuer",
        &provider.url,
        "--must-match",
        "sub=deploy-job",
    ])?;
    let params = "{ method = \"github\", token_name = \"actions\" }";
    let outside = w.cluster.agent("run-1").join_params(params).launch()?;
    refused(
        &outside,
        "no GitHub Actions job with the permission `id-token: write`",
    )?;
    // Nobody answers where the job's variables point to.
    let broken = Place::here()
        .env(
            "ACTIONS_ID_TOKEN_REQUEST_URL",
            "http://127.0.0.1:1/token?api-version=1",
        )
        .env("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "job-secret-5ec4e7");
    let broken = w
        .cluster
        .agent("run-2")
        .place(broken)
        .join_params(params)
        .launch()?;
    refused(&broken, "GitHub gave no ID token")?;
    ensure!(!broken.log().contains("job-secret-5ec4e7"));
    let job = Place::here()
        .env(
            "ACTIONS_ID_TOKEN_REQUEST_URL",
            &format!("{}/github?api-version=1", provider.url),
        )
        .env("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "job-secret-5ec4e7");
    let agent = w
        .cluster
        .agent("run-3")
        .place(job)
        .join_params(params)
        .start()?;
    w.reached("alice", &agent)
}

#[test]
fn a_bound_key_pair_brings_a_host_back_that_lost_its_disk() -> Result<()> {
    let w = world()?;
    let key = w.lab.join("join").join("key.pem");
    let made = w.create(&["--name", "edge-1", "--method", "bound_keypair"])?;
    let secret = w.lab.file(
        "secret",
        made["token"].as_str().context("the registration secret")?,
    )?;
    let params = format!(
        "{{ method = \"bound_keypair\", token_name = \"edge-1\", key_file = {key:?}, registration_secret_file = {secret:?} }}"
    );
    let mut first = w.cluster.agent("edge").join_params(&params).start()?;
    w.reached("alice", &first)?;
    std::fs::remove_file(&secret)?;

    // The same service again on a new disk: same name, another host id.
    first.kill9()?;
    let data = first.data_dir();
    std::fs::rename(&data, w.lab.join("old-disk"))?;
    first.launch()?;
    first.ready()?;
    w.reached("bob", &first)?;
    let replaced = w
        .cluster
        .audited("agent.replaced", |e| e["token"] == "edge-1")?;
    ensure!(
        replaced["services"] == serde_json::json!(["ssh"]),
        "{replaced}"
    );

    // The old disk turns up again: it is locked out. And a third disk is one recovery too many.
    first.kill9()?;
    std::fs::rename(&data, w.lab.join("new-disk"))?;
    std::fs::rename(w.lab.join("old-disk"), &data)?;
    first.launch()?;
    wait::holds("the old disk to be refused", wait::LONG, || {
        first
            .status()
            .is_ok_and(|s| s.to_string().contains("has joined with its key pair"))
    })?;
    first.kill9()?;
    std::fs::remove_dir_all(&data)?;
    first.launch()?;
    refused(
        &first,
        "token edge-1 is used up (after its first join, its key allowed 1 more)",
    )
}

#[test]
fn a_registered_public_key_needs_no_secret_at_all() -> Result<()> {
    let w = world()?;
    let key = w.lab.join("join").join("key.pem");
    let show = || {
        Run::new(Command::new(bin("posternd")?))
            .arg("join-key")
            .arg(&key)
            .ok()
    };
    let public = show()?;
    ensure!(public.starts_with("ssh-ed25519 "), "{public}");
    ensure!(show()? == public, "it is made once");
    w.create(&[
        "--name",
        "edge-1",
        "--method",
        "bound_keypair",
        "--public-key",
        public.trim(),
    ])?;
    let params = |key: &std::path::Path| {
        format!("{{ method = \"bound_keypair\", token_name = \"edge-1\", key_file = {key:?} }}")
    };
    let agent = w.cluster.agent("edge").join_params(&params(&key)).start()?;
    w.reached("alice", &agent)?;
    let other = w.lab.join("other").join("key.pem");
    let stranger = w
        .cluster
        .agent("edge-2")
        .join_params(&params(&other))
        .launch()?;
    refused(&stranger, "is not the one that is registered")
}

#[test]
fn what_makes_no_sense_is_refused_where_it_is_typed() -> Result<()> {
    let w = world()?;
    let cases: [(&[&str], &str); 6] = [
        (&["--method", "oidc"], "--name"),
        (
            &["--method", "oidc", "--name", "ci", "--must-match", "sub=a"],
            "--issuer",
        ),
        (
            &["--name", "ci"],
            "--name does not belong to --method token",
        ),
        (
            &["--must-match", "sub=a"],
            "does not belong to --method token",
        ),
        (
            &[
                "--method",
                "github",
                "--name",
                "ci",
                "--must-match",
                "ref=refs/heads/main",
            ],
            "names no owner",
        ),
        (
            &["--method", "github", "--name", "ci", "--must-match", "main"],
            "CLAIM=VALUE",
        ),
    ];
    for (args, saying) in cases {
        let mut all = vec!["tokens", "create", "--kinds", "ssh"];
        all.extend(args);
        w.cluster
            .admin_run()?
            .args(all)
            .timeout(Duration::from_secs(30))
            .run()?
            .refused(saying)?;
    }
    if w.cluster
        .admin(&["tokens", "ls"])?
        .to_string()
        .contains("oidc")
    {
        bail!("a refused token was made");
    }
    Ok(())
}
