//! TLS for tokio-postgres, with a user's certificate.

use anyhow::Result;
use postern_identity::{CaKind, TrustBundle, tls};
use postern_tests::User;
use std::sync::Arc;
use tokio_postgres_rustls::MakeRustlsConnect;

/// How this user connects; clients that begin with TLS name the protocol in it.
pub fn of_user(user: &User) -> Result<MakeRustlsConnect> {
    let read = |name: &str| std::fs::read_to_string(user.home.join(name));
    let trust: TrustBundle = serde_json::from_str(&read("trust.json")?)?;
    let id = tls::TlsIdentity {
        chain_pem: read("tls.crt")?,
        key_pem: read("tls.key")?.into(),
    };
    let client = tls::client(&trust, CaKind::Host, Some(&id), &[b"postgresql"])?;
    Ok(MakeRustlsConnect::new(Arc::unwrap_or_clone(client)))
}
