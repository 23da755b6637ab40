//! One data connection: dial, park a channel, deliver the stream that comes through it, park the next.

use super::dial::{Connection, Dialer, Opened};
use super::{Credentials, Incoming};
use crate::ssh::Role;
use crate::stream::Dropped;
use crate::wire::{self, MAX_HEADER, StreamHeader};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Streams through one connection before it is left to the proxy to close: russh keeps a few KB of every
/// channel that its own side closed first.
const MAX_REUSE: usize = 32;
const PING_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Being dialled.
    Dialling,
    /// Between two streams: idle soon, unless the proxy has still to read much of the last one.
    Recycling,
    /// Takes no more streams; what was sent last may be on its way.
    Lingering,
    Idle,
    Live,
    /// Ended; with a reason if it never came up.
    Gone(Option<String>),
}

pub(crate) struct Data {
    pub id: u64,
    pub dialer: Arc<Dialer>,
    pub instance: String,
    pub incoming: mpsc::Sender<Incoming>,
    pub phases: mpsc::Sender<(u64, Phase)>,
    /// Cancelled when no new streams are to come: parked channels end, live ones finish.
    pub retire: CancellationToken,
    /// Cancelled when everything is to end now.
    pub cut: CancellationToken,
}

/// What can be done with a connection after a stream.
enum After {
    Reusable,
    /// Nothing more, but what we sent may be on its way.
    Finished,
    /// Nothing at all.
    Useless,
}

impl Data {
    pub async fn run(self, credentials: Credentials) {
        let failure = tokio::select! {
            failure = self.serve(credentials) => failure,
            () = self.cut.cancelled() => None,
        };
        self.tell(Phase::Gone(failure)).await;
    }

    async fn tell(&self, phase: Phase) {
        let _ = self.phases.send((self.id, phase)).await;
    }

    async fn serve(&self, credentials: Credentials) -> Option<String> {
        let role = Role::Data(self.instance.clone());
        // Boxed, so that nothing of it is left for the rest of a connection's life, which is mostly idle.
        let dialling = Box::pin(async move { self.dialer.dial(&credentials, &role).await });
        let mut connection = match dialling.await {
            Ok(connection) => connection,
            Err(e) => return Some(e.to_string()),
        };
        for nth in 0..MAX_REUSE {
            // Not given up on retirement: the end of the stream before may still be on its way to the proxy.
            let opened = connection.open().await;
            let opened = match opened {
                Ok(opened) => opened,
                Err(e) => {
                    debug!(error = %e, "the proxy opens no channel on a data connection");
                    return (nth == 0).then(|| format!("the proxy takes no data connection: {e}"));
                }
            };
            self.tell(Phase::Idle).await;
            match self.one(&mut connection, opened).await {
                After::Reusable => {}
                After::Finished => break,
                After::Useless => return None,
            }
            self.tell(Phase::Recycling).await;
        }
        self.tell(Phase::Lingering).await;
        // What we sent last may still be on its way. The proxy closes once it has read it all; closing from here
        // could destroy it (a TCP reset overtakes data).
        connection.token.cancelled().await;
        None
    }

    /// Parks one channel and sees its stream through.
    async fn one(&self, connection: &mut Connection, opened: Opened) -> After {
        let Opened {
            mut stream,
            id,
            mut dropped,
            peer_closed,
        } = opened;
        let Some(header) = self.header(connection, &mut stream).await else {
            return After::Useless;
        };
        self.tell(Phase::Live).await;
        let mut handing_over = Some(Incoming { header, stream });
        let sending = loop {
            tokio::select! {
                // Before the stream was taken over, its end must be heard, too.
                permit = self.incoming.reserve(), if handing_over.is_some() => {
                    match (permit, handing_over.take()) {
                        (Ok(permit), Some(incoming)) => permit.send(incoming),
                        // Nobody takes streams any more: dropping it closes it.
                        (_, incoming) => drop(incoming),
                    }
                }
                closed = connection.closed.recv() => {
                    if closed.is_none_or(|closed| closed == id) {
                        peer_closed.cancel();
                    }
                    if closed.is_none() {
                        return After::Useless;
                    }
                }
                Ok(Dropped { sending, .. }) = &mut dropped => break sending,
            }
        };
        let proxy_closed = peer_closed.is_cancelled();
        if !proxy_closed {
            sending.close().await;
        }
        match (connection.token.is_cancelled(), self.retire.is_cancelled()) {
            (true, _) => After::Useless,
            (false, false) => After::Reusable,
            // The proxy has no more use for what we sent, so closing destroys nothing.
            (false, true) if proxy_closed => After::Useless,
            (false, true) => After::Finished,
        }
    }

    /// Waits for the proxy to take the parked channel, with a ping from time to time.
    async fn header(
        &self,
        connection: &Connection,
        stream: &mut crate::TunnelStream,
    ) -> Option<StreamHeader> {
        let header = wire::read_json(stream, MAX_HEADER);
        tokio::pin!(header);
        let retired = async {
            self.retire.cancelled().await;
            // A header may be on its way.
            sleep(PING_TIMEOUT).await;
        };
        tokio::pin!(retired);
        loop {
            let ping = async {
                sleep(self.dialer.opts.timing.idle_ping).await;
                timeout(PING_TIMEOUT, connection.ping()).await
            };
            tokio::select! {
                header = &mut header => return header
                    .inspect_err(|e| debug!(error = %e, "a parked data connection ended"))
                    .ok(),
                answered = ping => if !matches!(answered, Ok(Ok(()))) {
                    debug!("an idle data connection does not answer; dialling another");
                    return None;
                },
                () = &mut retired => return None,
            }
        }
    }
}
