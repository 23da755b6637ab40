use super::*;
use crate::testing::{Cluster, HOST_ID, HOUR, alice, valid};
use crate::{AgentCertInfo, AgentIdentity, ServiceKeys, TrustBundle};
use std::process::Command;

fn agent_info() -> AgentCertInfo {
    AgentCertInfo {
        identity: AgentIdentity {
            host_id: HOST_ID.into(),
            service: "ssh".into(),
        },
        kind: "ssh".into(),
        names: vec!["web-1".into()],
    }
}

fn names() -> Vec<String> {
    vec!["web-1.ssh.demo".into(), "127.0.0.1".into()]
}

/// Standard output of a tool that reads `content` from a file.
fn tool(program: &str, args: &[&str], content: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("input");
    std::fs::write(&file, content).unwrap();
    let out = Command::new(program)
        .args(args)
        .arg(&file)
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    String::from_utf8(out.stdout).unwrap()
}

fn openssl_text(pem: &str) -> String {
    tool("openssl", &["x509", "-noout", "-text", "-in"], pem)
}

#[test]
fn stored_cas_come_back_and_sign_the_same() {
    for kind in CaKind::ALL {
        let ca = Ca::generate(kind, "demo").unwrap();
        let again = Ca::from_stored(&ca.to_stored()).unwrap();
        assert_eq!(ca.public(), again.public());
        assert_eq!(ca.to_stored(), again.to_stored());
        assert_eq!(format!("{again:?}"), format!("Ca({kind} of demo)"));
    }
    let ca = Ca::generate(CaKind::User, "demo").unwrap();
    let again = Ca::from_stored(&ca.to_stored()).unwrap();
    let keys = ServiceKeys::generate();
    let leaf = again
        .sign_tls_user(&keys.spki(), &alice(), valid())
        .unwrap();
    let trust = TrustBundle {
        cluster: "demo".into(),
        cas: vec![ca.public()],
    };
    crate::Peer::from_chain(&[leaf.into()], &trust).unwrap();
}

#[test]
fn damaged_stored_cas_are_refused_without_quoting_them() {
    let stored = Ca::generate(CaKind::User, "demo").unwrap().to_stored();
    let other = Ca::generate(CaKind::User, "demo").unwrap().to_stored();
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    for len in [0, 10, stored.len() / 2, stored.len() - 1] {
        let e = Ca::from_stored(&stored[..len]).unwrap_err().to_string();
        assert!(e.contains("not a stored CA, line 1 column"), "{e}");
    }
    for field in ["key_pem", "cert_pem"] {
        let mut mixed = json(&stored);
        mixed[field] = json(&other)[field].clone();
        let e = Ca::from_stored(&mixed.to_string()).unwrap_err().to_string();
        assert!(e.contains("do not belong together"), "{e}");
    }
    for (field, value) in [
        ("ssh_key", None),
        ("ssh_key", Some("x")),
        ("key_pem", Some("x")),
    ] {
        let mut mixed = json(&stored);
        mixed[field] = value.into();
        assert!(Ca::from_stored(&mixed.to_string()).is_err(), "{field}");
    }
}

#[test]
fn every_ca_signs_only_its_own() {
    use CaKind::{Agent, DbServer, Host, User};
    let (cluster, keys) = (Cluster::new(), ServiceKeys::generate());
    let (spki, ssh) = (keys.spki(), keys.ssh_public());
    let dns = vec!["web-1.ssh.demo".to_owned()];
    let logins = vec!["root".to_owned()];
    for kind in CaKind::ALL {
        let ca = cluster.ca(kind);
        let results: [(&[CaKind], Option<CaError>); 6] = [
            (
                &[Host, DbServer],
                ca.sign_tls_server(&spki, &dns, valid()).err(),
            ),
            (
                &[Agent],
                ca.sign_tls_agent(&spki, HOST_ID, "ssh", valid()).err(),
            ),
            (&[User], ca.sign_tls_user(&spki, &alice(), valid()).err()),
            (&[Host], ca.sign_ssh_host(&ssh, &dns, valid()).err()),
            (
                &[Agent],
                ca.sign_ssh_agent(&ssh, &agent_info(), valid()).err(),
            ),
            (
                &[User],
                ca.sign_ssh_user(&ssh, &alice(), &logins, valid()).err(),
            ),
        ];
        for (kinds, error) in results {
            match error {
                None => assert!(kinds.contains(&kind), "{kind} signed"),
                Some(e) => assert!(
                    !kinds.contains(&kind) && matches!(e, CaError::WrongCa { .. }),
                    "{kind}: {e}"
                ),
            }
        }
    }
}

#[test]
fn ca_certificates_read_by_openssl() {
    for kind in CaKind::ALL {
        let ca = Ca::generate(kind, "demo").unwrap();
        let text = openssl_text(&ca.public().x509_pem);
        for want in [
            &format!("Subject: CN = demo {kind} CA") as &str,
            &format!("Issuer: CN = demo {kind} CA"),
            "ASN1 OID: prime256v1",
            "CA:TRUE, pathlen:0",
            "Certificate Sign\n",
            "ecdsa-with-SHA256",
        ] {
            assert!(text.contains(want), "{want}: {text}");
        }
        let years = (ca.not_after
            - SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_secs())
            / (365 * 86_400);
        assert_eq!(years, 10);
    }
}

#[test]
fn leaves_read_by_openssl() {
    let (cluster, keys) = (Cluster::new(), ServiceKeys::generate());
    let server = cluster
        .ca(CaKind::Host)
        .sign_tls_server(&keys.spki(), &names(), valid());
    let agent = cluster
        .ca(CaKind::Agent)
        .sign_tls_agent(&keys.spki(), HOST_ID, "ssh", valid());
    let user = cluster
        .ca(CaKind::User)
        .sign_tls_user(&keys.spki(), &alice(), valid());
    let oid = USER_EXTENSION_OID.map(|arc| arc.to_string()).join(".");
    for (der, wants) in [
        (
            server,
            vec![
                "DNS:web-1.ssh.demo, IP Address:127.0.0.1",
                "TLS Web Server Auth",
            ],
        ),
        (
            agent,
            vec![
                "URI:spiffe://demo/agent/0123456789abcdef0123456789abcdef/ssh",
                "TLS Web Client Auth",
            ],
        ),
        (
            user,
            vec![
                "URI:spiffe://demo/user/alice",
                "TLS Web Client Auth",
                &oid,
                "\"roles\":[\"access\",\"ops\"]",
            ],
        ),
    ] {
        let text = openssl_text(&tls::cert_pem(&der.unwrap()));
        for want in wants.into_iter().chain(["CA:FALSE", "Digital Signature\n"]) {
            assert!(text.contains(want), "{want}: {text}");
        }
        assert_eq!(text.matches("TLS Web").count(), 1, "one EKU: {text}");
    }
}

#[test]
fn ssh_certificates_read_by_ssh_keygen() {
    let (cluster, keys) = (Cluster::new(), ServiceKeys::generate());
    let key = keys.ssh_public();
    let logins = vec!["root".to_owned(), "deploy".to_owned()];
    let dns = vec!["web-1.ssh.demo".to_owned()];
    let host = cluster.ca(CaKind::Host).sign_ssh_host(&key, &dns, valid());
    let agent = cluster
        .ca(CaKind::Agent)
        .sign_ssh_agent(&key, &agent_info(), valid());
    let user = cluster
        .ca(CaKind::User)
        .sign_ssh_user(&key, &alice(), &logins, valid());
    let principal = format!("{HOST_ID}/ssh");
    for (kind, cert, wants) in [
        (
            CaKind::Host,
            host,
            vec!["host certificate", "web-1.ssh.demo", "Extensions: (none)"],
        ),
        (
            CaKind::Agent,
            agent,
            vec!["user certificate", &principal, "resources@postern"],
        ),
        (
            CaKind::User,
            user,
            vec![
                "user certificate",
                "Key ID: \"alice\"",
                "root",
                "deploy",
                "identity@postern",
                "permit-pty",
                "permit-port-forwarding",
            ],
        ),
    ] {
        let text = tool("ssh-keygen", &["-L", "-f"], &cert.unwrap());
        let ca = cluster
            .ssh_ca_key(kind)
            .fingerprint(ssh_key::HashAlg::Sha256)
            .to_string();
        for want in
            wants
                .into_iter()
                .chain([ca.as_str(), "ED25519-CERT", "Critical Options: (none)"])
        {
            assert!(text.contains(want), "{want}: {text}");
        }
    }
}

#[test]
fn no_certificate_outlives_its_ca() {
    let ca = Ca::generate(CaKind::User, "demo").unwrap();
    let keys = ServiceKeys::generate();
    for ttl in [HOUR * 24 * 365 * 11, Duration::MAX] {
        let v = Validity::for_ttl(ttl);
        let der = ca.sign_tls_user(&keys.spki(), &alice(), v).unwrap();
        assert_eq!(x509::not_after(&der).unwrap(), ca.not_after);
        let ssh = ca
            .sign_ssh_user(&keys.ssh_public(), &alice(), &["x".into()], v)
            .unwrap();
        let ssh = ssh_key::Certificate::from_openssh(&ssh).unwrap();
        assert_eq!(ssh.valid_before(), ca.not_after);
    }
    let end = UNIX_EPOCH + Duration::from_secs(ca.not_after);
    let late = Validity {
        not_before: end + HOUR,
        not_after: end + 2 * HOUR,
    };
    let e = ca
        .sign_tls_user(&keys.spki(), &alice(), late)
        .unwrap_err()
        .to_string();
    assert!(e.contains("never be valid"), "{e}");
    let backwards = Validity {
        not_before: valid().not_after,
        not_after: valid().not_before,
    };
    assert!(ca.sign_tls_user(&keys.spki(), &alice(), backwards).is_err());
}

#[test]
fn certificates_start_before_now_and_differ_by_serial() {
    let ca = Ca::generate(CaKind::User, "demo").unwrap();
    let keys = ServiceKeys::generate();
    let sign = || ca.sign_tls_user(&keys.spki(), &alice(), valid()).unwrap();
    let serial = |der: &[u8]| {
        let (_, cert) = x509_parser::parse_x509_certificate(der).unwrap();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs() as i64;
        let start = cert.validity().not_before.timestamp();
        assert!((now - 70..=now - 59).contains(&start));
        cert.raw_serial_as_string()
    };
    assert_ne!(serial(&sign()), serial(&sign()));
}

#[test]
fn other_keys_are_refused() {
    let cluster = Cluster::new();
    let (user, keys) = (cluster.ca(CaKind::User), ServiceKeys::generate());
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let ed = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let mut off_curve = keys.spki();
    *off_curve.last_mut().unwrap() ^= 1;
    let mut longer = keys.spki();
    longer.push(0);
    for spki in [
        p384.subject_public_key_info(),
        ed.subject_public_key_info(),
        off_curve,
        longer,
        vec![],
    ] {
        let e = user.sign_tls_user(&spki, &alice(), valid()).unwrap_err();
        assert!(matches!(e, CaError::Key(_)), "{e}");
    }
    let logins = ["root".to_owned()];
    let cert = user
        .sign_ssh_user(&keys.ssh_public(), &alice(), &logins, valid())
        .unwrap();
    let p256 = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBEmKSENjQEezOmxkZMy7opKgwFB9nkt5YRrYMjNuG5N87uRgg6CLrbo5wAdT/y6v0mKV0U2w0WZ2YB/++Tpockg=";
    for key in ["", "ssh-ed25519", "ssh-ed25519 AAAA", &cert, p256] {
        let e = user
            .sign_ssh_user(key, &alice(), &logins, valid())
            .unwrap_err();
        assert!(matches!(e, CaError::Key(_)), "{e}");
    }
}

#[test]
fn bad_subjects_are_refused() {
    let (cluster, keys) = (Cluster::new(), ServiceKeys::generate());
    let (spki, ssh) = (keys.spki(), keys.ssh_public());
    let (host, agent, user) = (
        cluster.ca(CaKind::Host),
        cluster.ca(CaKind::Agent),
        cluster.ca(CaKind::User),
    );
    for bad in ["", "a..b", "*.demo", "a b", "ä", "-x", "a,b"] {
        let bad = [bad.to_owned()];
        assert!(
            host.sign_tls_server(&spki, &bad, valid()).is_err(),
            "{bad:?}"
        );
        assert!(host.sign_ssh_host(&ssh, &bad, valid()).is_err(), "{bad:?}");
    }
    // Without a principal OpenSSH would take it for anybody's.
    assert!(host.sign_tls_server(&spki, &[], valid()).is_err());
    assert!(host.sign_ssh_host(&ssh, &[], valid()).is_err());
    let e = user
        .sign_ssh_user(&ssh, &alice(), &[], valid())
        .unwrap_err();
    assert!(e.to_string().contains("at least one principal"), "{e}");
    for login in ["", "a b", "a\n"] {
        assert!(
            user.sign_ssh_user(&ssh, &alice(), &[login.into()], valid())
                .is_err()
        );
    }
    for name in ["", "a/b", "../x"] {
        let mut bad = alice();
        bad.name = name.into();
        assert!(user.sign_tls_user(&spki, &bad, valid()).is_err());
        assert!(
            user.sign_ssh_user(&ssh, &bad, &["x".into()], valid())
                .is_err()
        );
        assert!(agent.sign_tls_agent(&spki, HOST_ID, name, valid()).is_err());
        assert!(agent.sign_tls_agent(&spki, name, "ssh", valid()).is_err());
    }
    assert!(Ca::generate(CaKind::Host, "Not A Name").is_err());
    // A proxy may be known by its address alone.
    let ip = ["2001:db8::1".to_owned()];
    host.sign_ssh_host(&ssh, &ip, valid()).unwrap();
    host.sign_tls_server(&spki, &ip, valid()).unwrap();
    let mut proxy = agent_info();
    (proxy.kind, proxy.names) = ("proxy".into(), ip.into());
    agent.sign_ssh_agent(&ssh, &proxy, valid()).unwrap();
    Ca::generate(CaKind::DbServer, &format!("a{}", ".a".repeat(99))).unwrap();
}

#[test]
fn a_db_client_is_its_account_whole_or_not_at_all() {
    let ca = Ca::generate(CaKind::DbClient, "demo").unwrap();
    let spki = crate::ServiceKeys::generate().spki();
    let v = Validity::for_ttl(Duration::from_secs(300));
    let der = ca.sign_tls_db_client(&spki, "app", "alice", v).unwrap();
    let (_, cert) = x509_parser::parse_x509_certificate(&der).unwrap();
    assert_eq!(cert.subject().to_string(), "CN=app");
    let usage = cert.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth);
    for account in ["", "a\0b", "a\nb", &"a".repeat(65)] {
        assert!(ca.sign_tls_db_client(&spki, account, "alice", v).is_err());
    }
    let other = Ca::generate(CaKind::User, "demo").unwrap();
    assert!(other.sign_tls_db_client(&spki, "app", "alice", v).is_err());
}
