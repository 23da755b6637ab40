//! Tells Auth every 10 s that this member is alive, and what it offers.

use postern_api::status::{self, reasons};
use postern_api::v1::{HeartbeatRequest, agent_service_client::AgentServiceClient};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tonic::transport::Channel;

const EVERY: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);

/// Runs until dropped. `rejoin` is told where Auth no longer takes our credentials. `beat` says what is offered now; a new channel (renewed credentials) beats at once.
pub async fn heartbeat(
    mut auth: watch::Receiver<Channel>,
    rejoin: Arc<Notify>,
    mut beat: impl FnMut() -> HeartbeatRequest,
) {
    loop {
        let channel = auth.borrow_and_update().clone();
        let mut client = AgentServiceClient::new(channel);
        let pause = match tokio::time::timeout(EVERY, client.heartbeat(beat())).await {
            Ok(Ok(answer)) => {
                for why in answer.into_inner().reasons {
                    tracing::warn!("Auth does not list a resource of this host: {why}");
                }
                EVERY
            }
            Ok(Err(s)) => {
                tracing::debug!("heartbeat: {}", status::describe(&s));
                if let Some(reasons::LOCKED | reasons::NOT_FOUND) = status::reason(&s) {
                    rejoin.notify_one();
                }
                RETRY
            }
            Err(_) => RETRY,
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            r = auth.changed() => if r.is_err() { return std::future::pending().await },
        }
    }
}

/// This machine's name, for the inventory; empty if it has none.
pub fn hostname() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|h| h.into_string().ok())
        .unwrap_or_default()
}
