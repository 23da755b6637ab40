//! Joining and renewing one service (D3): the same call, signed with the host key.

use crate::credentials::{Credentials, MemberDir};
use crate::proof::{Proof, TokenSource};
use postern_api::{join as signing, status, v1};
use postern_identity::{
    CaKind, CaPin, HostKey, TrustBundle,
    store::{self, StoreError},
    tls,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;
use zeroize::Zeroizing;

/// How long one attempt may take, dialling included.
const ATTEMPT: Duration = Duration::from_secs(15);

/// Everything a service needs to ask for its credentials.
pub struct Joiner {
    pub cluster: String,
    /// Where Auth is reached: itself, or a proxy that passes `auth.<cluster>` through.
    pub addr: String,
    pub service: String,
    pub kind: String,
    pub names: Vec<String>,
    pub host_key: Arc<HostKey>,
    pub token: TokenSource,
    pub root: RootOfTrust,
    pub dir: MemberDir,
    /// What is on disk is not used before Auth was asked: the member had left, and its names may be another's.
    pub ask_first: bool,
}

/// By what Auth is recognised before the service holds a trust bundle of its own.
#[derive(Clone, PartialEq)]
pub enum RootOfTrust {
    Pins(Vec<CaPin>),
    /// Auth runs in this process.
    Local(TrustBundle),
    /// No pin: the CAs are fetched once over the proxy's publicly valid HTTPS, and kept in this file.
    /// That trusts the proxy that once.
    FetchedOnce(PathBuf),
}

/// Why a service has no credentials.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("{message}")]
    Refused {
        message: String,
        /// Auth's stable word for it.
        reason: Option<String>,
    },
    #[error("service {service:?}: Auth can't be reached at {addr}: {why}; will be tried again")]
    Unreachable {
        service: String,
        addr: String,
        why: String,
    },
    #[error("service {service:?}: {source}")]
    Store { service: String, source: StoreError },
    #[error("service {service:?}: Auth's answer can't be used: {why}")]
    Answer { service: String, why: String },
    #[error("service {service:?}: {why}")]
    Tls { service: String, why: String },
}

impl Joiner {
    /// Joins, or renews what is `held`. A token is sent only where nothing is held yet,
    /// and only after Auth's chain matched the pin.
    pub async fn join(&self, held: Option<&Credentials>) -> Result<Credentials, JoinError> {
        let generation = held.map_or(0, |c| c.generation);
        let pending = self
            .dir
            .pending(&self.kind, &self.names, generation)
            .map_err(|source| self.store(source))?;
        let mut unreadable = None;
        let proof = if held.is_none_or(|c| !c.fit(&self.kind, &self.names)) {
            // The host's grant may do without one (a token file is often removed after use).
            self.token.proof(&self.cluster).await.unwrap_or_else(|e| {
                unreadable = Some(e);
                Proof::default()
            })
        } else {
            Proof::default()
        };
        let keys = pending.keys();
        let mut request = v1::JoinRequest {
            cluster: self.cluster.clone(),
            host_public_key: self.host_key.public(),
            service: self.service.clone(),
            kind: self.kind.clone(),
            names: self.names.clone(),
            nonce: hex::decode(&pending.nonce).unwrap_or_default(),
            generation,
            spki: keys.spki(),
            ssh_public_key: keys.ssh_public(),
            signed_at_unix: i64::try_from(crate::unix_now()).unwrap_or(0),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..v1::JoinRequest::default()
        };
        proof.show(&mut request, &self.host_key);
        signing::sign(&mut request, &self.host_key);
        let mut client = v1::join_service_client::JoinServiceClient::new(self.channel(held).await?);
        let answer = tokio::time::timeout(ATTEMPT, client.join(request)).await;
        let answer = match answer {
            Err(_) => return Err(self.unreachable(format!("no answer within {ATTEMPT:?}"))),
            Ok(Err(s)) if transient(&s) => return Err(self.unreachable(status::describe(&s))),
            Ok(Err(s)) => {
                let message = match unreadable {
                    Some(why) => {
                        format!("{}; what is configured can't be had: {why}", s.message())
                    }
                    None => s.message().to_owned(),
                };
                return Err(JoinError::Refused {
                    message,
                    reason: status::reason(&s).map(str::to_owned),
                });
            }
            Ok(Ok(answer)) => answer.into_inner(),
        };
        let trust: TrustBundle =
            serde_json::from_str(&answer.trust_json).map_err(|e| JoinError::Answer {
                service: self.service.clone(),
                why: e.to_string(),
            })?;
        let credentials = Credentials::new(&pending, answer, trust);
        self.dir
            .accept(&credentials)
            .map_err(|source| self.store(source))?;
        Ok(credentials)
    }

    /// Whether what is held was issued by an Auth that is (still) trusted: where none of the pins configured now is
    /// among its CAs, it is another cluster's, and joining begins anew.
    pub fn trusts(&self, held: &Credentials) -> bool {
        match &self.root {
            RootOfTrust::Pins(pins) if !pins.is_empty() => {
                held.trust.host_pins().iter().any(|p| pins.contains(p))
            }
            RootOfTrust::Pins(_) | RootOfTrust::Local(_) | RootOfTrust::FetchedOnce(_) => true,
        }
    }

    /// What would be shown: a change of it is worth an attempt at once.
    pub fn token_seen(&self) -> Option<Zeroizing<String>> {
        self.token.seen()
    }

    async fn channel(&self, held: Option<&Credentials>) -> Result<Channel, JoinError> {
        let tls = match (held, &self.root) {
            (Some(c), _) => {
                // A member is not counted among strangers; an expired certificate makes it one again.
                let id = (!c.expired()).then(|| c.tls_client());
                tls::client(&c.trust, CaKind::Host, id.as_ref(), &[b"h2"])
            }
            (None, RootOfTrust::Local(trust)) => tls::client(trust, CaKind::Host, None, &[b"h2"]),
            (None, RootOfTrust::Pins(pins)) => tls::client_pinned(pins, &[b"h2"]),
            (None, RootOfTrust::FetchedOnce(path)) => {
                tls::client(&self.fetched(path).await?, CaKind::Host, None, &[b"h2"])
            }
        }
        .map_err(|e| JoinError::Tls {
            service: self.service.clone(),
            why: e.to_string(),
        })?;
        Ok(postern_api::connect_lazy(&self.addr, &self.cluster, tls))
    }

    /// The CAs kept from the first time, or fetched now.
    async fn fetched(&self, path: &Path) -> Result<TrustBundle, JoinError> {
        if let Some(kept) = store::read_json(path).map_err(|e| self.store(e))? {
            return Ok(kept);
        }
        let trust = postern_api::bootstrap::fetch_trust(&self.addr)
            .await
            .map_err(|e| self.unreachable(e.to_string()))?;
        store::write_json(path, &trust).map_err(|e| self.store(e))?;
        let pins: Vec<_> = trust.host_pins().iter().map(CaPin::to_string).collect();
        tracing::warn!(
            "no ca_pin is set: the cluster's CA was taken from {} this once and is kept; to check it: ca_pin = {pins:?}",
            self.addr
        );
        Ok(trust)
    }

    fn unreachable(&self, why: String) -> JoinError {
        JoinError::Unreachable {
            service: self.service.clone(),
            addr: self.addr.clone(),
            why,
        }
    }

    fn store(&self, source: StoreError) -> JoinError {
        JoinError::Store {
            service: self.service.clone(),
            source,
        }
    }
}

/// Whether the same question may get another answer later.
fn transient(s: &tonic::Status) -> bool {
    matches!(
        s.code(),
        tonic::Code::Unavailable
            | tonic::Code::DeadlineExceeded
            | tonic::Code::Unknown
            | tonic::Code::Internal
            | tonic::Code::ResourceExhausted
            | tonic::Code::Cancelled
    )
}
