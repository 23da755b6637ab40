//! What everything of one connection knows.

use crate::audit::Trail;
use crate::flow::Totals;
use crate::{SessionContext, SshdOptions};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub struct Shared {
    pub opts: Arc<SshdOptions>,
    pub ctx: SessionContext,
    pub trail: Arc<Trail>,
    pub totals: Arc<Totals>,
    /// The connection is over.
    pub gone: CancellationToken,
    /// No new channels.
    pub drain: CancellationToken,
    pub tasks: TaskTracker,
    /// Channels that are open.
    pub channels: AtomicUsize,
    pub news: mpsc::Sender<News>,
    /// Whether `session.start` is on disk: nothing happens before.
    pub recorded: watch::Sender<Option<Result<(), String>>>,
}

/// What the connection tells its `serve`.
pub enum News {
    /// Somebody tried something that we don't take, as this login.
    Tried { login: String },
    /// The gate (or the plugin) said no, and has audited it.
    Refused,
    /// The session is open; `session.start` is on its way.
    Admitted,
    /// With what its process ended with, if it had one.
    ChannelEnded(Option<String>),
}

impl Shared {
    /// Waits until `session.start` is recorded. The error is for the user.
    pub async fn recorded(&self) -> Result<(), String> {
        match self.recorded.subscribe().wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Ok(())),
            Err(_) => Err("the session is over".into()),
        }
    }

    /// Ends what [`Shared::channels`] was raised for.
    pub async fn channel_ended(&self, exit: Option<String>) {
        self.channels.fetch_sub(1, SeqCst);
        self.tell(News::ChannelEnded(exit)).await;
    }

    pub async fn tell(&self, news: News) {
        // Nobody listens: `serve` was dropped, and all of this ends.
        let _ = self.news.send(news).await;
    }
}
