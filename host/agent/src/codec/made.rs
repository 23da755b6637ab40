//! The connection to a server that was made last, for whomever: whom the server is taken for, and how far the login is.

use super::login::Exchange;
use super::upstream;
use crate::decide::Offered;
use postern_config::Secret;
use postern_identity::TrustBundle;
use postern_identity::tls::TlsIdentity;
use postern_plugin::Challenge;
use postern_relay::{BoxedStream, Secured};

#[derive(Default)]
pub struct Made {
    login: Exchange,
    /// Of the server's certificate, for channel binding.
    end_point: Option<Vec<u8>>,
    /// Its server was verified in full.
    pub verified: bool,
}

impl Made {
    /// Speaks TLS over it; `id` is what the server is shown.
    pub async fn start_tls(
        &mut self,
        resource: &Offered,
        trust: &TrustBundle,
        id: Option<&TlsIdentity>,
        stream: BoxedStream,
    ) -> Result<Secured, String> {
        let tls = resource.tls.clone().unwrap_or_default();
        let address = resource.address.as_deref().unwrap_or_default();
        let (secured, end_point) = upstream::secure(stream, &tls, address, trust, id).await?;
        self.end_point = end_point;
        self.verified = secured.verified;
        Ok(secured)
    }

    /// Answers a challenge for an account that has been checked.
    pub async fn answer(
        &mut self,
        resource: &Offered,
        challenge: &Challenge,
        secret: impl FnOnce() -> Result<Secret, String>,
    ) -> Result<Vec<u8>, String> {
        // A socket is between this host's programs alone.
        let address = resource.address.as_deref();
        let is_local = address.is_some_and(|a| a.starts_with("unix:"));
        let (known, end_point) = (self.verified || is_local, self.end_point.clone());
        self.login.answer(challenge, end_point, known, secret).await
    }

    /// A secret in the clear is a login, too.
    pub fn cleartext(&mut self) -> Result<(), String> {
        self.login.cleartext()
    }
}
