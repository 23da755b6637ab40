//! What remains to be done for a service that was removed and has drained: its last audit events go to Auth, Auth
//! forgets it, and after a rest its keys are deleted. All of it is taken up again after a restart; put back before the
//! end, the service is as it was.

use super::member::Home;
use super::spec::Common;
use super::{Shared, actor::Outlet};
use crate::status::ServiceState;
use postern_api::status::{self, reasons};
use postern_api::v1::{LeaveRequest, agent_service_client::AgentServiceClient};
use postern_membership::{backoff, unix_now};
use std::path::PathBuf;
use std::time::Duration;
use tonic::transport::Channel;

/// For one question to Auth.
const ASK: Duration = Duration::from_secs(10);

/// Returns when nothing of the service is left. May be dropped at any point and begun again.
pub async fn leave(home: &Home, shared: &Shared, common: &Common, outlet: &Outlet) {
    let since = removed_since(home);
    let until = since + common.forget_after.as_secs();
    outlet.status.send_modify(|s| {
        s.state = ServiceState::Removed;
        s.reason = Some("waiting for Auth to take its last audit events".into());
        s.until_unix = Some(until);
        s.sessions = 0;
        s.tunnel_rtt_ms = None;
    });
    tell(home, shared, common).await;
    outlet.status.send_modify(|s| s.reason = None);
    tokio::time::sleep(Duration::from_secs(until.saturating_sub(unix_now()))).await;
    match std::fs::remove_dir_all(home.dir.path()) {
        Ok(()) => {
            tracing::info!(dir = %home.dir.path().display(), "keys of a removed service deleted")
        }
        Err(e) => tracing::error!("{}: cannot delete: {e}", home.dir.path().display()),
    }
}

/// It is wanted again.
pub fn returned(home: &Home) {
    let _ = std::fs::remove_file(marker(home));
}

/// Where it stands on disk since when the service is gone, so that a restart does not begin the rest anew.
fn marker(home: &Home) -> PathBuf {
    home.dir.path().join("removed")
}

fn removed_since(home: &Home) -> u64 {
    let file = marker(home);
    let known = std::fs::read_to_string(&file)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let now = unix_now();
    known.filter(|since| *since <= now).unwrap_or_else(|| {
        if let Err(e) = postern_identity::store::write_secret(&file, now.to_string().as_bytes()) {
            tracing::warn!("{e}");
        }
        now
    })
}

/// Delivers what is spooled, and says goodbye. Without credentials there is nobody to say it to.
async fn tell(home: &Home, shared: &Shared, common: &Common) {
    let Some(channel) = channel(home, shared, common) else {
        return;
    };
    home.audit.drained().await;
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

/// The channel the service had, or after a restart one by what is on disk.
fn channel(home: &Home, shared: &Shared, common: &Common) -> Option<Channel> {
    if let Some(channel) = home.auth.borrow().clone() {
        return Some(channel);
    }
    let held = match home.dir.credentials() {
        Ok(held) => held?,
        Err(e) => {
            tracing::warn!("{e}");
            return None;
        }
    };
    if held.expired() {
        tracing::warn!(
            dir = %home.dir.path().display(),
            "the certificates of a removed service have expired: what is left in its spool can't be delivered"
        );
        return None;
    }
    match held.auth_channel(&common.proxy_addr, &shared.cluster) {
        Ok(channel) => {
            home.auth.send_replace(Some(channel.clone()));
            Some(channel)
        }
        Err(e) => {
            tracing::warn!("{e}");
            None
        }
    }
}
