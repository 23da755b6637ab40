//! The Auth Service: the certificate authorities, and the record of tokens, users, roles, locks and agents; it also
//! stores the audit log.
//!
//! Everything it knows is behind one key-value trait ([`kv`], design D8); the audit log is a table of its own. It
//! listens on two places: gRPC over TLS as `auth.<cluster>`, for agents, proxies and users, and a Unix socket in its
//! data directory for administrators. Who may call what follows from the caller's certificate alone.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod admin;
mod agents;
mod audit_log;
mod authority;
mod budget;
mod caller;
mod databases;
mod db;
mod error;
mod inventory;
mod issuers;
mod join;
pub mod kv;
mod limits;
mod login;
mod password;
mod records;
mod server;
mod state;
#[cfg(test)]
mod tests;
mod time;
mod users;

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use postern_api::v1::CreateTokenRequest;
use postern_identity::{TrustBundle, check_cluster_name, store};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::authority::Authority;
use crate::db::Threads;
use crate::state::{Shared, State};

pub use db::DbError;
pub use error::AuthError;

/// What `[auth]` says, and where the state lives.
#[derive(Debug, Clone)]
pub struct AuthOptions {
    pub cluster: String,
    /// Holds `auth/` (the state) and `admin.sock`.
    pub data_dir: PathBuf,
    /// `host:port`; port 0 takes a free one.
    pub listen: String,
    /// Life of the certificates of agents, proxies and of Auth itself.
    pub cert_ttl: Duration,
    /// How long after its last certificate expired a host may come back without a token.
    pub rejoin_window: Duration,
    /// `host:port` in enrolment links.
    pub proxy_public_addr: Option<String>,
}

/// A running Auth Service. It stops when its shutdown token is cancelled; [`AuthServer::stopped`] waits for that.
pub struct AuthServer {
    state: Shared,
    addr: SocketAddr,
    /// The listener once more, for the process that takes over.
    heir: Option<OwnedFd>,
    tasks: JoinSet<()>,
    threads: Vec<Threads>,
    /// Held until everything is closed.
    _lock: File,
}

impl AuthServer {
    /// Opens the state (on the first start it creates the authorities and the default roles), binds, and serves.
    pub async fn start(
        opts: AuthOptions,
        shutdown: CancellationToken,
    ) -> Result<AuthServer, AuthError> {
        Self::start_on(opts, None, shutdown).await
    }

    /// The same, on the listener of the process before, where there is one.
    pub async fn start_on(
        opts: AuthOptions,
        inherited: Option<std::net::TcpListener>,
        shutdown: CancellationToken,
    ) -> Result<AuthServer, AuthError> {
        check_cluster_name(&opts.cluster).map_err(|e| AuthError::Internal(e.to_string()))?;
        let dir = opts.data_dir.join("auth");
        store::private_dir(&opts.data_dir)?;
        store::private_dir(&dir)?;
        let lock = db::lock_dir(&dir)?;
        let (kv, kv_threads) = kv::SqliteKv::open(&dir.join("state.db")).await?;
        let kv: kv::SharedKv = Arc::new(kv);
        let (audit, audit_threads) = audit_log::AuditLog::open(&dir.join("audit.db")).await?;
        let (authority, fresh) = Authority::open(&kv, &opts.cluster).await?;
        if fresh {
            state::put_default_roles(&kv).await?;
            tracing::info!(cluster = opts.cluster, pin = ?authority.pins(), "created the cluster's certificate authorities");
        }
        let inventory = inventory::Inventory::open(kv.clone()).await?;
        let passwords = password::Passwords::new().await?;

        let listener = server::bind(&opts.listen, inherited).await?;
        let heir = listener.as_fd().try_clone_to_owned().ok();
        let addr = listener.local_addr().map_err(|e| AuthError::Listen {
            addr: opts.listen.clone(),
            why: e.to_string(),
        })?;
        let socket = opts.data_dir.join("admin.sock");
        let admin = server::bind_admin(&socket)?;
        let (tls, tls_config) = watch::channel(authority.server_config(opts.cert_ttl)?);

        let state: Shared = Arc::new(State::new(
            opts,
            kv,
            audit,
            authority,
            inventory,
            passwords,
            shutdown.clone(),
        ));
        let mut tasks = JoinSet::new();
        tasks.spawn(server::serve(state.clone(), listener, tls_config));
        tasks.spawn(server::serve_admin(state.clone(), admin, socket));
        let renewed = renew(state.clone(), tls);
        tasks.spawn(async move {
            shutdown.run_until_cancelled(renewed).await;
        });
        tracing::info!(%addr, "the Auth Service is listening");
        Ok(AuthServer {
            state,
            addr,
            heir,
            tasks,
            threads: vec![kv_threads, audit_threads],
            _lock: lock,
        })
    }

    /// Where the TLS port really is.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// The listener, for the process that takes over; connections wait in it meanwhile.
    pub fn listener(&mut self) -> Option<OwnedFd> {
        self.heir.take()
    }

    /// The public halves of the cluster's authorities.
    pub fn trust(&self) -> TrustBundle {
        self.state.authority.trust().clone()
    }

    /// A token for the proxy in the same process: kind proxy, one join, five minutes.
    pub async fn mint_proxy_token(&self) -> Result<String, AuthError> {
        let request = CreateTokenRequest {
            kinds: vec!["proxy".into()],
            names: Vec::new(),
            ttl_seconds: 300,
            uses: 1,
            ..CreateTokenRequest::default()
        };
        let created = admin::create_token(&self.state, request).await;
        let created = created.map_err(|status| AuthError::Internal(status.message().to_owned()))?;
        Ok(created.secret.to_string())
    }

    /// Returns when, after the shutdown, calls have ended and the state is closed.
    pub async fn stopped(mut self) {
        // Nobody shall wait in it for an answer.
        self.heir = None;
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(e) = ended {
                tracing::error!("a task of the Auth Service failed: {e}");
            }
        }
        // The last handles of the databases; their threads end after it.
        drop(self.state);
        let threads = self.threads;
        let closed =
            tokio::task::spawn_blocking(move || threads.into_iter().for_each(Threads::join));
        let _ = closed.await;
    }
}

/// Signs a new server certificate at half of the old one's life.
async fn renew(state: Shared, tls: watch::Sender<Arc<rustls::ServerConfig>>) {
    let half = (state.opts.cert_ttl / 2).max(Duration::from_secs(1));
    loop {
        tokio::time::sleep(half).await;
        match state.authority.server_config(state.opts.cert_ttl) {
            Ok(config) => {
                tls.send_replace(config);
            }
            Err(e) => tracing::error!("cannot renew the server certificate: {e}"),
        }
    }
}
