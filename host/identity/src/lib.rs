//! Who is who: names, host keys, certificate authorities, and the X.509 and SSH
//! certificates they sign (design D1, D2). Pure computation plus the files that
//! hold secrets; no network I/O.

mod ca;
mod hostkey;
mod names;
mod peer;
mod pin;
mod servicekeys;
mod ssh;
pub mod store;
pub mod tls;
mod trust;

pub use ca::{Ca, CaKind, Validity};
pub use hostkey::{HostKey, host_id_of, verify_host_signature};
pub use names::{NameError, ResourceId, auth_dns, check_cluster_name, check_label, proxy_dns, spiffe_user};
pub use peer::{AgentCertInfo, AgentIdentity, Peer, PeerError, UserIdentity};
pub use pin::CaPin;
pub use servicekeys::ServiceKeys;
pub use ssh::{CertRejected, verify_agent_cert, verify_host_cert, verify_user_cert};
pub use trust::{CaPublic, TrustBundle};
