//! Carries out a codec plugin's steps. The rules are in `wit/codec.wit`; where a plugin breaks one, the connection ends with
//! an error that says which.

use crate::duplex::{Duplex, Event};
use crate::start::{Start, silent};
use crate::{BoxedStream, CodecHost, RelayError, RelayStats};
use postern_plugin::{Asking, Codec, PluginEvent, Side, Step};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes that one answer may send.
const MAX_SEND: usize = 1 << 20;
/// How long a plugin's last words may take to be written.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long the client's unread bytes are read away after them.
pub(crate) const LINGER: Duration = Duration::from_secs(1);

/// Runs one connection through a codec plugin until both sides are closed. Cancelled by dropping.
pub async fn run_codec(
    client: impl AsyncRead + AsyncWrite + Send + Unpin,
    codec: Codec,
    host: &impl CodecHost,
) -> Result<RelayStats, RelayError> {
    let mut run = Run {
        duplex: Duplex::guarded(client),
        asking: codec.asking(),
        codec,
        start: Start::default(),
        ending: None,
    };
    let end = match run.guarded(host).await {
        Ok(end) => end,
        Err(e) => {
            run.last_events(&e, host).await;
            return Err(e);
        }
    };
    match end {
        End::Finished => Ok(stats(run.duplex.written(), None)),
        End::AllNative => {
            // The instance has nothing more to say: give its memory back for the rest of the connection.
            let Run {
                mut duplex, codec, ..
            } = run;
            drop(codec);
            duplex.next().await?;
            Ok(stats(duplex.written(), None))
        }
        End::Closed(reason) => {
            let Run { duplex, codec, .. } = run;
            drop(codec);
            Ok(stats(duplex.close().await, reason))
        }
    }
}

fn stats((to_upstream, to_client): (u64, u64), closed: Option<String>) -> RelayStats {
    RelayStats {
        to_upstream,
        to_client,
        closed,
    }
}

pub(crate) struct Run<C> {
    pub(crate) duplex: Duplex<C, BoxedStream>,
    pub(crate) codec: Codec,
    pub(crate) asking: Asking,
    pub(crate) start: Start,
    /// The side whose end the plugin was just told; until it has answered, it may still send to the other.
    ending: Option<Side>,
}

/// How the plugin's part ended.
enum End {
    Finished,
    AllNative,
    Closed(Option<String>),
}

/// What one answer left to do.
enum Then {
    Wait,
    Ask(Step),
    Close(Option<String>),
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin> Run<C> {
    async fn guarded(&mut self, host: &impl CodecHost) -> Result<End, RelayError> {
        let mut steps = self.codec.on_open().await?;
        let mut about = None;
        loop {
            match self.carry_out(steps, about, host).await? {
                Then::Close(reason) => return Ok(End::Closed(reason)),
                Then::Ask(question) => {
                    let result = self.ask(question, host).await?;
                    steps = self.codec.on_result(result).await?;
                    about = None;
                    // The answer may be what the plugin needed to go on with input it has seen.
                    self.duplex.refresh();
                    continue;
                }
                Then::Wait => self.end_told(),
            }
            if self.duplex.all_native() {
                return Ok(End::AllNative);
            }
            let event = self.next().await?;
            self.asking.heard();
            if let Event::Input(side) | Event::End(side) = &event {
                self.start.shown(*side);
            }
            steps = match event {
                Event::Finished => return Ok(End::Finished),
                Event::Input(side) => {
                    about = Some(side);
                    let flow = self.duplex.of(side);
                    flow.fresh = false;
                    self.codec.on_input(side, flow.undecided()).await?
                }
                Event::End(side) => {
                    about = Some(side);
                    self.ending = Some(side);
                    self.codec.on_close(side).await?
                }
            };
        }
    }

    /// The next thing to look at. An upstream that keeps a session from starting by its silence is given up.
    async fn next(&mut self) -> Result<Event, RelayError> {
        if let Some(due) = self.start.due() {
            let waited = tokio::time::timeout_at(due, self.duplex.next()).await;
            let upstream = self.duplex.of(Side::Upstream);
            match waited {
                Ok(event) => return event,
                // It may have answered: that waits for the client to take what came before.
                Err(_) if upstream.fresh || upstream.eof || upstream.backlog() > 0 => {}
                Err(_) => return Err(silent()),
            }
        }
        self.duplex.next().await
    }

    /// A side is gone without a word. What the plugin has to say about that goes on record; nothing else is left to do.
    async fn last_events(&mut self, why: &RelayError, host: &impl CodecHost) {
        let side = match why {
            RelayError::Client(_) => Side::Client,
            RelayError::Upstream(_) => Side::Upstream,
            RelayError::Plugin(_) | RelayError::Host(_) => return,
        };
        for step in self.codec.on_close(side).await.unwrap_or_default() {
            if let Step::Event(event) = step
                && host.event(event).await.is_err()
            {
                return;
            }
        }
    }

    /// The plugin has answered on-close: what it left is dropped, and the other side is told once all is written.
    fn end_told(&mut self) {
        if let Some(side) = self.ending.take() {
            let flow = self.duplex.of(side);
            if !flow.native {
                flow.skip_all();
                flow.ended = true;
            }
        }
    }

    /// Carries out the steps of one answer. `about`: whose input (or end) it answers.
    async fn carry_out(
        &mut self,
        steps: Vec<Step>,
        about: Option<Side>,
        host: &impl CodecHost,
    ) -> Result<Then, RelayError> {
        let before = about.map(|s| self.duplex.of(s).undecided().len());
        let (mut sent, mut then) = (0, Then::Wait);
        for step in steps {
            if !matches!(then, Then::Wait) {
                return Err(
                    self.broke("a step follows a question or a close; it must end its list")
                );
            }
            match step {
                Step::NeedMore => {}
                Step::Pass(n) => {
                    let Some(side) = about else {
                        return Err(self.broke("pass without input"));
                    };
                    self.allowed(self.asking.may_pass(side))?;
                    if !self.duplex.of(side).pass(n as usize) {
                        return Err(self.broke("pass of more bytes than there are"));
                    }
                    if side == Side::Client && n > 0 {
                        self.start.over();
                    }
                }
                Step::Skip(n) => {
                    let Some(side) = about else {
                        return Err(self.broke("skip without input"));
                    };
                    if !self.duplex.of(side).skip(n as usize) {
                        return Err(self.broke("skip of more bytes than there are"));
                    }
                }
                Step::ToUpstream(bytes) => {
                    sent += bytes.len();
                    if !self.duplex.connected() {
                        return Err(self.broke("to-upstream before connect was answered"));
                    }
                    self.allowed(self.start.may_send())?;
                    self.send(Side::Upstream, &bytes, sent)?;
                    if !bytes.is_empty() {
                        self.start.sent();
                    }
                }
                Step::ToClient(bytes) => {
                    sent += bytes.len();
                    self.send(Side::Client, &bytes, sent)?;
                }
                Step::Event(event) => self.record(event, host).await?,
                Step::Splice(side) => {
                    self.allowed(self.asking.may_splice())?;
                    self.duplex.of(side).go_native();
                    self.start.over();
                }
                Step::Close(reason) => then = Then::Close(reason),
                Step::Authorize(_)
                | Step::Connect(_)
                | Step::StartTls(_)
                | Step::Answer(_)
                | Step::SendSecret(_)
                | Step::OfferCancel(..)
                | Step::FindCancel(_) => {
                    then = Then::Ask(step);
                }
            }
        }
        if let Some(side) = about {
            let flow = self.duplex.of(side);
            if flow.full() && before == Some(flow.undecided().len()) && matches!(then, Then::Wait) {
                return Err(self.broke("it consumed nothing of a full 64 KiB; longer messages must be passed on in parts"));
            }
        }
        Ok(then)
    }

    /// Steps after an event wait until the host has it; bytes on their way go on.
    async fn record(
        &mut self,
        event: PluginEvent,
        host: &impl CodecHost,
    ) -> Result<(), RelayError> {
        tokio::select! {
            biased;
            done = host.event(event) => done.map_err(RelayError::Host),
            e = self.duplex.keep_moving() => Err(e),
        }
    }

    /// A rule that was broken ends the plugin's instance.
    pub(crate) fn allowed(&mut self, rule: Result<(), &'static str>) -> Result<(), RelayError> {
        rule.map_err(|why| self.broke(why))
    }

    fn send(&mut self, to: Side, bytes: &[u8], sent: usize) -> Result<(), RelayError> {
        if sent > MAX_SEND {
            return Err(self.broke("one answer sends more than 1 MiB"));
        }
        let flow = self.duplex.towards(to);
        if flow.ended {
            return Err(self.broke("it sends to a side that it was told has been closed"));
        }
        flow.push(bytes);
        Ok(())
    }

    pub(crate) fn broke(&mut self, why: &str) -> RelayError {
        RelayError::Plugin(self.codec.broke_contract(why))
    }
}
