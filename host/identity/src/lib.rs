//! Who is who: names, host keys, certificate authorities, and the X.509 and SSH
//! certificates they sign (design D1, D2). Pure computation plus the files that
//! hold secrets; no network I/O.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod ca;
mod hostkey;
mod names;
mod peer;
mod pem;
mod pin;
mod servicekeys;
mod ssh;
pub mod store;
pub mod tls;
mod trust;

#[cfg(test)]
mod testing;

pub use ca::{Ca, CaError, CaKind, Validity};
pub use hostkey::{HostKey, host_id_of, verify_host_signature};
pub use names::{
    NameError, ResourceId, auth_dns, check_cluster_name, check_dns_name, check_host_id,
    check_label, check_user_name, proxy_dns, spiffe_agent, spiffe_user,
};
pub use peer::{AgentCertInfo, AgentIdentity, Peer, PeerError, UserIdentity};
pub use pin::{CaPin, PinError};
pub use servicekeys::ServiceKeys;
pub use ssh::{CertRejected, verify_agent_cert, verify_host_cert, verify_user_cert};
pub use store::StoreError;
pub use tls::{TlsError, TlsIdentity};
pub use trust::{CaPublic, TrustBundle};
