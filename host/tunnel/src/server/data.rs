//! One data connection at the proxy: parks its channel until a client needs it, and again after each stream.

use super::TunnelServer;
use super::handler::Events;
use crate::cut::Heard;
use crate::registry::{Idle, LinkId};
use crate::stream::{Dropped, Sending, TunnelStream};
use postern_identity::AgentCertInfo;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// How long a connection without a channel is kept for the agent to open the next one.
const NEXT_CHANNEL: Duration = Duration::from_secs(10);
/// The same after a stream that was given up here: its reader at the agent may still be busy with the rest.
const AFTER_RESET: Duration = Duration::from_secs(60);

pub(crate) struct Arrived {
    pub instance: String,
    pub info: AgentCertInfo,
    pub token: CancellationToken,
    pub heard: Heard,
}

pub(crate) async fn serve(
    server: &TunnelServer,
    arrived: Arrived,
    mut events: Events,
) -> Result<(), String> {
    let identity = &arrived.info.identity;
    if let Some(reason) = (server.locked)(identity) {
        return Err(format!("host or service locked: {reason}"));
    }
    let (link, connection) = server
        .registry
        .add_data(
            identity,
            &arrived.instance,
            server.opts.max_data,
            arrived.token.clone(),
        )
        .ok_or("no control connection of this agent takes data connections, or it has too many")?;
    let _registered = Registered {
        server,
        link,
        connection,
    };
    let mut patience = NEXT_CHANNEL;
    loop {
        if patience != AFTER_RESET && !server.registry.takes_streams(link) {
            return Ok(());
        }
        let next = timeout(patience, events.channels.recv());
        let channel = tokio::select! {
            next = next => match next {
                Ok(Some(channel)) => channel,
                // The session ended, or the agent is done with the connection.
                _ => return Ok(()),
            },
            () = arrived.token.cancelled() => return Ok(()),
        };
        let (reading, writing) = channel.split();
        let id = writing.id();
        let peer_closed = arrived.token.child_token();
        let (stream, mut dropped) = TunnelStream::new(
            reading,
            Sending::Server(Arc::new(writing)),
            peer_closed.clone(),
            arrived.token.clone(),
        );
        let idle = Idle {
            connection,
            stream,
            heard: arrived.heard.clone(),
            since: Instant::now(),
        };
        if !server.registry.park(link, idle) {
            return Ok(());
        }
        // A stream that ended well is closed by the agent, once it has read everything; only then may the
        // connection go. One that was given up here is closed from here.
        let mut ended_well = false;
        patience = AFTER_RESET;
        loop {
            tokio::select! {
                Ok(Dropped { sending, finished }) = &mut dropped, if !ended_well => {
                    if peer_closed.is_cancelled() {
                        patience = NEXT_CHANNEL;
                        break;
                    }
                    if !finished {
                        sending.close().await;
                        break;
                    }
                    ended_well = true;
                }
                closed = events.closed.recv() => match closed {
                    Some(closed) if closed == id => {
                        peer_closed.cancel();
                        if ended_well {
                            patience = NEXT_CHANNEL;
                            break;
                        }
                    }
                    Some(_) => {}
                    None => return Ok(()),
                },
                () = arrived.token.cancelled() => return Ok(()),
            }
        }
    }
}

struct Registered<'a> {
    server: &'a TunnelServer,
    link: LinkId,
    connection: u64,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.server.registry.remove_data(self.link, self.connection);
    }
}
