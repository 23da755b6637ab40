//! Puts a codec plugin's questions to the host, while bytes on their way go on.

use crate::drive::Run;
use crate::start::Start;
use crate::{BoxedStream, CodecHost, RelayError, Secured};
use postern_plugin::{Endpoint, SecretMessage, Side, Step, StepResult, TemplatePart};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

/// How long the upstream may take to take what was sent before, or a secret.
const WRITE: Duration = Duration::from_secs(10);
/// The longest secret.
const MAX_SECRET: usize = 4 << 10;

/// Waits for the host; an error of a side that comes first ends the connection.
macro_rules! meanwhile {
    ($run:expr, $host:expr) => {
        tokio::select! {
            biased;
            answer = $host => answer,
            e = $run.duplex.keep_moving() => return Err(e),
        }
    };
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin> Run<C> {
    pub(crate) async fn ask(
        &mut self,
        question: Step,
        host: &impl CodecHost,
    ) -> Result<StepResult, RelayError> {
        let may = self.asking.may_ask(&question);
        self.allowed(may)?;
        let result = match &question {
            Step::Authorize(asked) => match meanwhile!(self, host.authorize(asked)) {
                Ok(()) => StepResult::Authorized,
                Err(why) => StepResult::Denied(why),
            },
            Step::Connect(endpoint) => self.connect(*endpoint, host).await?,
            Step::StartTls(Side::Client) => {
                StepResult::TlsFailed("the client's TLS is the host's and has ended here".into())
            }
            Step::StartTls(Side::Upstream) => match self.start_tls(host).await? {
                Ok(()) => StepResult::TlsStarted,
                Err(why) => StepResult::TlsFailed(why),
            },
            Step::Answer(challenge) => {
                let at = self.endpoint()?;
                match meanwhile!(self, host.answer(at, challenge.clone())) {
                    Ok(bytes) => StepResult::Answered(bytes),
                    Err(why) => StepResult::AnswerFailed(why),
                }
            }
            Step::SendSecret(message) => match self.send_secret(message, host).await? {
                Ok(()) => StepResult::SecretSent,
                Err(why) => StepResult::SecretFailed(why),
            },
            Step::OfferCancel(key, room) => {
                let key = host.offer_cancel(key.clone(), *room as usize);
                StepResult::CancelKey(key.map_err(RelayError::Host)?)
            }
            Step::FindCancel(key) => match host.find_cancel(key) {
                Some(key) => StepResult::CancelFound(key),
                None => StepResult::CancelUnknown,
            },
            other => return Err(self.broke(&format!("{other:?} is no question"))),
        };
        self.asking.answered(&question, &result);
        Ok(result)
    }

    fn endpoint(&mut self) -> Result<Endpoint, RelayError> {
        match self.asking.endpoint() {
            Some(endpoint) => Ok(endpoint),
            None => Err(self.broke("a question about an upstream that is not connected")),
        }
    }

    async fn connect(
        &mut self,
        endpoint: Endpoint,
        host: &impl CodecHost,
    ) -> Result<StepResult, RelayError> {
        self.start = Start::default();
        // What was sent to the upstream before is that one's.
        self.flush().await?;
        drop(self.duplex.take_upstream());
        Ok(match meanwhile!(self, host.connect(endpoint)) {
            Ok(stream) => {
                self.duplex.connect(stream);
                // Who cancels says so and goes: many clients do not wait.
                self.duplex.ignore_clients_end(endpoint == Endpoint::Cancel);
                let needs_tls = host.needs_tls(endpoint);
                self.asking.needs_tls(needs_tls);
                self.start = Start::new(needs_tls);
                StepResult::Connected
            }
            Err(why) => StepResult::ConnectFailed(why),
        })
    }

    /// What was sent to the upstream so far is out, or it takes too long.
    async fn flush(&mut self) -> Result<(), RelayError> {
        match tokio::time::timeout(WRITE, self.duplex.flush_upstream()).await {
            Ok(done) => done,
            Err(_) => Err(RelayError::Upstream(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                format!("it took nothing for {WRITE:?}"),
            ))),
        }
    }

    async fn start_tls(&mut self, host: &impl CodecHost) -> Result<Result<(), String>, RelayError> {
        let endpoint = self.endpoint()?;
        self.flush().await?;
        let Some(stream) = self.duplex.take_upstream() else {
            return Err(self.broke("start-tls before connect was answered"));
        };
        self.start = Start::default();
        // Bytes from before TLS could be anybody's, and would be taken for the server's (CVE-2021-23222).
        let early = self.duplex.of(Side::Upstream).undecided().len();
        if early > 0 {
            self.duplex.of(Side::Upstream).skip_all();
            return Ok(Err(format!(
                "the server sent {early} bytes in plaintext where TLS had to begin; somebody may be in between, so the connection was closed"
            )));
        }
        Ok(match meanwhile!(self, host.start_tls(endpoint, stream)) {
            Ok(Secured { stream, verified }) => {
                self.start = Start::secured(verified);
                self.duplex.put_back(stream);
                Ok(())
            }
            Err(why) => Err(why),
        })
    }

    async fn send_secret(
        &mut self,
        message: &SecretMessage,
        host: &impl CodecHost,
    ) -> Result<Result<(), String>, RelayError> {
        let endpoint = self.endpoint()?;
        if !self.start.verified {
            return Ok(Err(
                "the server wants the password in cleartext, which is sent over verified TLS only; set tls.mode of the resource to \"verify-full\", or let the server ask by scram-sha-256"
                    .into(),
            ));
        }
        let secret = meanwhile!(self, host.secret(endpoint, message.account.clone()));
        let secret = match secret {
            Ok(secret) if secret.len() > MAX_SECRET => {
                return Ok(Err(format!(
                    "the secret of {:?} is longer than {MAX_SECRET} bytes",
                    message.account
                )));
            }
            Ok(secret) => secret,
            Err(why) => return Ok(Err(why)),
        };
        let bytes = with_secret(&message.parts, &secret);
        drop(secret);
        self.flush().await?;
        let Some(mut stream) = self.duplex.take_upstream() else {
            return Err(self.broke("send-secret before connect was answered"));
        };
        // Not through the flow's buffers, which are not wiped.
        let written = meanwhile!(
            self,
            tokio::time::timeout(WRITE, write(&mut stream, &bytes))
        );
        self.duplex.put_back(stream);
        written
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            .map_err(RelayError::Upstream)?;
        self.duplex.of(Side::Client).written += bytes.len() as u64;
        self.start.sent();
        Ok(Ok(()))
    }
}

async fn write(stream: &mut BoxedStream, bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// The message; wiped when dropped, and never moved by growing.
fn with_secret(parts: &[TemplatePart], secret: &[u8]) -> Zeroizing<Vec<u8>> {
    let size = |part: &TemplatePart| match part {
        TemplatePart::Bytes(b) => b.len(),
        TemplatePart::Secret => secret.len(),
        TemplatePart::LengthU32Be(_) => 4,
    };
    let mut out = Zeroizing::new(Vec::with_capacity(parts.iter().map(size).sum()));
    for part in parts {
        match part {
            TemplatePart::Bytes(b) => out.extend_from_slice(b),
            TemplatePart::Secret => out.extend_from_slice(secret),
            TemplatePart::LengthU32Be(more) => {
                let length = more.wrapping_add(u32::try_from(secret.len()).unwrap_or(u32::MAX));
                out.extend_from_slice(&length.to_be_bytes());
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_put_in_its_place() {
        let parts = [
            TemplatePart::Bytes(b"p".to_vec()),
            TemplatePart::LengthU32Be(5),
            TemplatePart::Secret,
            TemplatePart::Bytes(vec![0]),
        ];
        let message = with_secret(&parts, b"hunter2");
        assert_eq!(*message, b"p\x00\x00\x00\x0chunter2\x00");
        assert_eq!(message.capacity(), message.len());
    }
}
