//! What must hold of an SSH certificate beyond what russh checks (own signature, possession):
//! trusted CA, type, validity, principals, critical options, source address.
use crate::UserIdentity;
use std::net::IpAddr;
use std::time::SystemTime;
/// Why a certificate is refused; worded for the person who reads the log.
#[derive(Debug, Clone, thiserror::Error)]
#[error("certificate refused: {0}")]
pub struct CertRejected(pub String);
/// `login: None` skips the principal check (the caller applies RBAC instead).
pub fn verify_user_cert(cert: &ssh_key::Certificate, cas: &[ssh_key::PublicKey], login: Option<&str>, source: Option<IpAddr>, now: SystemTime) -> Result<UserIdentity, CertRejected> { todo!() }
pub fn verify_agent_cert(cert: &ssh_key::Certificate, cas: &[ssh_key::PublicKey], now: SystemTime) -> Result<crate::AgentCertInfo, CertRejected> { todo!() }
pub fn verify_host_cert(cert: &ssh_key::Certificate, cas: &[ssh_key::PublicKey], name: &str, now: SystemTime) -> Result<(), CertRejected> { todo!() }
