use super::*;
use crate::testing::{Cluster, HOST_ID, HOUR, alice, expired, future, valid};
use crate::{CaKind, ServiceKeys, Validity};
use ssh_key::certificate::Builder;

struct Setup {
    cluster: Cluster,
    keys: ServiceKeys,
}

impl Setup {
    fn new() -> Self {
        Self {
            cluster: Cluster::new(),
            keys: ServiceKeys::generate(),
        }
    }

    fn user(&self, v: Validity) -> Certificate {
        let logins = ["root".to_owned(), "deploy".to_owned()];
        let ca = self.cluster.ca(CaKind::User);
        parse(
            &ca.sign_ssh_user(&self.keys.ssh_public(), &alice(), &logins, v)
                .unwrap(),
        )
    }

    fn agent(&self, v: Validity) -> Certificate {
        let ca = self.cluster.ca(CaKind::Agent);
        parse(
            &ca.sign_ssh_agent(&self.keys.ssh_public(), &info(), v)
                .unwrap(),
        )
    }

    fn host(&self, v: Validity) -> Certificate {
        let names = ["web-1.ssh.demo".to_owned()];
        let ca = self.cluster.ca(CaKind::Host);
        parse(
            &ca.sign_ssh_host(&self.keys.ssh_public(), &names, v)
                .unwrap(),
        )
    }

    /// A certificate our code would not sign, by the real key of a CA.
    fn craft(&self, kind: CaKind, set: impl FnOnce(&mut Builder)) -> Certificate {
        let key = PublicKey::from_openssh(&self.keys.ssh_public()).unwrap();
        let v = valid();
        let mut builder =
            Builder::new_with_validity_times([1; 16], &key, v.not_before, v.not_after).unwrap();
        set(&mut builder);
        builder.sign(&self.cluster.ssh_ca_key(kind)).unwrap()
    }

    fn cas(&self, kind: CaKind) -> Vec<PublicKey> {
        self.cluster.trust().ssh_keys(kind)
    }

    fn verify_user(&self, cert: &Certificate, login: Option<&str>) -> Result<UserIdentity, String> {
        verify_user_cert(
            cert,
            &self.cas(CaKind::User),
            login,
            None,
            SystemTime::now(),
        )
        .map_err(|e| e.to_string())
    }

    fn verify_agent(&self, cert: &Certificate) -> Result<AgentCertInfo, String> {
        verify_agent_cert(cert, &self.cas(CaKind::Agent), SystemTime::now())
            .map_err(|e| e.to_string())
    }

    fn verify_host(&self, cert: &Certificate, name: &str) -> Result<(), String> {
        verify_host_cert(cert, &self.cas(CaKind::Host), name, SystemTime::now())
            .map_err(|e| e.to_string())
    }
}

fn parse(cert: &str) -> Certificate {
    Certificate::from_openssh(cert).unwrap()
}

fn info() -> AgentCertInfo {
    AgentCertInfo {
        identity: AgentIdentity {
            host_id: HOST_ID.into(),
            service: "orders".into(),
        },
        kind: "tcp".into(),
        names: vec!["orders".into(), "billing".into()],
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, String>, why: &str) {
    let e = result.unwrap_err();
    assert!(
        e.starts_with("certificate refused: ") && e.contains(why),
        "{e}"
    );
}

/// A user's certificate with what every one has, and more.
fn user_with(b: &mut Builder, name: &str) {
    b.cert_type(CertType::User).unwrap().key_id(name).unwrap();
    b.valid_principal("root").unwrap();
    let json = serde_json::to_string(&alice()).unwrap();
    b.extension(IDENTITY_EXTENSION, json).unwrap();
}

#[test]
fn each_type_round_trips() {
    let s = Setup::new();
    assert_eq!(s.verify_user(&s.user(valid()), Some("root")), Ok(alice()));
    assert_eq!(s.verify_user(&s.user(valid()), None), Ok(alice()));
    assert_eq!(s.verify_agent(&s.agent(valid())), Ok(info()));
    assert_eq!(s.verify_host(&s.host(valid()), "Web-1.ssh.demo"), Ok(()));
    // What the tests below vary is accepted as it is.
    let crafted = s.craft(CaKind::User, |b| user_with(b, "alice"));
    assert_eq!(s.verify_user(&crafted, Some("root")), Ok(alice()));
}

#[test]
fn no_type_stands_for_another() {
    let s = Setup::new();
    let (user, agent, host) = (s.user(valid()), s.agent(valid()), s.host(valid()));
    refused(
        s.verify_user(&host, None),
        "it is a host certificate, a user certificate is needed",
    );
    refused(s.verify_agent(&host), "it is a host certificate");
    refused(
        s.verify_user(&agent, None),
        "is not a user CA of this cluster",
    );
    refused(s.verify_agent(&user), "is not an agent CA of this cluster");
    refused(
        s.verify_host(&user, "web-1.ssh.demo"),
        "it is a user certificate, a host certificate",
    );
    refused(
        s.verify_host(&agent, "web-1.ssh.demo"),
        "it is a user certificate",
    );
    // Nor where the type alone would do: signed by the right CA.
    let host_by_user_ca = s.craft(CaKind::User, |b| {
        b.cert_type(CertType::Host)
            .unwrap()
            .key_id("alice")
            .unwrap();
        b.valid_principal("root").unwrap();
    });
    refused(
        s.verify_user(&host_by_user_ca, None),
        "it is a host certificate",
    );
    let user_by_host_ca = s.craft(CaKind::Host, |b| user_with(b, "alice"));
    refused(s.verify_user(&user_by_host_ca, None), "is not a user CA");
    refused(
        s.verify_host(&user_by_host_ca, "root"),
        "it is a user certificate",
    );
}

#[test]
fn times_count() {
    let s = Setup::new();
    refused(s.verify_user(&s.user(expired()), None), "it expired at 20");
    refused(s.verify_agent(&s.agent(expired())), "it expired at");
    refused(
        s.verify_host(&s.host(expired()), "web-1.ssh.demo"),
        "it expired at",
    );
    refused(s.verify_user(&s.user(future()), None), "compare the clocks");
    // The end itself is already too late.
    let cert = s.user(valid());
    let at = |secs| UNIX_EPOCH + std::time::Duration::from_secs(secs);
    let verify = |now| verify_user_cert(&cert, &s.cas(CaKind::User), None, None, now);
    assert!(verify(at(cert.valid_before())).is_err());
    assert!(verify(at(cert.valid_before() - 1)).is_ok());
    assert!(verify(at(cert.valid_after())).is_ok());
    assert!(verify(at(cert.valid_after() - 1)).is_err());
    assert!(verify(UNIX_EPOCH - HOUR).is_err());
}

#[test]
fn other_clusters_and_forged_signatures() {
    let (s, other) = (Setup::new(), Setup::new());
    refused(
        other.verify_user(&s.user(valid()), None),
        "is not a user CA of this cluster",
    );
    refused(
        other.verify_host(&s.host(valid()), "web-1.ssh.demo"),
        "is not a host CA",
    );
    let none = verify_user_cert(&s.user(valid()), &[], None, None, SystemTime::now());
    refused(none.map_err(|e| e.to_string()), "is not a user CA");
    // One changed byte, wherever it is, spoils it: either no certificate at all, or refused.
    let bytes = s.user(valid()).to_bytes().unwrap();
    for i in 0..bytes.len() {
        let mut forged = bytes.clone();
        forged[i] ^= 1;
        if let Ok(cert) = Certificate::from_bytes(&forged) {
            assert!(s.verify_user(&cert, None).is_err(), "byte {i}");
        }
    }
}

#[test]
fn principals_count() {
    let s = Setup::new();
    let user = s.user(valid());
    refused(
        s.verify_user(&user, Some("admin")),
        "login \"admin\" is not among its logins (root, deploy)",
    );
    refused(s.verify_user(&user, Some("")), "not among");
    refused(s.verify_user(&user, Some("ROOT")), "not among");
    refused(
        s.verify_host(&s.host(valid()), "web-2.ssh.demo"),
        "it is for web-1.ssh.demo",
    );
    // OpenSSH's certificate for everybody.
    let golden = s.craft(CaKind::User, |b| {
        b.cert_type(CertType::User)
            .unwrap()
            .key_id("alice")
            .unwrap();
        b.all_principals_valid().unwrap();
    });
    refused(
        s.verify_user(&golden, Some("root")),
        "it names no principal",
    );
    refused(s.verify_user(&golden, None), "it names no principal");
    let golden = s.craft(CaKind::Host, |b| {
        b.cert_type(CertType::Host)
            .unwrap()
            .all_principals_valid()
            .unwrap();
    });
    refused(
        s.verify_host(&golden, "web-1.ssh.demo"),
        "it names no principal",
    );
}

#[test]
fn unknown_critical_options_are_refused() {
    let s = Setup::new();
    for option in ["force-command", "verify-required", "no-such@example"] {
        let cert = s.craft(CaKind::User, |b| {
            user_with(b, "alice");
            b.critical_option(option, "x").unwrap();
        });
        refused(
            s.verify_user(&cert, None),
            &format!("critical option \"{option}\" is not"),
        );
    }
    for option in ["source-address", "force-command"] {
        let agent = s.craft(CaKind::Agent, |b| {
            b.cert_type(CertType::User).unwrap();
            b.valid_principal(format!("{HOST_ID}/ssh")).unwrap();
            b.critical_option(option, "0.0.0.0/0").unwrap();
        });
        refused(s.verify_agent(&agent), "critical option");
        let host = s.craft(CaKind::Host, |b| {
            b.cert_type(CertType::Host)
                .unwrap()
                .valid_principal("h")
                .unwrap();
            b.critical_option(option, "0.0.0.0/0").unwrap();
        });
        refused(s.verify_host(&host, "h"), "critical option");
    }
}

#[test]
fn source_addresses_are_enforced() {
    let s = Setup::new();
    let cert = s.craft(CaKind::User, |b| {
        user_with(b, "alice");
        b.critical_option("source-address", "10.0.0.0/8,2001:db8::/32")
            .unwrap();
    });
    let from = |ip: Option<&str>| {
        let ip = ip.map(|ip| ip.parse().unwrap());
        verify_user_cert(&cert, &s.cas(CaKind::User), None, ip, SystemTime::now())
            .map_err(|e| e.to_string())
    };
    assert!(from(Some("10.1.2.3")).is_ok() && from(Some("2001:db8::1")).is_ok());
    refused(
        from(Some("192.0.2.1")),
        "does not hold for a client at 192.0.2.1",
    );
    refused(from(None), "the client's is unknown");
}

#[test]
fn identities_must_be_whole_and_agree() {
    let s = Setup::new();
    let missing = s.craft(CaKind::User, |b| {
        b.cert_type(CertType::User)
            .unwrap()
            .key_id("alice")
            .unwrap();
        b.valid_principal("root").unwrap();
    });
    refused(
        s.verify_user(&missing, None),
        "extension identity@postern is missing",
    );
    let damaged = s.craft(CaKind::User, |b| {
        b.cert_type(CertType::User)
            .unwrap()
            .key_id("alice")
            .unwrap();
        b.valid_principal("root").unwrap();
        b.extension(IDENTITY_EXTENSION, "{\"name\":\"alice\"")
            .unwrap();
    });
    refused(s.verify_user(&damaged, None), "is damaged");
    let other = s.craft(CaKind::User, |b| user_with(b, "bob"));
    refused(s.verify_user(&other, None), "name different users");
    let resources = serde_json::json!({"kind": "ssh", "names": []}).to_string();
    for principals in [vec!["x/ssh"], vec![HOST_ID], vec!["a/b", "c/d"]] {
        let cert = s.craft(CaKind::Agent, |b| {
            b.cert_type(CertType::User).unwrap();
            for p in &principals {
                b.valid_principal(*p).unwrap();
            }
            b.extension(RESOURCES_EXTENSION, resources.clone()).unwrap();
        });
        assert!(s.verify_agent(&cert).is_err(), "{principals:?}");
    }
    let bare = s.craft(CaKind::Agent, |b| {
        b.cert_type(CertType::User).unwrap();
        b.valid_principal(format!("{HOST_ID}/ssh")).unwrap();
    });
    refused(
        s.verify_agent(&bare),
        "extension resources@postern is missing",
    );
}
