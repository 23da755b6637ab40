use super::*;
use postern_identity::CaPublic;

fn bundle() -> TrustBundle {
    let ca = |kind, ssh: Option<&str>| CaPublic {
        kind,
        x509_pem: "PEM".into(),
        ssh: ssh.map(Into::into),
    };
    TrustBundle {
        cluster: "demo".into(),
        cas: vec![
            ca(CaKind::Host, Some("ssh-ed25519 AAAAnew host\n")),
            ca(CaKind::User, Some("ssh-ed25519 AAAAuser")),
            ca(CaKind::Host, Some("ssh-ed25519 AAAAold")),
        ],
    }
}

fn profile() -> Profile {
    Profile {
        cluster: "demo".into(),
        proxy: "proxy.example.com:443".into(),
        user: "alice".into(),
        ca_pins: vec![CaPin([7; 32])],
        not_after: when::now() + 3600,
        roles: vec!["access".into()],
        logins: vec!["root".into()],
    }
}

fn saved(dir: &Path) -> (Home, Profile) {
    let home = Home::locate(Some(&dir.join("profile"))).unwrap();
    let keys = ServiceKeys::generate();
    let trust = bundle();
    let p = profile();
    home.save(
        &p,
        &Credentials {
            keys: &keys,
            tls_cert_pem: "CERT",
            ssh_cert: "ssh-ed25519-cert-v01@openssh.com AAAA",
            trust: &trust,
        },
    )
    .unwrap();
    (home, p)
}

#[test]
fn what_is_saved_is_read_back_and_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (home, p) = saved(dir.path());
    assert_eq!(home.logged_in().unwrap(), p);
    assert_eq!(home.trust().unwrap(), bundle());
    assert_eq!(home.tls_identity().unwrap().chain_pem, "CERT");
    for file in std::fs::read_dir(home.dir()).unwrap() {
        let file = file.unwrap();
        assert_eq!(
            file.metadata().unwrap().permissions().mode() & 0o777,
            0o600,
            "{:?}",
            file.path()
        );
    }
    assert_eq!(
        std::fs::metadata(home.dir()).unwrap().permissions().mode() & 0o777,
        0o700
    );
}

#[test]
fn logging_out_leaves_no_secret_and_keeps_the_address() {
    let dir = tempfile::tempdir().unwrap();
    let (home, _) = saved(dir.path());
    assert!(home.log_out().unwrap());
    for name in SECRETS {
        assert!(!home.dir().join(name).exists(), "{name}");
    }
    assert_eq!(home.load().unwrap().unwrap().proxy, "proxy.example.com:443");
    assert_eq!(
        home.logged_in().unwrap_err().to_string(),
        "you are logged out of cluster demo; run: postern login"
    );
    assert!(!home.log_out().unwrap());
    assert!(home.forget().unwrap());
    assert!(!home.dir().exists());
}

#[test]
fn without_a_profile_it_says_what_to_run() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::locate(Some(&dir.path().join("none"))).unwrap();
    assert_eq!(
        home.logged_in().unwrap_err().to_string(),
        "you are not logged in; run: postern login --proxy HOST:PORT --user NAME (or with the link you were given)"
    );
}

#[test]
fn an_expired_certificate_says_since_when() {
    let p = profile();
    let e = p
        .check_valid(p.not_after + 3 * 3600)
        .unwrap_err()
        .to_string();
    assert!(
        e.starts_with("your certificate for cluster demo expired 3 h ago ("),
        "{e}"
    );
    assert!(e.ends_with("); run: postern login"), "{e}");
}

#[test]
fn a_certificate_about_to_expire_opens_no_session() {
    let p = profile();
    p.check_valid(p.not_after - 5).unwrap();
    for left in [4, 1] {
        assert_eq!(
            p.check_valid(p.not_after - left).unwrap_err().to_string(),
            "your certificate for cluster demo expires within 5 s, too soon to open a session with; run: postern login"
        );
    }
}

#[test]
fn a_damaged_profile_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (home, _) = saved(dir.path());
    store::write_secret(&home.dir().join(PROFILE), b"{\"cluster\":").unwrap();
    assert!(
        home.logged_in()
            .unwrap_err()
            .to_string()
            .contains("profile.json")
    );
}

#[test]
fn known_hosts_names_the_host_ca_only() {
    assert_eq!(
        known_hosts(&bundle()),
        "@cert-authority *.ssh.demo ssh-ed25519 AAAAnew host\n@cert-authority *.ssh.demo ssh-ed25519 AAAAold\n"
    );
}
