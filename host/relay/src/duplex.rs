//! Both directions of one connection, moved by one task. Never waits for a write to one side while not reading the other.

use crate::RelayError;
use crate::flow::{Flow, FlowError};
use postern_plugin::Side;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};

/// Backlog in one direction above which no more input of that direction is looked at.
const SOFT: usize = 64 << 10;
/// Backlog towards the client (upstream) above which the client's (upstream's) own input is not looked at either: a client
/// that asks and asks without reading the answers. Larger than one answer, so that the two directions of an ordinary
/// connection don't wait for each other.
const HARD: usize = SOFT + (1 << 20);

pub(crate) struct Duplex<C, U> {
    client: C,
    upstream: Option<U>,
    to_upstream: Flow,
    to_client: Flow,
    /// Whose turn it is, where both have something.
    turn: Side,
    /// Nobody is told that the client has ended.
    ignores_clients_end: bool,
}

/// What the driver has to look at.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Input(Side),
    End(Side),
    /// Both directions are done.
    Finished,
}

impl<C, U> Duplex<C, U>
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    /// Nobody connected yet, a plugin is asked about everything.
    pub(crate) fn guarded(client: C) -> Self {
        Duplex {
            client,
            upstream: None,
            to_upstream: Flow::default(),
            to_client: Flow::default(),
            turn: Side::Client,
            ignores_clients_end: false,
        }
    }

    /// Nobody is asked.
    pub(crate) fn native(client: C, upstream: U) -> Self {
        Duplex {
            client,
            upstream: Some(upstream),
            to_upstream: Flow::native(),
            to_client: Flow::native(),
            turn: Side::Client,
            ignores_clients_end: false,
        }
    }

    pub(crate) fn connected(&self) -> bool {
        self.upstream.is_some()
    }

    /// From here on the upstream is this one; what an earlier one has sent and nobody has looked at is dropped.
    pub(crate) fn connect(&mut self, upstream: U) {
        self.upstream = Some(upstream);
        self.to_client.new_source();
    }

    /// Whether what was asked is to be done although the client has gone.
    pub(crate) fn ignore_clients_end(&mut self, ignore: bool) {
        self.ignores_clients_end = ignore;
    }

    /// Takes the upstream away, to do something with it that is not copying; give it back by [`Self::put_back`].
    pub(crate) fn take_upstream(&mut self) -> Option<U> {
        self.upstream.take()
    }

    pub(crate) fn put_back(&mut self, upstream: U) {
        self.upstream = Some(upstream);
    }

    /// Moves bytes until the upstream has got all that it was sent.
    pub(crate) async fn flush_upstream(&mut self) -> Result<(), RelayError> {
        std::future::poll_fn(|cx| {
            loop {
                let arrived = self.poll_move(cx)?;
                if self.upstream.is_none() || self.to_upstream.written_out() {
                    return Poll::Ready(Ok(()));
                }
                if !arrived {
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    /// The bytes that this side sends.
    pub(crate) fn of(&mut self, side: Side) -> &mut Flow {
        match side {
            Side::Client => &mut self.to_upstream,
            Side::Upstream => &mut self.to_client,
        }
    }

    /// The bytes that go to this side.
    pub(crate) fn towards(&mut self, side: Side) -> &mut Flow {
        self.of(side.other())
    }

    pub(crate) fn all_native(&self) -> bool {
        self.to_upstream.native && self.to_client.native
    }

    /// (to the upstream, to the client)
    pub(crate) fn written(&self) -> (u64, u64) {
        (self.to_upstream.written, self.to_client.written)
    }

    /// Undecided bytes may be looked at anew.
    pub(crate) fn refresh(&mut self) {
        for flow in [&mut self.to_upstream, &mut self.to_client] {
            flow.fresh = !flow.native && !flow.undecided().is_empty();
        }
    }

    /// True if something to look at has just arrived (then the source has not been asked to wake us).
    fn poll_move(&mut self, cx: &mut Context<'_>) -> Result<bool, RelayError> {
        let Duplex {
            client,
            upstream,
            to_upstream,
            to_client,
            ..
        } = self;
        let first = to_upstream.poll(cx, Some(&mut *client), upstream.as_mut());
        let second = to_client.poll(cx, upstream.as_mut(), Some(client));
        let arrived = first.is_ready() || second.is_ready();
        if let Poll::Ready(Err(e)) = first {
            return Err(match e {
                FlowError::Read(e) => RelayError::Client(e),
                FlowError::Write(e) => RelayError::Upstream(e),
            });
        }
        if let Poll::Ready(Err(e)) = second {
            return Err(match e {
                FlowError::Read(e) => RelayError::Upstream(e),
                FlowError::Write(e) => RelayError::Client(e),
            });
        }
        Ok(arrived)
    }

    /// Moves bytes until there is something to look at.
    pub(crate) async fn next(&mut self) -> Result<Event, RelayError> {
        std::future::poll_fn(|cx| {
            // What is there already goes first: it may be what the other side waits for.
            self.poll_move(cx)?;
            match self.attention() {
                Some(event) => Poll::Ready(Ok(event)),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// Moves bytes for as long as it is polled: beside a question to the host. Only comes back with an error.
    pub(crate) async fn keep_moving(&mut self) -> RelayError {
        std::future::poll_fn(|cx| {
            loop {
                match self.poll_move(cx) {
                    // Until the buffer is full or nothing more is there, so that we notice when the client goes away.
                    Ok(true) => {}
                    Ok(false) => return Poll::Pending,
                    Err(e) => return Poll::Ready(e),
                }
            }
        })
        .await
    }

    fn attention(&mut self) -> Option<Event> {
        let first = self.turn;
        for side in [first, first.other()] {
            if let Some(event) = self.attention_of(side) {
                self.turn = side.other();
                return Some(event);
            }
        }
        // Without an upstream, a client that has ended will cause nothing more.
        let upstream_done = match &self.upstream {
            Some(_) => self.to_client.finished() && self.to_upstream.finished(),
            None => self.to_upstream.ended && self.to_client.backlog() == 0,
        };
        upstream_done.then_some(Event::Finished)
    }

    fn attention_of(&mut self, side: Side) -> Option<Event> {
        let back = self.towards(side).backlog();
        let told = side == Side::Upstream || !self.ignores_clients_end;
        let flow = self.of(side);
        if flow.native || flow.ended || flow.backlog() > SOFT || back > HARD {
            return None;
        }
        if flow.fresh && !flow.undecided().is_empty() {
            // Looked at only when what passed before is out: bytes are not moved inside the buffer.
            return (flow.backlog() == 0 || flow.full()).then_some(Event::Input(side));
        }
        (flow.eof && told).then_some(Event::End(side))
    }

    /// After the plugin closed: writes what is left, tells both sides, and reads on for a moment, because closing a socket
    /// with unread input resets it, and the reset overtakes our last words.
    pub(crate) async fn close(mut self) -> (u64, u64) {
        for flow in [&mut self.to_upstream, &mut self.to_client] {
            flow.skip_all();
            flow.go_native();
            flow.ended = true;
        }
        let flush = std::future::poll_fn(|cx| {
            self.poll_move(cx)?;
            let up = self.upstream.is_none() || self.to_upstream.finished();
            if up && self.to_client.finished() {
                Poll::Ready(Ok::<(), RelayError>(()))
            } else {
                Poll::Pending
            }
        });
        if matches!(
            tokio::time::timeout(crate::drive::LAST_WORDS, flush).await,
            Ok(Ok(()))
        ) {
            let mut sink = tokio::io::sink();
            let mut rest = tokio::io::AsyncReadExt::take(&mut self.client, 1 << 20);
            let _ =
                tokio::time::timeout(crate::drive::LINGER, tokio::io::copy(&mut rest, &mut sink))
                    .await;
        }
        self.written()
    }
}
