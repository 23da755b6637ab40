//! What every connection of the proxy needs, and what keeps it fresh.

use crate::anonymous::Budget;
use crate::error::ProxyError;
use crate::live::Live;
use crate::route::{ALPN_SESSION, ALPN_TUNNEL};
use postern_config::CertFiles;
use postern_identity::tls::{self, ClientAuth, TlsIdentity};
use postern_identity::{CaKind, ResourceId, TrustBundle};
use postern_membership::{Cache, Credentials, Holding};
use postern_tunnel::{HostCredentials, TunnelServer};
use rustls::ServerConfig;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// How often a changed web certificate file is looked for.
const CERTIFICATE_POLL: Duration = Duration::from_secs(30);

/// How often it is looked for an agent that is about to come.
const LOOK: Duration = Duration::from_millis(10);

pub(crate) struct Shared {
    pub cluster: String,
    pub public_host: String,
    pub auth_addr: String,
    pub tunnel: TunnelServer,
    pub budget: Budget,
    /// What is passed through to Auth.
    pub passed: Budget,
    pub live: Live,
    pub snapshot: Cache,
    pub trust: watch::Receiver<TrustBundle>,
    pub tls: watch::Receiver<Option<Arc<Terminating>>>,
    /// Sessions that are being relayed; drain waits for none.
    pub sessions: watch::Sender<usize>,
    /// After a take-over: until when a resource that is not there yet is waited for.
    pub patience: Option<Instant>,
    /// Everything ends.
    pub shutdown: CancellationToken,
}

/// The TLS configurations of what ends at the proxy.
pub(crate) struct Terminating {
    /// SSH inside TLS.
    pub tunnel: Arc<ServerConfig>,
    /// The helper path: a certificate of the user CA is needed.
    pub session: Arc<ServerConfig>,
    /// Web, for those who know the cluster's CA.
    pub web: Arc<ServerConfig>,
    /// Web, for browsers.
    pub public: Option<Arc<ServerConfig>>,
}

impl Terminating {
    fn new(
        c: &Credentials,
        trust: &TrustBundle,
        web: Option<&TlsIdentity>,
    ) -> Result<Self, tls::TlsError> {
        let id = c.tls_server();
        let http: &[&[u8]] = &[b"http/1.1"];
        let public = web
            .map(|web| tls::server_with_versions(web, ClientAuth::None, http, tls::TLS12_AND_13));
        Ok(Terminating {
            tunnel: tls::server(&id, ClientAuth::None, &[ALPN_TUNNEL])?,
            session: tls::server(
                &id,
                ClientAuth::Required(trust, &[CaKind::User]),
                &[ALPN_SESSION],
            )?,
            web: tls::server(&id, ClientAuth::None, http)?,
            public: public.transpose()?,
        })
    }
}

impl Shared {
    /// Waits for a resource's agent to come over from the process before; returns at once where there was none.
    pub async fn until_there(&self, id: &ResourceId) {
        let Some(patience) = self.patience else {
            return;
        };
        let registry = self.tunnel.registry();
        while registry.lookup(id).is_none() && Instant::now() < patience {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Why this user may not come in.
    pub fn user_locked(&self, user: &str) -> Option<String> {
        let snapshot = self.snapshot.borrow();
        Some(snapshot.locked(&[format!("user:{user}")])?.reason.clone())
    }
}

/// Counts a relayed session.
pub(crate) struct Relayed<'a>(&'a Shared);

impl Shared {
    pub fn relayed(&self) -> Relayed<'_> {
        self.sessions.send_modify(|n| *n += 1);
        metrics::gauge!("postern_proxy_sessions").increment(1);
        Relayed(self)
    }
}

impl Drop for Relayed<'_> {
    fn drop(&mut self) {
        self.0.sessions.send_modify(|n| *n = n.saturating_sub(1));
        metrics::gauge!("postern_proxy_sessions").decrement(1);
    }
}

/// The web certificate as it is in the files now.
pub(crate) fn web_identity(files: &CertFiles) -> Result<TlsIdentity, ProxyError> {
    let read = |path: &std::path::Path| {
        std::fs::read_to_string(path).map_err(|e| ProxyError::WebCertificate {
            path: path.to_owned(),
            why: e.to_string(),
        })
    };
    let id = TlsIdentity {
        chain_pem: read(&files.cert_file)?,
        key_pem: read(&files.key_file)?.into(),
    };
    // Whether the two fit together is known only to rustls.
    tls::server(&id, ClientAuth::None, &[]).map_err(|e| ProxyError::WebCertificate {
        path: files.cert_file.clone(),
        why: e.to_string(),
    })?;
    Ok(id)
}

/// Derives from credentials, snapshot and files what the connections use.
pub(crate) struct Deriving {
    pub files: Option<CertFiles>,
    pub web: Option<TlsIdentity>,
    pub holding: watch::Receiver<Holding>,
    pub snapshot: Cache,
    pub host: watch::Sender<HostCredentials>,
    pub trust: watch::Sender<TrustBundle>,
    pub tls: watch::Sender<Option<Arc<Terminating>>>,
}

impl Deriving {
    pub async fn run(mut self) {
        let mut poll = interval(CERTIFICATE_POLL);
        // What the connections use now. The snapshot changes with every sign of life from Auth.
        let mut used: Option<(Arc<Credentials>, TrustBundle)> = None;
        let mut web_is_new = false;
        loop {
            let held = self.holding.borrow_and_update().credentials.clone();
            let followed = self.snapshot.borrow_and_update().trust.clone();
            if let Some(c) = held {
                let trust = followed.unwrap_or_else(|| c.trust.clone());
                let same = used
                    .as_ref()
                    .is_some_and(|(old, old_trust)| Arc::ptr_eq(old, &c) && *old_trust == trust);
                if !same || web_is_new {
                    self.derive(&c, &trust);
                    used = Some((c, trust));
                }
            }
            web_is_new = false;
            tokio::select! {
                changed = self.holding.changed() => if changed.is_err() { return },
                changed = self.snapshot.changed() => if changed.is_err() { return },
                _ = poll.tick(), if self.files.is_some() => web_is_new = self.reload_web(),
            }
        }
    }

    fn derive(&self, c: &Credentials, trust: &TrustBundle) {
        match Terminating::new(c, trust, self.web.as_ref()) {
            Ok(tls) => {
                self.tls.send_replace(Some(Arc::new(tls)));
            }
            Err(e) => {
                error!(error = %e, "the proxy's certificates can't be used; the ones before stay")
            }
        }
        self.host.send_replace(HostCredentials {
            ssh_key: c.ssh_key(),
            ssh_host_cert: c.ssh_host_cert.clone(),
        });
        self.trust.send_replace(trust.clone());
    }

    /// Whether the web certificate is a new one.
    fn reload_web(&mut self) -> bool {
        match self.files.as_ref().map(web_identity) {
            Some(Ok(id))
                if self
                    .web
                    .as_ref()
                    .is_none_or(|old| old.chain_pem != id.chain_pem) =>
            {
                info!("the web certificate's file has changed; using the new one");
                self.web = Some(id);
                true
            }
            Some(Err(e)) => {
                warn!(error = %e, "the web certificate before stays in use");
                false
            }
            _ => false,
        }
    }
}
