//! The membership of one service while it is reconfigured: its home on disk, the task that joins and renews, and the
//! channel to Auth. Asking for other names, or by another token, replaces the task and leaves what is held in use until
//! the answer is there.

use super::spec::Spec;
use crate::AgentError;
use postern_audit::{Emitter, Spool};
use postern_config::JoinParams;
use postern_identity::HostKey;
use postern_membership::{Credentials, Holding, Joiner, MemberDir, RootOfTrust, TokenSource, hold};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Channel;

/// Spooled audit events of one service take no more disk than this.
const SPOOL_BYTES: u64 = 256 << 20;

/// How often spools are looked for that another process has left.
const LOOK_FOR_OTHERS: Duration = Duration::from_secs(30);

/// What a service has on disk, and the channel through which its events and heartbeats go.
pub struct Home {
    pub dir: MemberDir,
    pub audit: Emitter,
    /// `None` until the first credentials are there.
    pub auth: watch::Sender<Option<Channel>>,
    pub holding: watch::Sender<Holding>,
    /// Auth takes the credentials no longer, or its record is gone: join again.
    pub rejoin: Arc<Notify>,
    _deliver: AbortOnDropHandle<()>,
}

impl Home {
    /// Opens (or makes) `<data_dir>/services/<name>` and begins to deliver what its spool holds.
    pub async fn open(data_dir: &Path, name: &str) -> Result<Self, AgentError> {
        let dir = MemberDir::open(data_dir.join("services").join(name))?;
        let spools = dir.path().join("spool");
        let (spool, audit) = Spool::open_free(&spools, SPOOL_BYTES).await?;
        let (auth, auth_rx) = watch::channel(None);
        let deliver = tokio::spawn(async move {
            let send = |events| submit(auth_rx.clone(), events);
            tokio::join!(spool.deliver(send), deliver_others(&spools, &auth_rx));
        });
        Ok(Home {
            dir,
            audit,
            auth,
            holding: watch::Sender::new(Holding::default()),
            rejoin: Arc::new(Notify::new()),
            _deliver: AbortOnDropHandle::new(deliver),
        })
    }

    /// Whether all audit events of this service are Auth's, those of other processes of this host too.
    pub async fn delivered(&self) -> bool {
        let spools = self.dir.path().join("spool");
        let others = postern_audit::others(&spools, SPOOL_BYTES).await;
        // One is ours.
        let alone = others.is_ok_and(|o| o.busy <= 1 && o.left.is_empty());
        alone && self.audit.flush().await.is_ok() && self.audit.state().events == 0
    }

    pub fn held(&self) -> watch::Receiver<Holding> {
        self.holding.subscribe()
    }

    /// What is in use now.
    pub fn credentials(&self) -> Option<Arc<Credentials>> {
        self.holding.borrow().credentials.clone()
    }
}

/// What the joining depends on: where one of these changes, it begins anew.
#[derive(Clone, PartialEq)]
struct Wanted {
    kind: String,
    names: Vec<String>,
    token: Option<JoinParams>,
    addr: String,
    root: RootOfTrust,
}

/// The task that joins and renews.
pub struct Member {
    wanted: Wanted,
    task: AbortOnDropHandle<()>,
}

impl Member {
    /// `ask_first`: what is on disk is not used before Auth was asked.
    pub fn start(
        home: &Home,
        spec: &Spec,
        (cluster, host_key): (&str, &Arc<HostKey>),
        ask_first: bool,
    ) -> Self {
        let wanted = Wanted::of(spec);
        let joiner = Joiner {
            cluster: cluster.to_owned(),
            addr: wanted.addr.clone(),
            service: spec.name.clone(),
            kind: wanted.kind.clone(),
            names: wanted.names.clone(),
            host_key: host_key.clone(),
            token: wanted
                .token
                .clone()
                .map_or(TokenSource::None, TokenSource::Params),
            root: wanted.root.clone(),
            dir: home.dir.clone(),
            ask_first,
        };
        let task = tokio::spawn(hold(joiner, home.holding.clone(), home.rejoin.clone()));
        Member {
            wanted,
            task: AbortOnDropHandle::new(task),
        }
    }

    /// Ends the task, and waits for that: until then it may write credentials that the next one must know of.
    pub async fn stop(member: &mut Option<Member>) {
        if let Some(member) = member.take() {
            member.task.abort();
            let _ = member.task.await;
        }
    }

    pub fn fits(&self, spec: &Spec) -> bool {
        self.wanted == Wanted::of(spec)
    }
}

impl Wanted {
    fn of(spec: &Spec) -> Self {
        Wanted {
            kind: spec.kind.clone(),
            names: spec.names(),
            token: spec.join_params().cloned(),
            addr: spec.common.proxy_addr.clone(),
            root: spec.common.root.clone(),
        }
    }
}

/// What processes before this one could not deliver, and what those that have handed over leave behind.
async fn deliver_others(spools: &Path, auth: &watch::Receiver<Option<Channel>>) {
    loop {
        match postern_audit::others(spools, SPOOL_BYTES).await {
            Ok(others) => {
                let send = |events| submit(auth.clone(), events);
                let left = others.left.into_iter().map(|left| left.finish(send));
                futures::future::join_all(left).await;
            }
            Err(e) => tracing::warn!("{e}"),
        }
        tokio::time::sleep(LOOK_FOR_OTHERS).await;
    }
}

async fn submit(
    mut auth: watch::Receiver<Option<Channel>>,
    events: Vec<String>,
) -> Result<(), String> {
    let channel = match auth.wait_for(Option::is_some).await {
        Ok(channel) => channel.clone(),
        Err(_) => None,
    };
    let Some(channel) = channel else {
        return Err("the service is going".into());
    };
    let events_json = events.clone();
    let stored = postern_api::v1::agent_service_client::AgentServiceClient::new(channel)
        .submit_events(postern_api::v1::SubmitEventsRequest { events_json })
        .await
        .map_err(|s| postern_api::status::describe(&s))?
        .into_inner()
        .stored_uids;
    // As a rule it has stored all of them, in order; reading each to find that out would cost more than all else here.
    let same = |(event, uid): (&String, &String)| event.contains(uid.as_str());
    if stored.len() == events.len() && events.iter().zip(&stored).all(same) {
        return Ok(());
    }
    // Sending such an event again would not help, but it must not vanish without a word.
    let stored: HashSet<&str> = stored.iter().map(String::as_str).collect();
    let read = events.iter().filter_map(|e| serde_json::from_str(e).ok());
    for lost in read.filter(|e: &postern_audit::Event| !stored.contains(e.uid.as_str())) {
        tracing::error!(
            uid = lost.uid,
            event = lost.event,
            "Auth did not store an audit event"
        );
    }
    Ok(())
}
