//! Who gets in, as whom, and what the others hear.

use crate::support::*;
use postern_identity::{CaKind, ServiceKeys, Validity};
use std::time::{Duration, SystemTime};

async fn refused(lab: &Lab, id: &str, login: &str) -> String {
    let mut ssh = lab.ssh_id(id, login);
    ssh.arg("echo in");
    let out = run(ssh).await;
    assert_eq!(out.status.code(), Some(255), "{}", text(&out));
    assert!(out.stdout.is_empty());
    stderr(&out)
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_are_not_ours() {
    let mut lab = Lab::new().await;
    let login = login();
    lab.certify("stranger", &ca(CaKind::User), "alice", &[&login], hour());
    assert!(
        refused(&lab, "stranger", &login)
            .await
            .contains("Permission denied (publickey)")
    );

    let keys = ServiceKeys::generate();
    let cert = lab
        .host_ca
        .sign_ssh_host(&keys.ssh_public(), std::slice::from_ref(&login), hour())
        .unwrap();
    lab.write_key("host-type", &keys, &cert);
    assert!(
        refused(&lab, "host-type", &login)
            .await
            .contains("Permission denied (publickey)")
    );

    let past = Validity {
        not_before: SystemTime::now() - Duration::from_secs(7200),
        not_after: SystemTime::now() - Duration::from_secs(3600),
    };
    lab.certify("expired", &lab.user_ca, "alice", &[&login], past);
    assert!(
        refused(&lab, "expired", &login)
            .await
            .contains("Permission denied (publickey)")
    );

    for _ in 0..3 {
        assert!(lab.summary().await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_the_certificate_lacks_is_explained() {
    let lab = Lab::new().await;
    lab.certify("other", &lab.user_ca, "alice", &["deploy"], hour());
    let said = refused(&lab, "other", &login()).await;
    assert!(
        said.contains("Received disconnect") && said.contains("certificate refused"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_and_plain_keys_are_refused_at_once() {
    let mut lab = Lab::new().await;
    std::fs::remove_file(lab.path("id-cert.pub")).unwrap();
    let begun = std::time::Instant::now();
    let said = refused(&lab, "id", &login()).await;
    assert!(said.contains("Permission denied (publickey)"), "{said}");
    let mut ssh = lab.program("ssh");
    ssh.args([
        "-o",
        "PreferredAuthentications=password,keyboard-interactive",
    ]);
    ssh.args([&format!("{}@127.0.0.1", login()), "true"]);
    let out = run(ssh).await;
    assert!(
        stderr(&out).contains("Permission denied (publickey)"),
        "{}",
        text(&out)
    );
    assert!(begun.elapsed() < Duration::from_secs(5));
    let rejected = lab.event("session.rejected").await;
    assert!(rejected.text("reason").unwrap().contains("plain keys"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_refuses_the_session_says_why() {
    let mut lab = Lab::new().await;
    lab.certify("mallory", &lab.user_ca, "mallory", &[&login()], hour());
    let said = refused(&lab, "mallory", &login()).await;
    assert!(said.contains("mallory may not"), "{said}");
    let rejected = lab.event("session.rejected").await;
    assert_eq!(rejected.text("user"), Some("mallory"));
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_that_cannot_log_in_say_why() {
    let mut lab = Lab::with(|o| o.allow_same_user = false).await;
    lab.certify("ghost", &lab.user_ca, "alice", &["no-such-user"], hour());
    let said = refused(&lab, "ghost", "no-such-user").await;
    assert!(
        said.contains("postern: login \"no-such-user\" does not exist on this host"),
        "{said}"
    );
    let me = nix::unistd::User::from_uid(nix::unistd::geteuid())
        .unwrap()
        .unwrap()
        .name;
    lab.certify("me", &lab.user_ca, "alice", &[&me], hour());
    let said = refused(&lab, "me", &me).await;
    assert!(said.contains("allow_same_user"), "{said}");
    let summary = lab.summary().await.unwrap();
    assert_eq!(summary.exits, ["not started"]);

    if !nix::unistd::geteuid().is_root() {
        return;
    }
    // An account whose shell says no.
    let mut ssh = lab.ssh_as("nobody");
    ssh.arg("id");
    let out = run(ssh).await;
    assert_eq!(out.status.code(), Some(1), "{}", text(&out));
    assert!(
        String::from_utf8_lossy(&out.stdout).contains("not available"),
        "{}",
        text(&out)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_closed_says_so() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "back at noon\n").unwrap();
    let path = file.path().to_owned();
    let lab = Lab::with(|o| {
        o.nologin = vec![path];
        o.allow_same_user = true;
    })
    .await;
    let said = refused(&lab, "id", &login()).await;
    assert!(
        said.contains("this host is not accepting logins: back at noon"),
        "{said}"
    );
    let mut ssh = lab.ssh_as("root");
    ssh.arg("id -u");
    assert_eq!(run(ssh).await.stdout, b"0\n", "root may always");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_account_says_so() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let _ = login();
    let lock = std::fs::File::create("/tmp/postern-test-user.lock").unwrap();
    let lock = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let name = "postern-test-gone";
    if nix::unistd::User::from_name(name).unwrap().is_none() {
        let made = std::process::Command::new("useradd")
            .args(["-M", "-e", "2001-01-01", name])
            .status();
        assert!(made.unwrap().success());
    }
    drop(lock);
    let lab = Lab::new().await;
    lab.certify("gone", &lab.user_ca, "alice", &[name], hour());
    let said = refused(&lab, "gone", name).await;
    assert!(said.contains("the account has expired"), "{said}");
}
