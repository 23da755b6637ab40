//! What must hold of an SSH certificate beyond what russh checks (own signature, possession):
//! trusted CA, type, validity, principals, critical options, source address.

use crate::names::{check_host_id, check_label, check_user_name};
use crate::{AgentCertInfo, AgentIdentity, UserIdentity};
use ssh_key::certificate::CertType;
use ssh_key::{Certificate, HashAlg, PublicKey};
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

mod source;

/// Extension with a user's [`UserIdentity`] as JSON.
pub(crate) const IDENTITY_EXTENSION: &str = "identity@postern";
/// Extension with what an agent's service may announce, as JSON.
pub(crate) const RESOURCES_EXTENSION: &str = "resources@postern";

/// The content of [`RESOURCES_EXTENSION`].
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct Resources {
    pub kind: String,
    pub names: Vec<String>,
}

/// `<host_id>/<service>`
pub(crate) fn agent_principal(agent: &AgentIdentity) -> String {
    format!("{}/{}", agent.host_id, agent.service)
}

/// Why a certificate is refused; worded for the person who reads the log.
#[derive(Debug, Clone, thiserror::Error)]
#[error("certificate refused: {0}")]
pub struct CertRejected(pub String);

fn reject<T>(why: impl Into<String>) -> Result<T, CertRejected> {
    Err(CertRejected(why.into()))
}

/// RFC 3339, for people; the number itself if it is no date.
fn date(secs: u64) -> String {
    i64::try_from(secs)
        .ok()
        .and_then(|secs| jiff::Timestamp::from_second(secs).ok())
        .map_or_else(|| secs.to_string(), |t| t.to_string())
}

/// What holds for all types: CA, type, validity, signature, at least one principal.
fn check(
    cert: &Certificate,
    cas: &[PublicKey],
    want: CertType,
    role: &str,
    now: SystemTime,
) -> Result<(), CertRejected> {
    if cert.cert_type() != want {
        let (is, want) = match want {
            CertType::Host => ("user", "host"),
            _ => ("host", "user"),
        };
        return reject(format!(
            "it is a {is} certificate, a {want} certificate is needed"
        ));
    }
    let signer = cert.signature_key();
    if !cas.iter().any(|ca| ca.key_data() == signer) {
        let print = signer.fingerprint(HashAlg::Sha256);
        return reject(format!("its CA {print} is not {role} CA of this cluster"));
    }
    let Ok(now) = now.duration_since(UNIX_EPOCH).map(|d| d.as_secs()) else {
        return reject("this machine's clock is before 1970");
    };
    let (start, end) = (cert.valid_after(), cert.valid_before());
    if now < start {
        let start = date(start);
        return reject(format!(
            "it is not valid before {start}; compare the clocks"
        ));
    }
    if now >= end {
        return reject(format!("it expired at {}", date(end)));
    }
    if cert
        .validate_at(now, &[signer.fingerprint(HashAlg::Sha256)])
        .is_err()
    {
        return reject("its CA's signature is wrong");
    }
    if cert.valid_principals().is_empty() {
        return reject("it names no principal");
    }
    Ok(())
}

/// Refuses every critical option: an option that is not enforced must not be accepted.
fn no_critical_options(cert: &Certificate) -> Result<(), CertRejected> {
    match cert.critical_options().keys().next() {
        Some(name) => reject(format!("critical option {name:?} is not supported")),
        None => Ok(()),
    }
}

/// The JSON in an extension. Its text is not repeated in the error.
fn extension<T: serde::de::DeserializeOwned>(
    cert: &Certificate,
    name: &str,
) -> Result<T, CertRejected> {
    let Some(json) = cert.extensions().get(name) else {
        return reject(format!("extension {name} is missing"));
    };
    serde_json::from_str(json).or_else(|_| reject(format!("extension {name} is damaged")))
}

/// The user a certificate speaks for.
///
/// `login: None` skips the principal check (the caller applies RBAC instead). `source` is where
/// the client comes from; a certificate with `source-address` is refused where it is unknown.
pub fn verify_user_cert(
    cert: &Certificate,
    cas: &[PublicKey],
    login: Option<&str>,
    source: Option<IpAddr>,
    now: SystemTime,
) -> Result<UserIdentity, CertRejected> {
    check(cert, cas, CertType::User, "a user", now)?;
    for (name, value) in cert.critical_options().iter() {
        match name.as_str() {
            "source-address" => source::check(value, source)?,
            other => return reject(format!("critical option {other:?} is not supported")),
        }
    }
    if let Some(login) = login
        && !cert.valid_principals().iter().any(|p| p == login)
    {
        let logins = cert.valid_principals().join(", ");
        return reject(format!(
            "login {login:?} is not among its logins ({logins})"
        ));
    }
    let user: UserIdentity = extension(cert, IDENTITY_EXTENSION)?;
    check_user_name(&user.name).or_else(|e| reject(e.to_string()))?;
    if user.name != cert.key_id() {
        return reject("its key id and its identity name different users");
    }
    Ok(user)
}

/// The service of an agent (or proxy) a certificate speaks for, and what it may announce.
pub fn verify_agent_cert(
    cert: &Certificate,
    cas: &[PublicKey],
    now: SystemTime,
) -> Result<AgentCertInfo, CertRejected> {
    check(cert, cas, CertType::User, "an agent", now)?;
    no_critical_options(cert)?;
    let [principal] = cert.valid_principals() else {
        return reject("an agent's certificate names exactly one principal");
    };
    let Some((host_id, service)) = principal.split_once('/') else {
        return reject(format!(
            "principal {principal:?} is not <host id>/<service>"
        ));
    };
    check_host_id(host_id)
        .and_then(|()| check_label("service name", service))
        .or_else(|e| reject(e.to_string()))?;
    let Resources { kind, names } = extension(cert, RESOURCES_EXTENSION)?;
    Ok(AgentCertInfo {
        identity: AgentIdentity {
            host_id: host_id.into(),
            service: service.into(),
        },
        kind,
        names,
    })
}

/// Whether a host certificate is one for `name` (a DNS name; case does not matter).
pub fn verify_host_cert(
    cert: &Certificate,
    cas: &[PublicKey],
    name: &str,
    now: SystemTime,
) -> Result<(), CertRejected> {
    check(cert, cas, CertType::Host, "a host", now)?;
    no_critical_options(cert)?;
    let names = cert.valid_principals();
    if !names.iter().any(|p| p.eq_ignore_ascii_case(name)) {
        let names = names.join(", ");
        return reject(format!("it is for {names}, not for {name:?}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
