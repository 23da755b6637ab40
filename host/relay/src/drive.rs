//! Carries out a codec plugin's steps. The rules are in `wit/codec.wit`; where a plugin breaks one, the connection ends with
//! an error that says which.

use crate::duplex::{Duplex, Event};
use crate::{BoxedStream, CodecHost, RelayError, RelayStats};
use postern_plugin::{Codec, Endpoint, Side, Step, StepResult};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes that one answer may send.
const MAX_SEND: usize = 1 << 20;
/// Questions in a row without a byte from either side.
const MAX_QUESTIONS: u32 = 64;
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
        codec,
        authorized: false,
        denied: false,
        questions: 0,
        ending: None,
    };
    match run.guarded(host).await? {
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

struct Run<C> {
    duplex: Duplex<C, BoxedStream>,
    codec: Codec,
    authorized: bool,
    denied: bool,
    questions: u32,
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
            match self.carry_out(steps, about, host)? {
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
            let event = self.duplex.next().await?;
            self.questions = 0;
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
    fn carry_out(
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
                    if side == Side::Client && !self.duplex.connected() {
                        return Err(self.broke("pass to an upstream that is not connected"));
                    }
                    if !self.duplex.of(side).pass(n as usize) {
                        return Err(self.broke("pass of more bytes than there are"));
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
                    self.send(Side::Upstream, &bytes, sent)?;
                }
                Step::ToClient(bytes) => {
                    sent += bytes.len();
                    self.send(Side::Client, &bytes, sent)?;
                }
                Step::Event(event) => host.event(event),
                Step::Splice(side) => {
                    if !self.duplex.connected() {
                        return Err(self.broke("splice before connect was answered"));
                    }
                    self.duplex.of(side).go_native();
                }
                Step::Close(reason) => then = Then::Close(reason),
                Step::Authorize(_)
                | Step::Connect(_)
                | Step::StartTls(_)
                | Step::Answer(_)
                | Step::SendSecret(_) => {
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

    /// Puts a question to the host, while bytes on their way go on.
    async fn ask(
        &mut self,
        question: Step,
        host: &impl CodecHost,
    ) -> Result<StepResult, RelayError> {
        self.questions += 1;
        if self.questions > MAX_QUESTIONS {
            return Err(self.broke("it asks and asks without a byte of input"));
        }
        match question {
            Step::Authorize(asked) => {
                let verdict = tokio::select! {
                    v = host.authorize(&asked) => v,
                    e = self.duplex.keep_moving() => return Err(e),
                };
                Ok(match verdict {
                    Ok(()) => {
                        self.authorized = true;
                        StepResult::Authorized
                    }
                    Err(why) => {
                        self.denied = true;
                        StepResult::Denied(why)
                    }
                })
            }
            Step::Connect(endpoint) => self.connect(endpoint, host).await,
            Step::StartTls(_) => Ok(StepResult::TlsFailed(unsupported("start-tls"))),
            Step::Answer(_) => Ok(StepResult::AnswerFailed(unsupported("answer"))),
            Step::SendSecret(_) => Ok(StepResult::SecretFailed(unsupported("send-secret"))),
            other => Err(self.broke(&format!("{other:?} is no question"))),
        }
    }

    async fn connect(
        &mut self,
        endpoint: Endpoint,
        host: &impl CodecHost,
    ) -> Result<StepResult, RelayError> {
        if !self.authorized || self.denied {
            return Err(self.broke(
                "connect without an authorize that was allowed, or after one that was denied",
            ));
        }
        if self.duplex.connected() {
            return Err(self.broke("connect, but it is connected already"));
        }
        let stream = tokio::select! {
            s = host.connect(endpoint) => s,
            e = self.duplex.keep_moving() => return Err(e),
        };
        Ok(match stream {
            Ok(stream) => {
                self.duplex.connect(stream);
                StepResult::Connected
            }
            Err(why) => StepResult::ConnectFailed(why),
        })
    }

    fn broke(&mut self, why: &str) -> RelayError {
        RelayError::Plugin(self.codec.broke_contract(why))
    }
}

fn unsupported(step: &str) -> String {
    format!("this version of posternd does not carry out `{step}` yet")
}
