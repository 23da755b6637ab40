//! What the services of the Auth Service share. Each part owns its own state; this only holds them together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern_access::{Lock, Role, Rule};
use postern_audit::Event;
use postern_identity::UserIdentity;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::AuthOptions;
use crate::audit_log::AuditLog;
use crate::authority::Authority;
use crate::error::AuthError;
use crate::inventory::Inventory;
use crate::issuers::Issuers;
use crate::kv::{KvError, KvExt, SharedKv, Txn};
use crate::limits::Limiter;
use crate::password::Passwords;
use crate::records::{self, Record, lock_key, role_key};
use crate::time;

/// More wait: each is a transaction in the end, and those are written one after the other.
const JOINS: usize = 256;

pub type Shared = Arc<State>;

/// See the module.
pub struct State {
    pub opts: AuthOptions,
    pub kv: SharedKv,
    pub audit: AuditLog,
    pub authority: Authority,
    pub inventory: Inventory,
    pub passwords: Passwords,
    /// Keys of issuers of ID tokens.
    pub issuers: Issuers,
    /// Joins that are being answered at the same time.
    pub joining: Arc<Semaphore>,
    /// Failed logins and enrolments by user and address ([`network`]). Behind a proxy that passes Auth through, the
    /// address is the proxy's: then this is by user.
    ///
    /// [`network`]: crate::limits::network
    pub login_limit: Limiter,
    /// Failed logins and enrolments by address.
    pub login_peer_limit: Limiter,
    /// Refused joins of unknown hosts by address. Apart from logins: whoever floods one does not stop the other.
    pub join_peer_limit: Limiter,
    /// Refusals written to the audit log, by caller: a locked agent calls every few seconds.
    pub refusal_limit: Limiter,
    pub shutdown: CancellationToken,
}

impl State {
    pub fn new(
        opts: AuthOptions,
        kv: SharedKv,
        audit: AuditLog,
        authority: Authority,
        inventory: Inventory,
        passwords: Passwords,
        shutdown: CancellationToken,
    ) -> Self {
        State {
            opts,
            kv,
            audit,
            authority,
            inventory,
            passwords,
            issuers: Issuers::default(),
            joining: Arc::new(Semaphore::new(JOINS)),
            login_limit: Limiter::new(5, Duration::from_secs(10)),
            login_peer_limit: Limiter::new(200, Duration::from_millis(200)),
            join_peer_limit: Limiter::new(200, Duration::from_millis(200)),
            refusal_limit: Limiter::new(3, Duration::from_secs(60)),
            shutdown,
        }
    }

    pub fn cluster(&self) -> &str {
        &self.opts.cluster
    }

    /// An event of Auth's own.
    pub fn event(&self, name: &str) -> Event {
        Event::new(name).with("cluster", &self.opts.cluster)
    }

    /// Stores an event. What it tells of has happened: a log that cannot be written is an operator's problem, told
    /// in the service log, and no reason to say that it has not.
    pub async fn record(&self, event: Event) {
        let name = event.event.clone();
        if let Err(e) = self.audit.append(vec![event]).await {
            tracing::error!(event = name, "cannot store an audit event: {e}");
        }
    }

    /// The first of these locks that is in force.
    pub async fn locked(&self, targets: &[String]) -> Result<Option<Lock>, KvError> {
        let keys = targets.iter().map(|t| lock_key(t)).collect();
        let now = u64::try_from(time::now()).unwrap_or(0);
        for entry in self.kv.get_many(keys).await?.into_iter().flatten() {
            let lock = records::decode::<Lock>(&entry)?.value;
            if lock.holds_at(now) {
                return Ok(Some(lock));
            }
        }
        Ok(None)
    }

    /// The roles with these names that exist. A name without a role allows nothing.
    pub async fn roles(&self, names: &[String]) -> Result<Vec<Role>, KvError> {
        let keys = names.iter().map(|n| role_key(n)).collect();
        let entries = self.kv.get_many(keys).await?;
        entries
            .into_iter()
            .flatten()
            .map(|e| Ok(records::decode::<Role>(&e)?.value))
            .collect()
    }

    /// The logins that the roles allow this user by name.
    pub fn logins(user: &UserIdentity, roles: &[Role]) -> Vec<String> {
        let subject = postern_access::Subject {
            user: &user.name,
            roles,
            traits: &user.traits,
        };
        postern_access::allowed_principals(&subject, "ssh", "logins")
    }

    /// Puts a lock; with an expiry it lifts itself.
    pub async fn put_lock(&self, lock: &Lock) -> Result<(), KvError> {
        self.kv
            .commit(with_lock(Txn::new(), lock))
            .await
            .map(|_| ())
    }
}

/// Adds a lock to a transaction.
pub fn with_lock(txn: Txn, lock: &Lock) -> Txn {
    let key = lock_key(&lock.target);
    match lock.expires_unix {
        None => txn.put(key, lock.encode()),
        Some(at) => {
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(at);
            txn.put_for(
                key,
                lock.encode(),
                at.duration_since(SystemTime::now()).unwrap_or_default(),
            )
        }
    }
}

/// The roles of a new cluster.
pub async fn put_default_roles(kv: &SharedKv) -> Result<(), AuthError> {
    let any = BTreeMap::from([("*".to_owned(), vec!["*".to_owned()])]);
    let ssh = Rule {
        labels: any.clone(),
        principals: BTreeMap::from([("logins".to_owned(), vec!["{{internal.logins}}".to_owned()])]),
    };
    let tcp = Rule {
        labels: any,
        principals: BTreeMap::new(),
    };
    let access = Role {
        name: "access".to_owned(),
        allow: BTreeMap::from([("ssh".to_owned(), ssh), ("tcp".to_owned(), tcp)]),
        ..Role::default()
    };
    match kv
        .compare_and_swap(&role_key(&access.name), None, access.encode())
        .await
    {
        Ok(_) | Err(KvError::Conflict { .. }) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
