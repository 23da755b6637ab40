//! What the relay may ask of this host, for one user's session.

use super::accounts::{Accounts, Admission};
use super::cancel::{self, Cancels, Held, Target};
use super::events::Recorder;
use super::login;
use super::made::Made;
use super::upstream::{self, Asked};
use crate::decide::{Decider, Offered};
use crate::dial::dial;
use postern_access::Automatic;
use postern_audit::{Emitter, Event, names};
use postern_identity::tls::TlsIdentity;
use postern_identity::{TrustBundle, UserIdentity};
use postern_plugin::{Challenge, Endpoint, PluginEvent};
use postern_relay::{BoxedStream, CodecHost, RelayStats, Secured};
use rustls::pki_types::CertificateDer;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tonic::transport::Channel;
use zeroize::Zeroizing;

/// The principal type whose values are accounts at the server.
const ACCOUNTS: &str = "db_users";

/// Principals as they were asked about.
pub type Principals = Vec<(String, String)>;

pub struct SessionHost {
    pub decider: Decider,
    pub audit: Emitter,
    pub recorder: Recorder,
    pub user: UserIdentity,
    /// As the user authenticated with it.
    pub user_chain: Vec<CertificateDer<'static>>,
    pub resource: Offered,
    /// The CAs of databases.
    pub trust: Arc<TrustBundle>,
    pub auth: watch::Receiver<Option<Channel>>,
    pub source: String,
    pub session_id: String,
    pub cancels: Arc<Cancels>,
    /// The principals that were allowed; `Some` when the session has started.
    pub asked: watch::Sender<Option<Principals>>,
    /// Set when it is on record that the session was refused.
    pub rejected: OnceLock<()>,
    pub made: tokio::sync::Mutex<Made>,
    pub cancel: Mutex<Cancel>,
    /// Where accounts are made for users.
    pub accounts: Option<Arc<Accounts>>,
    /// The account that is made for this session, and that it is.
    pub automatic: Mutex<Option<Automatic>>,
    pub admission: Mutex<Option<Admission>>,
    pub since: Instant,
    /// What stands in all of its events.
    pub about: OnceLock<[(&'static str, serde_json::Value); 6]>,
}

/// This session's own key, and the session that it may cancel.
#[derive(Default)]
pub struct Cancel {
    held: Option<Held>,
    found: Option<Arc<Target>>,
}

pub fn pairs(asked: &[(String, String)]) -> Vec<(&str, &str)> {
    asked
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SessionHost {
    fn about(&self, event: Event) -> Event {
        // Made once: it is in every query's event.
        let about = self.about.get_or_init(|| {
            [
                ("session_id", self.session_id.as_str().into()),
                ("kind", self.resource.id.kind.as_str().into()),
                ("resource", self.resource.id.name.as_str().into()),
                ("user", self.user.name.as_str().into()),
                ("roles", self.user.roles.clone().into()),
                ("source", self.source.as_str().into()),
            ]
        });
        about.iter().fold(event, |event, (key, value)| {
            event.with_value(key, value.clone())
        })
    }

    pub fn reject(&self, why: &str) {
        tracing::info!(
            resource = self.resource.id.name,
            user = self.user.name,
            "refused: {why}"
        );
        let _ = self.rejected.set(());
        let event = self.about(Event::new(names::SESSION_REJECTED));
        self.audit.emit_later(event.with("reason", why));
    }

    /// Resolves when locks or roles no longer allow what the session has been allowed so far.
    pub async fn until_refused(&self) -> String {
        let mut allowed = self.asked.subscribe();
        loop {
            let asked = allowed.borrow_and_update().clone().unwrap_or_default();
            let asked = pairs(&asked);
            let made = lock(&self.automatic).clone();
            let (user, resource) = (&self.user, &self.resource);
            tokio::select! {
                why = self.decider.until_refused(user, resource, &asked, made.as_ref()) => return why,
                // The sender is ours: it lives as long as we do.
                _ = allowed.changed() => {}
            }
        }
    }

    /// Resolves when the session should have been authorized by now, and was not: a client that says nothing would hold a place
    /// that others could have.
    pub async fn until_late(&self, limit: Duration) -> String {
        let mut allowed = self.asked.subscribe();
        let started = allowed.wait_for(Option::is_some);
        let late = tokio::time::timeout(limit, started).await.is_err();
        if !late {
            std::future::pending::<()>().await;
        }
        format!("the client did not say within {limit:?} what it wants to use")
    }

    pub async fn ended(&self, outcome: &Result<RelayStats, String>) {
        if self.asked.borrow().is_none() {
            // The plugin closed it before it asked, or failed. A client that just went away is nothing to tell of.
            let why = match outcome {
                Ok(stats) => stats.closed.as_deref(),
                Err(e) => Some(e.as_str()),
            };
            if let Some(why) = why.filter(|_| self.rejected.get().is_none()) {
                self.reject(why);
            }
            return;
        }
        let flushed = self.recorder.flush().await;
        let duration = self.since.elapsed().as_millis() as u64;
        let mut event = self
            .about(Event::new(names::SESSION_END))
            .with("duration_ms", duration);
        event = match outcome {
            Ok(stats) => event
                .with("bytes_up", stats.to_upstream)
                .with("bytes_down", stats.to_client)
                .with("reason", &stats.closed),
            Err(e) => event.with("error", e),
        };
        let recorded = self.audit.emit(event).await.map_err(|e| e.to_string());
        if let Err(e) = flushed.and(recorded) {
            tracing::error!(
                "the end of session {} is not recorded: {e}",
                self.session_id
            );
        }
    }

    fn principals(&self) -> Principals {
        self.asked.borrow().clone().unwrap_or_default()
    }

    /// May the plugin be this account at the server?
    fn check_account(&self, account: &str) -> Result<(), String> {
        let authorized = self.principals();
        if authorized
            .iter()
            .any(|(k, v)| k == ACCOUNTS && v == account)
        {
            Ok(())
        } else {
            tracing::warn!(
                account,
                session = self.session_id,
                "the plugin wanted to log in as an account that the session was not authorized for"
            );
            Err(format!(
                "account {account:?} was not authorized for this session"
            ))
        }
    }

    /// Everything that is asked about together with what was allowed before: one role must allow all of it.
    fn with_earlier(&self, asked: &[(String, String)]) -> Principals {
        let mut all = self.principals();
        for pair in asked {
            if !all.contains(pair) {
                all.push(pair.clone());
            }
        }
        all
    }

    /// The account that is to be made for the session, where its roles say so, and can be.
    fn automatic(&self, asked: &[(String, String)]) -> Result<Option<Automatic>, String> {
        let (user, resource) = (&self.user, &self.resource);
        let wanted = self.decider.automatic(user, resource, &pairs(asked));
        match wanted {
            Some(_) if self.accounts.is_some() => Ok(wanted),
            // It may have been made by hand, as any other.
            Some(wanted) if wanted.named => Ok(None),
            Some(_) => Err(format!(
                "your roles want account {:?} to be made at {:?}, which is not set up there: its operator gives the resource an `admin`, and logins by certificate",
                user.name, resource.id.name
            )),
            None => Ok(None),
        }
    }

    /// Makes the account ready that the session is going to be.
    async fn admit(&self) -> Result<(), String> {
        let wanted = lock(&self.automatic).clone();
        let (Some(wanted), Some(accounts)) = (wanted, &self.accounts) else {
            return Ok(());
        };
        let facts = self.about(Event::new(names::SESSION_START)).fields;
        let admission = accounts.admit(&self.user.name, &wanted, facts).await?;
        *lock(&self.admission) = Some(admission);
        Ok(())
    }

    /// What the server is shown: nothing where this host logs in with passwords, and to the administrator's endpoint.
    async fn identity(&self, endpoint: Endpoint) -> Result<Option<TlsIdentity>, String> {
        let by_certificate = self.resource.auth == postern_config::UpstreamAuth::Certificate;
        if endpoint != Endpoint::Main || !by_certificate {
            return Ok(None);
        }
        let principals = self.principals();
        let account = principals.iter().find(|(k, _)| k == ACCOUNTS);
        let Some((_, account)) = account else {
            return Ok(None);
        };
        let asked = Asked {
            user_chain: &self.user_chain,
            resource: &self.resource.id.name,
            principals: &principals,
            account,
            session_id: &self.session_id,
        };
        let auth = self.auth.borrow().clone();
        upstream::sign(auth, asked).await.map(Some)
    }

    fn address(&self) -> Result<&str, String> {
        self.resource.address(&self.decider.service)
    }
}

impl CodecHost for SessionHost {
    async fn authorize(&self, asked: &[(String, String)]) -> Result<(), String> {
        let all = self.with_earlier(asked);
        if let Some(admin) = &self.resource.admin
            && all.iter().any(|(k, v)| k == ACCOUNTS && *v == admin.user)
        {
            let why = format!(
                "account {:?} is the administrator's, and no user's",
                admin.user
            );
            self.reject(&why);
            return Err(why);
        }
        let role = self
            .decider
            .check(&self.user, &self.resource, &pairs(&all))
            .inspect_err(|why| self.reject(why))?;
        let automatic = self.automatic(&all).inspect_err(|why| self.reject(why))?;
        let first = self.asked.borrow().is_none();
        let name = if first {
            names::SESSION_START
        } else {
            names::SESSION_PRINCIPALS
        };
        let mut event = self.about(Event::new(name)).with("role", role);
        for (principal, value) in asked {
            event = event.with(principal, value);
        }
        if let Some(wanted) = &automatic {
            event = event
                .with("create_db_user", wanted.afterwards)
                .with("db_roles", &wanted.roles);
        }
        // Nothing is dialled for a session that could not be recorded.
        self.audit.emit(event).await.map_err(|e| {
            tracing::error!("{e}");
            "this host can't record the session; ask its operator to look at the log".to_owned()
        })?;
        let how = self
            .decider
            .recorded(&self.user, &self.resource, &pairs(&all));
        self.recorder.allowed(how);
        *lock(&self.automatic) = automatic;
        self.asked.send_replace(Some(all));
        Ok(())
    }

    async fn connect(&self, endpoint: Endpoint) -> Result<BoxedStream, String> {
        *self.made.lock().await = Made::default();
        if endpoint == Endpoint::Cancel {
            let target = self.to_cancel()?;
            return cancel::dial_for(&target).await;
        }
        if self.asked.borrow().is_none() {
            return Err("the plugin asked to connect before it asked for authorization".into());
        }
        if endpoint == Endpoint::Admin {
            return Err("a session has nothing to do with the administrator".into());
        }
        let address = self.address()?;
        self.admit().await?;
        dial(address).await
    }

    fn needs_tls(&self, endpoint: Endpoint) -> bool {
        if endpoint == Endpoint::Cancel {
            return self.to_cancel().map_or(true, |target| target.needs_tls());
        }
        self.resource.tls.is_some()
    }

    async fn start_tls(&self, endpoint: Endpoint, stream: BoxedStream) -> Result<Secured, String> {
        if endpoint == Endpoint::Cancel {
            let target = self.to_cancel()?;
            return cancel::secure_for(&target, stream).await;
        }
        let id = self.identity(endpoint).await?;
        let mut made = self.made.lock().await;
        made.start_tls(&self.resource, &self.trust, id.as_ref(), stream)
            .await
    }

    async fn answer(&self, _: Endpoint, challenge: Challenge) -> Result<Vec<u8>, String> {
        self.check_account(&challenge.account)?;
        let secret = || login::secret(&self.resource.auth, None, &challenge.account);
        let mut made = self.made.lock().await;
        made.answer(&self.resource, &challenge, secret).await
    }

    async fn secret(&self, _: Endpoint, account: String) -> Result<Zeroizing<Vec<u8>>, String> {
        self.check_account(&account)?;
        self.made.lock().await.cleartext()?;
        let secret = login::secret(&self.resource.auth, None, &account)?;
        Ok(Zeroizing::new(secret.expose().as_bytes().to_vec()))
    }

    fn offer_cancel(&self, key: Vec<u8>, room: usize) -> Result<Vec<u8>, String> {
        if let Some(admission) = lock(&self.admission).as_mut() {
            admission.settled(key.clone());
        }
        let target = Target {
            upstream_key: key,
            resource: self.resource.clone(),
            trust: self.trust.clone(),
            session_id: self.session_id.clone(),
        };
        let (key, held) = self.cancels.offer(target, room)?;
        lock(&self.cancel).held = Some(held);
        Ok(key)
    }

    fn find_cancel(&self, key: &[u8]) -> Option<Vec<u8>> {
        let target = self.cancels.find(key)?;
        let event = cancel::told(&self.decider, &target, &self.source);
        self.audit.emit_later(event.with("user", &self.user.name));
        let key = target.upstream_key.clone();
        lock(&self.cancel).found = Some(target);
        Some(key)
    }

    async fn event(&self, event: PluginEvent) -> Result<(), String> {
        self.recorder.record(event, |e| self.about(e)).await
    }
}

impl SessionHost {
    /// The session that this connection has named by its key.
    fn to_cancel(&self) -> Result<Arc<Target>, String> {
        let found = lock(&self.cancel).found.clone();
        found.ok_or_else(|| "there is no session to cancel".to_owned())
    }
}

#[cfg(test)]
mod tests;
