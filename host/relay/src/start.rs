//! How far the connection to the upstream is: whom the host takes it for, and whether it keeps a session from starting.

use crate::RelayError;
use postern_plugin::Side;
use std::time::Duration;
use tokio::time::Instant;

/// How long the upstream may send nothing after the last thing that it was sent, until the client's bytes go to it.
const ANSWER: Duration = Duration::from_secs(10);
/// In the words of the other rules about it (`postern_plugin::Asking`).
const WITHOUT_TLS: &str =
    "it goes on without TLS to the server, which this resource must have (it has the key `tls`)";

/// Of the connection to the upstream that was made last.
#[derive(Debug, Default)]
pub(crate) struct Start {
    /// It is on TLS, and its certificate was verified.
    pub(crate) verified: bool,
    /// It has to speak TLS before it is used, and does not.
    lacks_tls: bool,
    /// Something of it was shown to the plugin.
    heard: bool,
    /// The client's bytes go to it: from here on it may take its time.
    over: bool,
    /// When it must have answered.
    due: Option<Instant>,
}

impl Start {
    /// Just connected.
    pub(crate) fn new(needs_tls: bool) -> Self {
        Start {
            lacks_tls: needs_tls,
            ..Start::default()
        }
    }

    /// TLS is up.
    pub(crate) fn secured(verified: bool) -> Self {
        Start {
            verified,
            ..Start::default()
        }
    }

    /// May the plugin send words of its own? Without TLS where it must be, only to ask for it: once the upstream has said
    /// something, TLS comes next.
    pub(crate) fn may_send(&self) -> Result<(), &'static str> {
        if self.lacks_tls && self.heard {
            return Err(WITHOUT_TLS);
        }
        Ok(())
    }

    /// It was sent something that the client did not send.
    pub(crate) fn sent(&mut self) {
        if !self.over {
            self.due = Some(Instant::now() + ANSWER);
        }
    }

    /// Input of this side, or its end, goes to the plugin.
    pub(crate) fn shown(&mut self, side: Side) {
        match side {
            Side::Upstream => {
                self.heard = true;
                self.due = None;
            }
            // All is answered and the client speaks: plugins that copy what they could let pass have started, too.
            Side::Client if self.heard && self.due.is_none() => self.over(),
            Side::Client => {}
        }
    }

    /// Bytes of the client go to it, or nobody is asked any more.
    pub(crate) fn over(&mut self) {
        self.over = true;
        self.due = None;
    }

    /// When it must have answered; `None` where it owes nothing.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }
}

/// It has not.
pub(crate) fn silent() -> RelayError {
    RelayError::Upstream(std::io::Error::new(
        std::io::ErrorKind::TimedOut,
        format!("the server did not answer within {ANSWER:?}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_due_until_the_clients_bytes_pass() {
        let mut start = Start::new(false);
        assert!(start.due().is_none(), "nothing was sent");
        start.sent();
        start.shown(Side::Client);
        assert!(start.due().is_some());
        start.shown(Side::Upstream);
        assert!(start.due().is_none());
        start.sent();
        assert!(start.due().is_some(), "the next one");
        start.over();
        start.sent();
        assert!(start.due().is_none());
    }

    #[test]
    fn a_client_that_speaks_after_the_answers_has_started() {
        let mut start = Start::new(false);
        start.shown(Side::Client);
        start.sent();
        assert!(start.due().is_some(), "nobody has answered yet");
        start.shown(Side::Upstream);
        start.shown(Side::Client);
        start.sent();
        assert!(start.due().is_none());
    }

    #[test]
    fn without_tls_it_is_asked_for_and_no_more() {
        let mut start = Start::new(true);
        assert!(start.may_send().is_ok());
        start.shown(Side::Upstream);
        assert_eq!(start.may_send(), Err(WITHOUT_TLS));
        assert!(Start::secured(false).may_send().is_ok());
        let mut plain = Start::new(false);
        plain.shown(Side::Upstream);
        assert!(plain.may_send().is_ok());
    }
}
