//! Accounts that are made at a server for users whose roles say so (`create_db_user`). Each visit of the server is a task of the
//! plugin, on an instance of its own, as the administrator of the resource: before a session connects ([`Accounts::admit`]),
//! behind it (when its [`Admission`] is dropped, however it ended), and in rounds for what a crash has left ([`rounds`]).
//! Which account, with which roles, is what this host has decided; what has to be done for it at the server is the plugin's to
//! know, and whether anybody else uses the account is the server's.

use super::events::Recorder;
use super::login;
use super::made::Made;
use crate::decide::Offered;
use crate::dial::dial;
use crate::session::Served;
use postern_access::{AfterSession, Automatic, Recorded};
use postern_audit::{Event, names};
use postern_config::{Secret, UpstreamAdmin, UpstreamAuth};
use postern_identity::TrustBundle;
use postern_plugin::{Account, Administrator, Afterwards, Challenge, Endpoint, PluginEvent, Task};
use postern_relay::{BoxedStream, CodecHost, Secured};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, DuplexStream};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

/// For an account to be made.
const READY: Duration = Duration::from_secs(30);
/// For the session to log in with it, while it must stay as it is.
const HOLD: Duration = Duration::from_secs(60);
/// For a visit that has done its work to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);
/// For an account to be taken back.
const DISMISS: Duration = Duration::from_secs(30);
const SWEEP: Duration = Duration::from_secs(120);
/// From one round to the next, at first; what a crash has left may be busy at the server for a while.
const FIRST_ROUNDS: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_secs(5),
    Duration::from_secs(30),
];
const ROUND: Duration = Duration::from_secs(300);

/// What the host knows of whom and where, for events.
pub type Facts = serde_json::Map<String, serde_json::Value>;

/// The accounts at one resource's server.
pub struct Accounts {
    served: Arc<Served>,
    resource: Offered,
    admin: UpstreamAdmin,
    trust: TrustBundle,
    /// What is done behind a session is waited for like a session.
    tracker: TaskTracker,
}

impl Accounts {
    /// `None` where none are made.
    pub fn of(
        served: &Arc<Served>,
        resource: &Offered,
        trust: &TrustBundle,
        tracker: &TaskTracker,
    ) -> Option<Arc<Accounts>> {
        // An account that was just made has no password.
        let by_certificate = resource.auth == UpstreamAuth::Certificate;
        let admin = resource.admin.clone()?;
        (by_certificate && served.plugin.makes_accounts()).then(|| {
            Arc::new(Accounts {
                served: served.clone(),
                resource: resource.clone(),
                admin,
                trust: trust.clone(),
                tracker: tracker.clone(),
            })
        })
    }

    /// Makes the account ready for a session, which connects next. The error is worded for the user.
    pub async fn admit(
        self: &Arc<Self>,
        name: &str,
        wanted: &Automatic,
        facts: Facts,
    ) -> Result<Admission, String> {
        let account = Account {
            name: name.to_owned(),
            roles: wanted.roles.clone(),
            afterwards: match wanted.afterwards {
                AfterSession::Keep => Afterwards::Keep,
                AfterSession::Drop => Afterwards::Drop,
            },
        };
        let (mut ours, theirs) = tokio::io::duplex(64);
        let (accounts, told) = (self.clone(), facts.clone());
        let visit = self.tracker.spawn(async move {
            let visit = accounts.visit(Task::Admit(account), theirs, &told);
            let done = tokio::time::timeout(READY + HOLD, visit).await;
            done.unwrap_or_else(|_| Err("the session did not log in in time".into()))
        });
        // From here on there may be something to take back, whatever happens.
        let mut admission = Admission {
            accounts: self.clone(),
            account: name.to_owned(),
            facts,
            key: None,
            hold: None,
            visit: Some(visit),
        };
        let failed = |why: String| {
            tracing::warn!(
                resource = self.resource.id.name,
                account = name,
                "no account was made ready: {why}"
            );
            Err(format!("account {name:?} could not be made ready: {why}"))
        };
        let mut said = [0];
        match tokio::time::timeout(READY, ours.read(&mut said)).await {
            Ok(Ok(1)) => {
                admission.hold = Some(ours);
                Ok(admission)
            }
            Ok(_) => {
                drop(ours);
                let ended = match &mut admission.visit {
                    Some(visit) => visit.await,
                    None => Ok(Ok(())),
                };
                admission.visit = None;
                match ended {
                    Ok(Err(why)) => failed(why),
                    Ok(Ok(())) => failed("the plugin did not do it".into()),
                    Err(e) => failed(e.to_string()),
                }
            }
            Err(_) => failed(format!("not within {READY:?}")),
        }
    }

    async fn dismiss(&self, account: String, key: Option<Vec<u8>>, facts: &Facts) {
        let task = Task::Dismiss {
            account: account.clone(),
            key,
        };
        if let Err(why) = self.alone(task, facts, DISMISS).await {
            tracing::error!(
                resource = self.resource.id.name,
                account,
                "what the account was given is not taken back yet: {why}; it is tried again within {ROUND:?}"
            );
            metrics::counter!("postern_agent_accounts_left_total").increment(1);
            let event = Event::new(names::ACCOUNT_LEFT).with("account", account);
            let event = with(event, facts).with("reason", why);
            self.served.audit.emit_later(event);
        }
    }

    /// A visit that nobody waits for an answer of but for its end.
    async fn alone(&self, task: Task, facts: &Facts, limit: Duration) -> Result<(), String> {
        let (mut ours, theirs) = tokio::io::duplex(64);
        let visit = self.visit(task, theirs, facts);
        let closed = async {
            let mut said = [0; 64];
            while ours.read(&mut said).await.is_ok_and(|n| n > 0) {}
            drop(ours);
        };
        match tokio::time::timeout(limit, async { tokio::join!(visit, closed).0 }).await {
            Ok(done) => done,
            Err(_) => Err(format!("it took more than {limit:?}")),
        }
    }

    /// One task, from the connection to its end.
    async fn visit(&self, task: Task, client: DuplexStream, facts: &Facts) -> Result<(), String> {
        let admin = Administrator {
            user: self.admin.user.clone(),
            database: self.admin.database.clone(),
        };
        let served = &self.served;
        let session = facts.get("session_id").and_then(|id| id.as_str());
        let codec = served
            .plugin
            .task(&served.settings, session.unwrap_or("sweep"), &admin, task)
            .await
            .map_err(|e| e.to_string())?;
        let built_in = !served.options.plugin_is_path();
        let kind = &self.resource.id.kind;
        let recorder = Recorder::new(served.audit.clone(), kind, built_in);
        // What an account was given is on disk before it is used.
        recorder.allowed(Recorded {
            strict: true,
            parameters: false,
        });
        let visit = Visit {
            accounts: self,
            recorder,
            facts,
            made: Mutex::default(),
        };
        let stats = postern_relay::run_codec(client, codec, &visit).await;
        match stats.map_err(|e| e.to_string())?.closed {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }
}

fn with(event: Event, facts: &Facts) -> Event {
    facts
        .iter()
        .fold(event, |event, (key, value)| event.with(key, value))
}

/// An account is ready for a session. When this is dropped it is taken back, unless others use it.
pub struct Admission {
    accounts: Arc<Accounts>,
    account: String,
    facts: Facts,
    /// The server's, of the session.
    key: Option<Vec<u8>>,
    /// While it lives, the account stays as it is.
    hold: Option<DuplexStream>,
    visit: Option<JoinHandle<Result<(), String>>>,
}

impl Admission {
    /// The session has logged in, and the server has given it this key.
    pub fn settled(&mut self, key: Vec<u8>) {
        self.key = Some(key);
        self.hold = None;
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        // Without a runtime the process ends; the next one's first round finds it.
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        self.hold = None;
        let (accounts, facts) = (self.accounts.clone(), std::mem::take(&mut self.facts));
        let (account, key) = (std::mem::take(&mut self.account), self.key.take());
        let visit = self.visit.take();
        let tracker = self.accounts.tracker.clone();
        let dismiss = async move {
            // Nothing may be given any more behind what takes it back.
            if let Some(mut visit) = visit
                && tokio::time::timeout(GOODBYE, &mut visit).await.is_err()
            {
                visit.abort();
                let _ = visit.await;
            }
            accounts.dismiss(account, key, &facts).await;
        };
        tracker.spawn_on(dismiss, &runtime);
    }
}

/// Takes back what nobody uses any more, at all servers of a service, for as long as there is one.
pub async fn rounds(mut served: watch::Receiver<Arc<Served>>, tracker: TaskTracker) {
    loop {
        let now = served.borrow_and_update().clone();
        let changed = async { served.changed().await.is_ok() };
        let lives = tokio::select! {
            lives = changed => lives,
            () = forever(&now, &tracker) => false,
        };
        if !lives {
            return;
        }
    }
}

async fn forever(served: &Arc<Served>, tracker: &TaskTracker) {
    let mut held = served.held.clone();
    let credentials = match held.wait_for(|held| held.credentials.is_some()).await {
        Ok(held) => held.credentials.clone(),
        Err(_) => None,
    };
    let Some(credentials) = credentials else {
        return std::future::pending().await;
    };
    let mut said: Vec<Option<String>> = vec![None; served.offered.len()];
    let mut waits = FIRST_ROUNDS.into_iter();
    loop {
        tokio::time::sleep(waits.next().unwrap_or(ROUND)).await;
        let trust = served.decider.trust(&credentials.trust);
        for (resource, said) in served.offered.iter().zip(&mut said) {
            let Some(accounts) = Accounts::of(served, resource, &trust, tracker) else {
                continue;
            };
            let outcome = accounts.sweep().await.err();
            // Once for each reason.
            if let Some(why) = &outcome
                && outcome != *said
            {
                tracing::warn!(
                    resource = resource.id.name,
                    "accounts that nobody uses may not be taken back: {why}; it is tried again within {ROUND:?}"
                );
            }
            *said = outcome;
        }
    }
}

impl Accounts {
    async fn sweep(&self) -> Result<(), String> {
        let id = &self.resource.id;
        let facts = [("kind", &id.kind), ("resource", &id.name)];
        let facts = facts.map(|(key, value)| (key.to_owned(), value.as_str().into()));
        self.alone(Task::Sweep, &facts.into_iter().collect(), SWEEP)
            .await
    }
}

/// What the relay may ask for during a task.
struct Visit<'a> {
    accounts: &'a Accounts,
    recorder: Recorder,
    facts: &'a Facts,
    made: Mutex<Made>,
}

impl Visit<'_> {
    /// The administrator's secret, and nobody else's.
    fn secret_of(&self, account: &str) -> Result<Secret, String> {
        let accounts = self.accounts;
        if account != accounts.admin.user {
            return Err(format!(
                "{account:?} is not the administrator of this resource"
            ));
        }
        login::secret(&accounts.resource.auth, Some(&accounts.admin), account)
    }
}

impl CodecHost for Visit<'_> {
    async fn authorize(&self, _: &[(String, String)]) -> Result<(), String> {
        Err("there is no user to be authorized".into())
    }

    async fn connect(&self, endpoint: Endpoint) -> Result<BoxedStream, String> {
        if endpoint != Endpoint::Admin {
            return Err("a task is the administrator's".into());
        }
        *self.made.lock().await = Made::default();
        let service = &self.accounts.served.decider.service;
        dial(self.accounts.resource.address(service)?).await
    }

    fn needs_tls(&self, _: Endpoint) -> bool {
        self.accounts.resource.tls.is_some()
    }

    async fn start_tls(&self, _: Endpoint, stream: BoxedStream) -> Result<Secured, String> {
        let Accounts {
            resource, trust, ..
        } = self.accounts;
        let mut made = self.made.lock().await;
        made.start_tls(resource, trust, None, stream).await
    }

    async fn answer(&self, _: Endpoint, challenge: Challenge) -> Result<Vec<u8>, String> {
        let mut made = self.made.lock().await;
        let secret = || self.secret_of(&challenge.account);
        made.answer(&self.accounts.resource, &challenge, secret)
            .await
    }

    async fn secret(&self, _: Endpoint, account: String) -> Result<Zeroizing<Vec<u8>>, String> {
        let secret = self.secret_of(&account)?;
        self.made.lock().await.cleartext()?;
        Ok(Zeroizing::new(secret.expose().as_bytes().to_vec()))
    }

    async fn event(&self, event: PluginEvent) -> Result<(), String> {
        self.recorder.record(event, |e| with(e, self.facts)).await
    }
}
