use super::*;
use crate::profile::known_hosts;
use std::process::Command;

fn profile(logins: &[&str]) -> Profile {
    Profile {
        cluster: "demo".into(),
        proxy: "p:443".into(),
        user: "alice".into(),
        ca_pins: vec![],
        not_after: 1,
        roles: vec![],
        logins: logins.iter().map(|l| (*l).to_owned()).collect(),
    }
}

/// What OpenSSH itself makes of a configuration.
fn effective(config: &str, host: &str) -> Option<Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config");
    std::fs::write(&file, config).unwrap();
    match Command::new("ssh")
        .arg("-G")
        .arg("-F")
        .arg(&file)
        .arg(host)
        .output()
    {
        Ok(out) => {
            assert!(
                out.status.success(),
                "{}",
                String::from_utf8_lossy(&out.stderr)
            );
            Some(
                String::from_utf8(out.stdout)
                    .unwrap()
                    .lines()
                    .map(str::to_owned)
                    .collect(),
            )
        }
        Err(e) => {
            eprintln!("skipped: no OpenSSH client here ({e})");
            None
        }
    }
}

#[test]
fn openssh_reads_the_block_as_meant() {
    let home = Home::locate(Some(Path::new("/home/al ice/100%/.postern"))).unwrap();
    let block = block(
        &home,
        &profile(&["root"]),
        Path::new("/opt/my tools/postern"),
        "alice",
    )
    .unwrap();
    let Some(lines) = effective(&block, "web-1.ssh.demo") else {
        return;
    };
    for want in [
        "user root",
        "hostname web-1.ssh.demo",
        "identitiesonly yes",
        "stricthostkeychecking true",
        "checkhostip no",
        "updatehostkeys false",
        "hostkeyalgorithms ssh-ed25519-cert-v01@openssh.com",
        "preferredauthentications publickey",
        "globalknownhostsfile /dev/null",
        "ciphers aes256-gcm@openssh.com,aes128-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr,aes192-ctr,aes256-ctr",
        // ssh -G expands tokens (%% is one %) in some values and not in others.
        "proxycommand '/opt/my tools/postern' --home '/home/al ice/100%%/.postern' proxy --stdio %h",
        "identityfile /home/al ice/100%%/.postern/id_ed25519",
        "certificatefile /home/al ice/100%%/.postern/id_ed25519-cert.pub",
        "userknownhostsfile /home/al ice/100%/.postern/known_hosts",
    ] {
        let plain = |l: &str| l.replace('"', "");
        assert!(
            lines.iter().any(|l| plain(l) == plain(want)),
            "no {want:?} in {lines:#?}"
        );
    }
}

#[test]
fn other_hosts_are_left_alone() {
    let home = Home::locate(Some(Path::new("/h/.postern"))).unwrap();
    let block = block(
        &home,
        &profile(&["root"]),
        Path::new("/usr/bin/postern"),
        "alice",
    )
    .unwrap();
    for host in ["web-1.ssh.other", "web-1", "ssh.demo"] {
        let Some(lines) = effective(&block, host) else {
            return;
        };
        assert!(
            !lines
                .iter()
                .any(|l| l.starts_with("proxycommand ") && l.contains("postern")),
            "{host}"
        );
    }
}

#[test]
fn the_block_is_what_the_guide_shows() {
    let home = Home::locate(Some(Path::new("/srv/p"))).unwrap();
    assert_eq!(
        block(
            &home,
            &profile(&["root", "ubuntu"]),
            Path::new("/usr/bin/postern"),
            "alice"
        )
        .unwrap(),
        "# Postern, cluster demo. Printed by: postern config
Host *.ssh.demo
    ProxyCommand /usr/bin/postern --home /srv/p proxy --stdio %h
    IdentityFile \"/srv/p/id_ed25519\"
    CertificateFile \"/srv/p/id_ed25519-cert.pub\"
    IdentitiesOnly yes
    PreferredAuthentications publickey
    UserKnownHostsFile \"/srv/p/known_hosts\"
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    HostKeyAlgorithms ssh-ed25519-cert-v01@openssh.com
    UpdateHostKeys no
    CheckHostIP no
    Ciphers ^aes256-gcm@openssh.com,aes128-gcm@openssh.com
"
    );
}

#[test]
fn the_default_home_is_not_spelt_out() {
    let home = Home::locate(None).unwrap();
    let options = options(&home, Path::new("/usr/bin/postern"), "web-1.ssh.demo").unwrap();
    assert_eq!(
        options[0],
        (
            "ProxyCommand",
            "/usr/bin/postern proxy --stdio web-1.ssh.demo".to_owned()
        )
    );
}

#[test]
fn paths_that_openssh_would_misread_are_refused() {
    for bad in ["/h/a\"b", "/h/a\nb", "/h/${HOME}"] {
        let home = Home::locate(Some(Path::new(bad))).unwrap();
        assert!(
            options(&home, Path::new("/usr/bin/postern"), "%h").is_err(),
            "{bad}"
        );
    }
    assert_eq!(shell_word("it's"), r"'it'\''s'");
}

#[test]
fn whom_to_log_in_as() {
    let logins = |l: &[&str]| l.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        default_login(&logins(&["root"]), "alice"),
        Login::Is("root")
    );
    assert_eq!(
        default_login(&logins(&["root", "alice"]), "alice"),
        Login::Own
    );
    assert_eq!(
        default_login(&logins(&["root", "ubuntu"]), "alice"),
        Login::Ambiguous
    );
    assert_eq!(default_login(&[], "alice"), Login::Own);
}

/// `ssh-keygen -F` applies OpenSSH's own matching to the file we write.
#[test]
fn known_hosts_covers_the_clusters_servers_only() {
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0n4pPKB4l0o9mQ9bVvUeJd8Wq7gD5s0n1mO4e3Xy0a";
    let trust = postern_identity::TrustBundle {
        cluster: "demo".into(),
        cas: vec![postern_identity::CaPublic {
            kind: postern_identity::CaKind::Host,
            x509_pem: String::new(),
            ssh: Some(key.into()),
        }],
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("known_hosts");
    std::fs::write(&file, known_hosts(&trust)).unwrap();
    let found = |host: &str| {
        Command::new("ssh-keygen")
            .args(["-F", host, "-f"])
            .arg(&file)
            .output()
            .map(|o| String::from_utf8_lossy(&o.stdout).contains("CA"))
    };
    let Ok(yes) = found("web-1.ssh.demo") else {
        return;
    };
    assert!(yes);
    assert!(!found("web-1.ssh.other").unwrap());
}
