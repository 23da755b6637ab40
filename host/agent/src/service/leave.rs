//! What remains to be done for a service that was removed and has drained: its last audit events go to Auth, Auth
//! forgets it, and after a rest its keys are deleted. All of it is taken up again after a restart; put back before the
//! end, the service is as it was.

use super::member::Home;
use super::spec::Common;
use super::{Shared, actor::Outlet};
use crate::status::ServiceState;
use postern_api::status::{self, reasons};
use postern_api::v1::{LeaveRequest, agent_service_client::AgentServiceClient};
use postern_membership::{Credentials, JoinError, Joiner, TokenSource, backoff, unix_now};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::transport::Channel;

/// For one question to Auth.
const ASK: Duration = Duration::from_secs(10);
/// For Auth to take the last events before the goodbye; what is not delivered then still is afterwards.
const EVENTS: Duration = Duration::from_secs(60);
/// How often it is looked whether all events are delivered.
const LOOK: Duration = Duration::from_secs(2);

/// Returns when nothing of the service is left. May be dropped at any point and begun again.
pub async fn leave(name: &str, home: &Home, shared: &Shared, common: &Common, outlet: &Outlet) {
    let until = removed_since(home) + common.forget_after.as_secs();
    let waits = |reason: Option<&str>| {
        outlet.status.send_modify(|s| {
            s.state = ServiceState::Removed;
            s.reason = reason.map(str::to_owned);
            s.until_unix = Some(until);
            s.sessions = 0;
            s.tunnel_rtt_ms = None;
        });
    };
    waits(Some("waiting for Auth to take its last audit events"));
    // The others know other ways.
    shared.auth.send_modify(|ways| {
        ways.remove(name);
    });
    let channel = channel(name, home, shared, common).await;
    if let Some(channel) = channel.clone().filter(|_| !has_left(home)) {
        let _ = tokio::time::timeout(EVENTS, home.audit.drained()).await;
        say_goodbye(channel).await;
        mark(&left(home), unix_now());
    }
    waits(None);
    tokio::time::sleep(Duration::from_secs(until.saturating_sub(unix_now()))).await;
    // What Auth has not got is not deleted, and neither is what another process writes into.
    while channel.is_some() && !home.delivered().await {
        waits(Some(
            "Auth has not got all of its audit events, or another process still has sessions of it",
        ));
        tokio::time::sleep(LOOK).await;
    }
    match std::fs::remove_dir_all(home.dir.path()) {
        Ok(()) => {
            tracing::info!(dir = %home.dir.path().display(), "keys of a removed service deleted");
        }
        Err(e) => tracing::error!("{}: cannot delete: {e}", home.dir.path().display()),
    }
}

/// It is wanted again.
pub fn returned(home: &Home) {
    let _ = std::fs::remove_file(removed(home));
}

/// Auth has been told that the service is gone, and may have given its names away.
pub fn has_left(home: &Home) -> bool {
    left(home).exists()
}

/// Auth knows it again.
pub fn joined_again(home: &Home) {
    let _ = std::fs::remove_file(left(home));
}

/// Where it stands on disk since when the service is gone, so that a restart does not begin the rest anew.
fn removed(home: &Home) -> PathBuf {
    home.dir.path().join("removed")
}

fn left(home: &Home) -> PathBuf {
    home.dir.path().join("left")
}

fn removed_since(home: &Home) -> u64 {
    let file = removed(home);
    let known = std::fs::read_to_string(&file)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let now = unix_now();
    known
        .filter(|since| *since <= now)
        .unwrap_or_else(|| mark(&file, now))
}

fn mark(file: &Path, now: u64) -> u64 {
    if let Err(e) = postern_identity::store::write_secret(file, now.to_string().as_bytes()) {
        tracing::warn!("{e}");
    }
    now
}

async fn say_goodbye(channel: Channel) {
    let mut client = AgentServiceClient::new(channel);
    for pause in backoff() {
        let why = match tokio::time::timeout(ASK, client.leave(LeaveRequest {})).await {
            Ok(Ok(_)) => return,
            Ok(Err(s))
                if matches!(
                    status::reason(&s),
                    Some(reasons::NOT_FOUND | reasons::LOCKED | reasons::BAD_CERTIFICATE)
                ) =>
            {
                return;
            }
            Ok(Err(s)) => status::describe(&s),
            Err(_) => format!("no answer within {ASK:?}"),
        };
        tracing::debug!("leaving the cluster: {why}");
        tokio::time::sleep(pause).await;
    }
}

/// The channel the service had, or after a restart one by what is on disk. Without credentials there is nobody to
/// speak to.
async fn channel(name: &str, home: &Home, shared: &Shared, common: &Common) -> Option<Channel> {
    if let Some(channel) = home.auth.borrow().clone() {
        return Some(channel);
    }
    let told = |e: &dyn std::fmt::Display| tracing::warn!(service = name, "{e}");
    let mut held = home
        .dir
        .credentials()
        .inspect_err(|e| told(e))
        .ok()
        .flatten()?;
    if held.expired() {
        held = renewed(name, home, shared, common, &held).await?;
    }
    let channel = held
        .auth_channel(&common.proxy_addr, &shared.cluster)
        .inspect_err(|e| told(e))
        .ok()?;
    home.auth.send_replace(Some(channel.clone()));
    Some(channel)
}

/// For a host that slept: within the rejoin window the host key is enough, and the events are delivered after all.
async fn renewed(
    name: &str,
    home: &Home,
    shared: &Shared,
    common: &Common,
    held: &Credentials,
) -> Option<Credentials> {
    let joiner = Joiner {
        cluster: shared.cluster.clone(),
        addr: common.proxy_addr.clone(),
        service: name.to_owned(),
        kind: held.kind.clone(),
        names: held.names.clone(),
        host_key: shared.host_key.clone(),
        token: TokenSource::None,
        root: common.root.clone(),
        dir: home.dir.clone(),
        ask_first: true,
    };
    for pause in backoff() {
        match joiner.join(Some(held)).await {
            Ok(fresh) => return Some(fresh),
            Err(e @ JoinError::Refused { .. }) => {
                tracing::warn!("{e}; its last audit events are not delivered");
                return None;
            }
            Err(e) => tracing::debug!("{e}"),
        }
        tokio::time::sleep(pause).await;
    }
    None
}
