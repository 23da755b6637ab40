//! Which questions a codec plugin may ask when: the rules of `wit/codec.wit`, for whoever drives a plugin. `host/relay` holds
//! one to them between real streams, the script player without any; the words are the same in both.

use crate::types::{Endpoint, SecretMessage, Side, Step, StepResult, TemplatePart};

/// Questions in a row without a byte from either side.
const MAX_QUESTIONS: u32 = 64;
/// Bytes of a cancel key.
const MAX_KEY: usize = 256;
/// The shortest key that the host gives away.
const MIN_KEY: u32 = 8;
/// Parts of a message with a secret, and the bytes in them.
const MAX_PARTS: usize = 16;
const MAX_PART_BYTES: usize = 4 << 10;
const WITHOUT_TLS: &str =
    "it goes on without TLS to the server, which this resource must have (it has the key `tls`)";

/// What one connection's plugin has asked, and been answered.
#[derive(Debug, Default)]
pub struct Asking {
    /// It has a task of `accounts-service`, and no connection of a user.
    task: bool,
    authorized: bool,
    denied: bool,
    /// What it is connected to.
    endpoint: Option<Endpoint>,
    /// The upstream speaks TLS.
    secured: bool,
    /// It must before it is used.
    needs_tls: bool,
    /// A cancel key has been offered.
    offered: bool,
    /// It has asked about a client's cancel key; true: there is such a session.
    cancel: Option<bool>,
    /// In a row.
    asked: u32,
}

impl Asking {
    /// For a task of `accounts-service`.
    pub fn of_task() -> Self {
        Asking {
            task: true,
            ..Asking::default()
        }
    }

    /// What the plugin is connected to.
    pub fn endpoint(&self) -> Option<Endpoint> {
        self.endpoint
    }

    /// A byte, or an end, of either side was shown.
    pub fn heard(&mut self) {
        self.asked = 0;
    }

    /// Whether what was just connected to must speak TLS before it is used.
    pub fn needs_tls(&mut self, needs: bool) {
        self.needs_tls = needs;
    }

    fn lacks_tls(&self) -> bool {
        self.endpoint.is_some() && self.needs_tls && !self.secured
    }

    /// The upstream is gone.
    pub fn disconnected(&mut self) {
        self.endpoint = None;
        self.secured = false;
    }

    /// May bytes pass that the plugin has not written itself? `from`: whose.
    pub fn may_pass(&self, from: Side) -> Result<(), &'static str> {
        match self.endpoint {
            None if from == Side::Client => Err("pass to an upstream that is not connected"),
            Some(Endpoint::Admin) => Err(
                "pass while the upstream is the endpoint Admin; what an administrator says must be the plugin's own words",
            ),
            Some(_) if self.lacks_tls() => Err(WITHOUT_TLS),
            _ => Ok(()),
        }
    }

    /// May a direction be left to the host?
    pub fn may_splice(&self) -> Result<(), &'static str> {
        match self.endpoint {
            None => Err("splice before connect was answered"),
            Some(Endpoint::Admin) => Err("splice while the upstream is the endpoint Admin"),
            Some(_) if self.lacks_tls() => Err(WITHOUT_TLS),
            Some(_) => Ok(()),
        }
    }

    /// May this be asked now? The error says which rule it breaks.
    pub fn may_ask(&mut self, question: &Step) -> Result<(), &'static str> {
        self.asked += 1;
        if self.asked > MAX_QUESTIONS {
            return Err("it asks and asks without a byte of input");
        }
        match question {
            Step::Connect(endpoint) => self.may_connect(*endpoint),
            Step::Authorize(_) | Step::OfferCancel(..) | Step::FindCancel(_) if self.task => {
                Err("a question of a user's connection in a task")
            }
            _ if self.cancel == Some(true) && !matches!(question, Step::StartTls(_)) => {
                Err("after a find-cancel that found a session, only connect(cancel) may be asked")
            }
            Step::StartTls(Side::Upstream) if self.endpoint.is_none() => {
                Err("start-tls before connect was answered")
            }
            Step::StartTls(Side::Upstream) if self.secured => {
                Err("start-tls, but the upstream speaks TLS already")
            }
            Step::Answer(_) if self.endpoint.is_none() => Err("answer before connect was answered"),
            Step::SendSecret(_) if self.endpoint.is_none() => {
                Err("send-secret before connect was answered")
            }
            Step::Answer(_) | Step::SendSecret(_) | Step::OfferCancel(..) if self.lacks_tls() => {
                Err(WITHOUT_TLS)
            }
            Step::SendSecret(message) => bounded(message),
            Step::OfferCancel(key, room) => self.may_offer(key, *room),
            Step::FindCancel(_) if self.authorized || self.denied || self.endpoint.is_some() => {
                Err("find-cancel on the connection of a session")
            }
            Step::FindCancel(_) if self.cancel.is_some() => {
                Err("find-cancel twice; a connection may try one key")
            }
            Step::FindCancel(key) if key.len() > MAX_KEY => {
                Err("find-cancel with a key of more than 256 bytes")
            }
            _ => Ok(()),
        }
    }

    fn may_connect(&self, to: Endpoint) -> Result<(), &'static str> {
        match (to, self.endpoint) {
            (Endpoint::Admin, None) if self.task => Ok(()),
            (Endpoint::Admin, Some(_)) if self.task => Err("connect, but it is connected already"),
            (_, _) if self.task => Err("connect to another endpoint than Admin in a task"),
            (Endpoint::Admin, _) => {
                Err("connect to the endpoint Admin, which is for tasks of accounts-service only")
            }
            (Endpoint::Cancel, _) if self.cancel != Some(true) => {
                Err("connect to the endpoint Cancel without a find-cancel that found a session")
            }
            (Endpoint::Main, _) if self.cancel == Some(true) => {
                Err("after a find-cancel that found a session, only connect(cancel) may be asked")
            }
            (Endpoint::Main, _) if !self.authorized || self.denied => {
                Err("connect without an authorize that was allowed, or after one that was denied")
            }
            (_, None) => Ok(()),
            (_, Some(_)) => Err("connect, but it is connected already"),
        }
    }

    fn may_offer(&self, key: &[u8], room: u32) -> Result<(), &'static str> {
        if self.endpoint != Some(Endpoint::Main) {
            return Err("offer-cancel without a connection to the endpoint Main");
        }
        if self.offered {
            return Err("offer-cancel twice");
        }
        if key.is_empty() || key.len() > MAX_KEY {
            return Err("offer-cancel with a key that is not 1 to 256 bytes long");
        }
        if room < MIN_KEY {
            return Err("offer-cancel with room for less than 8 bytes");
        }
        Ok(())
    }

    /// The host has answered.
    pub fn answered(&mut self, question: &Step, result: &StepResult) {
        match (question, result) {
            (_, StepResult::Authorized) => self.authorized = true,
            (_, StepResult::Denied(_)) => self.denied = true,
            (Step::Connect(endpoint), StepResult::Connected) => {
                self.endpoint = Some(*endpoint);
                self.secured = false;
            }
            // A connection on which TLS was asked for is not used without.
            (_, StepResult::ConnectFailed(_) | StepResult::TlsFailed(_)) => self.disconnected(),
            (_, StepResult::TlsStarted) => self.secured = true,
            (_, StepResult::CancelKey(_)) => self.offered = true,
            (_, StepResult::CancelFound(_)) => self.cancel = Some(true),
            (_, StepResult::CancelUnknown) => self.cancel = Some(false),
            _ => {}
        }
    }
}

fn bounded(message: &SecretMessage) -> Result<(), &'static str> {
    if message.parts.len() > MAX_PARTS {
        return Err("send-secret of more than 16 parts");
    }
    let bytes: usize = message
        .parts
        .iter()
        .map(|p| match p {
            TemplatePart::Bytes(b) => b.len(),
            TemplatePart::Secret | TemplatePart::LengthU32Be(_) => 0,
        })
        .sum();
    if bytes > MAX_PART_BYTES {
        return Err("send-secret of more than 4 KiB beside the secret");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
