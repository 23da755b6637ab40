//! The SSH half of a CA: OpenSSH certificates (PROTOCOL.certkeys).

use super::{Ca, CaError, CaKind, Validity};
use crate::names::{check_dns_or_ip, check_host_id, check_label, check_user_name};
use crate::ssh::{IDENTITY_EXTENSION, RESOURCES_EXTENSION, Resources, agent_principal};
use crate::{AgentCertInfo, UserIdentity};
use ssh_key::certificate::{Builder, CertType};
use ssh_key::{Algorithm, PublicKey};

/// What OpenSSH calls the permissions of a user certificate. The agent's roles decide; a server
/// of OpenSSH that trusts this CA grants nothing that is not named here.
const PERMITS: [&str; 5] = [
    "permit-X11-forwarding",
    "permit-agent-forwarding",
    "permit-port-forwarding",
    "permit-pty",
    "permit-user-rc",
];
/// Unix logins are at most 32 characters; Kerberos-like ones are longer.
const MAX_LOGIN: usize = 256;

fn sign_error(e: impl std::fmt::Display) -> CaError {
    CaError::Sign(e.to_string())
}

/// What distinguishes one certificate from another.
struct Subject<'a> {
    cert_type: CertType,
    key_id: &'a str,
    principals: Vec<String>,
    extensions: Vec<(&'a str, String)>,
}

impl Ca {
    fn sign_ssh(&self, key: &str, subject: Subject<'_>, v: Validity) -> Result<String, CaError> {
        let key = PublicKey::from_openssh(key)
            .map_err(|e| CaError::Key(format!("not an OpenSSH public key: {e}")))?;
        if key.algorithm() != Algorithm::Ed25519 {
            return Err(CaError::Key(
                "the SSH public key is not an Ed25519 key".into(),
            ));
        }
        let Some(ca) = &self.ssh else {
            return Err(CaError::WrongCa {
                ca: self.kind.name(),
                what: "SSH certificates",
            });
        };
        // OpenSSH reads a certificate without principals as one for every principal.
        if subject.principals.is_empty() {
            return Err(sign_error(
                "an SSH certificate needs at least one principal",
            ));
        }
        let mut random = [0u8; 24];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| sign_error("no randomness"))?;
        let (nonce, serial) = random.split_at(Builder::RECOMMENDED_NONCE_SIZE);
        let (start, end) = self.window(v)?;

        let mut cert = Builder::new(nonce, &key, start, end).map_err(sign_error)?;
        let serial = serial.iter().fold(0, |n, b| n << 8 | u64::from(*b));
        cert.serial(serial).map_err(sign_error)?;
        cert.cert_type(subject.cert_type).map_err(sign_error)?;
        cert.key_id(subject.key_id).map_err(sign_error)?;
        for principal in subject.principals {
            cert.valid_principal(principal).map_err(sign_error)?;
        }
        for (name, value) in subject.extensions {
            cert.extension(name, value).map_err(sign_error)?;
        }
        cert.comment(subject.key_id).map_err(sign_error)?;
        cert.sign(ca)
            .and_then(|cert| cert.to_openssh())
            .map_err(sign_error)
    }

    /// OpenSSH host certificate; `key` and the result in OpenSSH one-line form. Principals are the
    /// DNS names. Host CA only.
    pub fn sign_ssh_host(
        &self,
        key: &str,
        names: &[String],
        v: Validity,
    ) -> Result<String, CaError> {
        self.only(&[CaKind::Host], "SSH host certificates")?;
        let principals: Vec<String> = names.iter().map(|n| n.to_ascii_lowercase()).collect();
        for name in &principals {
            check_dns_or_ip("host name", name).map_err(sign_error)?;
        }
        let subject = Subject {
            cert_type: CertType::Host,
            key_id: &principals.first().cloned().unwrap_or_default(),
            principals,
            extensions: Vec::new(),
        };
        self.sign_ssh(key, subject, v)
    }

    /// Agent CA: type user, principal `<host_id>/<service>`; what the service may announce is in
    /// extension `resources@postern`: {"kind":"ssh","names":["web-1"]}.
    pub fn sign_ssh_agent(
        &self,
        key: &str,
        agent: &AgentCertInfo,
        v: Validity,
    ) -> Result<String, CaError> {
        self.only(&[CaKind::Agent], "SSH certificates of agents")?;
        check_host_id(&agent.identity.host_id).map_err(sign_error)?;
        check_label("service name", &agent.identity.service).map_err(sign_error)?;
        check_label("kind", &agent.kind).map_err(sign_error)?;
        for name in &agent.names {
            check_dns_or_ip("resource name", name).map_err(sign_error)?;
        }
        let principal = agent_principal(&agent.identity);
        let resources = Resources {
            kind: agent.kind.clone(),
            names: agent.names.clone(),
        };
        let json = serde_json::to_string(&resources).map_err(sign_error)?;
        let subject = Subject {
            cert_type: CertType::User,
            key_id: &principal.clone(),
            principals: vec![principal],
            extensions: vec![(RESOURCES_EXTENSION, json)],
        };
        self.sign_ssh(key, subject, v)
    }

    /// User CA: type user, principals = logins (at least one), key id = user, JSON of roles+traits
    /// in extension `identity@postern`, plus OpenSSH's permit-* extensions.
    pub fn sign_ssh_user(
        &self,
        key: &str,
        user: &UserIdentity,
        logins: &[String],
        v: Validity,
    ) -> Result<String, CaError> {
        self.only(&[CaKind::User], "SSH certificates of users")?;
        check_user_name(&user.name).map_err(sign_error)?;
        for login in logins {
            let plain = |c: char| !c.is_whitespace() && !c.is_control();
            if login.is_empty() || login.len() > MAX_LOGIN || !login.chars().all(plain) {
                return Err(sign_error(format!("{login:?} cannot be a login")));
            }
        }
        let json = serde_json::to_string(user).map_err(sign_error)?;
        let mut extensions = vec![(IDENTITY_EXTENSION, json)];
        extensions.extend(PERMITS.map(|name| (name, String::new())));
        let subject = Subject {
            cert_type: CertType::User,
            key_id: &user.name,
            principals: logins.to_vec(),
            extensions,
        };
        self.sign_ssh(key, subject, v)
    }
}
