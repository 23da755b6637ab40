//! Ansible over Postern: inventory, a module on the far side, a file copied, facts gathered.

use anyhow::{Context, Result, ensure};
use postern_tests::{Cluster, Lab, Run, skip_unless};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Installed by `cargo xtask test`.
fn ansible() -> Option<PathBuf> {
    let named = std::env::var_os("POSTERN_TEST_ANSIBLE").map(PathBuf::from);
    named.or_else(|| {
        let tools = postern_tests::bin_dir().ok()?.parent()?.join("tools");
        let found = std::fs::read_dir(tools)
            .ok()?
            .flatten()
            .map(|e| e.path().join("ansible"));
        found.into_iter().find(|p| p.is_file())
    })
}

#[test]
fn ansible_manages_a_host_that_no_network_path_reaches() -> Result<()> {
    let program = ansible();
    skip_unless!(
        program.is_some(),
        "no Ansible; `cargo xtask test` installs it"
    );
    skip_unless!(
        Path::new("/usr/bin/python3").exists(),
        "Ansible's modules need /usr/bin/python3 on the far side"
    );
    let program = program.context("ansible")?;
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let agent = cluster.agent("web-1").start()?;
    let alice = cluster.user("alice", &[&agent.login])?;
    let inventory = lab.file(
        "hosts",
        format!(
            "[web]\n{} ansible_user={} ansible_python_interpreter=/usr/bin/python3\n",
            agent.host(),
            agent.login
        ),
    )?;
    let ansible = || {
        Run::new(Command::new(&program))
            .env("POSTERN_HOME", &alice.home)
            .env("HOME", &alice.home)
            .env("ANSIBLE_HOST_KEY_CHECKING", "True")
            .env("ANSIBLE_LOCAL_TEMP", lab.join("ansible-tmp"))
            .env("ANSIBLE_NOCOLOR", "1")
            .arg("web")
            .arg("-i")
            .arg(&inventory)
            .arg(format!(
                "--ssh-common-args=-F {}",
                alice.ssh_config().display()
            ))
            .timeout(Duration::from_secs(150))
    };
    let ping = ansible().args(["-m", "ping"]).ok()?;
    ensure!(ping.contains("SUCCESS") && ping.contains("pong"), "{ping}");
    let source = lab.file("motd.txt", "written by ansible\n")?;
    let home = lab.home()?;
    let copied = home.join(format!("ansible-{}.txt", std::process::id()));
    let args = format!(
        "src={} dest={} mode=0640",
        source.display(),
        copied.display()
    );
    let first = ansible().args(["-m", "copy", "-a", &args]).ok()?;
    ensure!(first.contains("CHANGED"), "{first}");
    let again = ansible().args(["-m", "copy", "-a", &args]).ok()?;
    ensure!(
        again.contains("SUCCESS") && again.contains("\"changed\": false"),
        "{again}"
    );
    let there = alice
        .ssh(&agent)
        .arg(format!("cat {0}; rm {0}", copied.display()))
        .ok()?;
    ensure!(there == "written by ansible", "{there}");
    Ok(())
}
