//! Keeps one member's credentials alive: joins, retries, renews at half-life (D3).

use crate::backoff;
use crate::credentials::Credentials;
use crate::join::{JoinError, Joiner};
use postern_api::status::reasons;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// How often a changed token is looked for while a join is being refused.
const TOKEN_POLL: Duration = Duration::from_millis(500);
/// A refusal seldom heals by itself: no need to ask as often as after a broken connection.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// What a member holds, and how its joining goes.
#[derive(Clone, Default)]
pub struct Holding {
    /// The newest credentials; valid ones, unless Auth has been away for long.
    pub credentials: Option<Arc<Credentials>>,
    /// Why the last attempt failed, until one succeeds.
    pub failed: Option<String>,
}

impl Holding {
    /// Waits for credentials newer than those last seen through `rx`.
    pub async fn next(rx: &mut watch::Receiver<Holding>) -> Arc<Credentials> {
        let seen = rx.borrow_and_update().credentials.clone();
        loop {
            if rx.changed().await.is_err() {
                // Nobody holds any more: the member is going down, and its tasks with it.
                std::future::pending::<()>().await;
            }
            let now = rx.borrow_and_update().credentials.clone();
            match (&seen, now) {
                (Some(old), Some(new)) if Arc::ptr_eq(old, &new) => {}
                (_, Some(new)) => return new,
                (_, None) => {}
            }
        }
    }

    /// The credentials held now, or the first ones.
    pub async fn first(rx: &mut watch::Receiver<Holding>) -> Arc<Credentials> {
        let now = rx.borrow_and_update().credentials.clone();
        match now {
            Some(credentials) => credentials,
            None => Self::next(rx).await,
        }
    }
}

/// Runs until dropped; `tx` always has the newest credentials. They are renewed at half-life, and when
/// `rejoin` says that Auth takes them no longer.
pub async fn hold(joiner: Joiner, tx: watch::Sender<Holding>, rejoin: Arc<Notify>) {
    let mut held = stored(&joiner, &tx);
    if held.as_ref().is_some_and(|c| !joiner.trusts(c)) {
        tracing::warn!(
            service = joiner.service,
            "none of the pins in ca_pin is a CA of the cluster that was joined; joining anew"
        );
        held = None;
    }
    // Those for other names serve until the answer is there: what they name is what users know.
    if let Some(c) = &held
        && c.kind == joiner.kind
        && !c.expired()
        && !joiner.ask_first
    {
        publish(&tx, c);
    }
    let mut ask = joiner.ask_first;
    loop {
        let renew_in = match &held {
            _ if std::mem::take(&mut ask) => Duration::ZERO,
            Some(c) if c.fit(&joiner.kind, &joiner.names) && !c.expired() => c.until_renewal(),
            _ => Duration::ZERO,
        };
        tokio::select! {
            () = tokio::time::sleep(renew_in) => {}
            () = rejoin.notified() => {}
        }
        let fresh = obtain(&joiner, held.as_ref(), &tx).await;
        publish(&tx, &fresh);
        held = Some(fresh);
    }
}

fn stored(joiner: &Joiner, tx: &watch::Sender<Holding>) -> Option<Credentials> {
    match joiner.dir.credentials() {
        Ok(held) => held,
        Err(e) => {
            // The host key still proves who we are: the grant lets us join anew.
            tracing::error!(service = joiner.service, "{e}; joining anew");
            tx.send_modify(|h| h.failed = Some(e.to_string()));
            None
        }
    }
}

/// Asks until it is answered. What is still valid goes on being used meanwhile.
async fn obtain(
    joiner: &Joiner,
    mut held: Option<&Credentials>,
    tx: &watch::Sender<Holding>,
) -> Credentials {
    let mut pause = backoff();
    let mut refused = 0u32;
    loop {
        let error = match joiner.join(held).await {
            Ok(fresh) => {
                let (service, kind) = (&joiner.service, &joiner.kind);
                tracing::info!(service, kind, generation = fresh.generation, "joined");
                metrics::counter!("postern_joins_total", "outcome" => "ok").increment(1);
                return fresh;
            }
            Err(e) => e,
        };
        metrics::counter!("postern_joins_total", "outcome" => "failed").increment(1);
        tracing::warn!("{error}");
        tx.send_modify(|h| h.failed = Some(error.to_string()));
        let mut wait = pause.next().unwrap_or(Duration::from_secs(8));
        if let JoinError::Refused { reason, .. } = &error {
            // What can't be renewed may still be joined anew, with a token.
            if let Some(reasons::TOKEN_NEEDED | reasons::REJOIN_WINDOW | reasons::LOCKED) =
                reason.as_deref()
            {
                held = None;
            }
            refused += 1;
            wait = wait.max(REFUSED_PAUSE.min(Duration::from_secs(1 << refused.min(6))));
        }
        wait_or_new_token(joiner, wait).await;
    }
}

/// Sleeps, but not on after the token or its file has changed.
async fn wait_or_new_token(joiner: &Joiner, wait: Duration) {
    let until = Instant::now() + wait;
    let before = joiner.token_seen();
    while Instant::now() < until {
        tokio::time::sleep_until(until.min(Instant::now() + TOKEN_POLL)).await;
        if joiner.token_seen() != before {
            return;
        }
    }
}

fn publish(tx: &watch::Sender<Holding>, c: &Credentials) {
    // The same again (a task that took over) is no news.
    tx.send_if_modified(|h| {
        let known = h.credentials.as_ref().is_some_and(|old| {
            (old.generation, old.issued_unix, old.not_after_unix)
                == (c.generation, c.issued_unix, c.not_after_unix)
                && old.ssh_client_cert == c.ssh_client_cert
        });
        let news = !known || h.failed.is_some();
        h.failed = None;
        if !known {
            h.credentials = Some(Arc::new(c.clone()));
        }
        news
    });
}
