//! From the startup message to the first ReadyForQuery. The client has been let in by Postern; towards the server the host answers
//! for it, so that the client sees only that all is well.

use crate::accounts::Failure;
use crate::audit;
use crate::startup::{LONGEST_KEY, Startup};
use crate::wire::{self, Broken, HEAD};
use postern_sdk::codec::{Challenge, SecretMessage, Step, StepResult, TemplatePart};
use postern_sdk::input::Input;

/// Longest message before a session begins; libpq takes no more (`MAX_ERRLEN`).
const LONGEST: usize = 30_000;

pub const SCRAM: &str = "scram-sha-256";
pub const MD5: &str = "md5-postgres";

/// The login of one session.
#[derive(Debug)]
pub struct Login {
    user: String,
    /// There is no client that could see anything of it.
    unseen: bool,
    /// Of protocol 3, as negotiated.
    minor: u16,
    asked: Option<Asked>,
    /// SCRAM has begun, and the server has not proved that it knows the secret.
    unproved: bool,
    /// The server has let the user in.
    pub authenticated: bool,
    /// SQLSTATE of an error that the client has been sent.
    pub refused: Option<String>,
}

/// The question that the host has not answered.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Mechanism,
    Proof,
    ServersProof,
    Md5,
    Cleartext,
    CancelKey,
}

/// How far it is.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Wait for more, or for the answer to the question that was asked.
    Wait,
    /// The session begins.
    Session,
}

impl Login {
    pub fn new(startup: &Startup) -> Self {
        Self::of(&startup.user, startup.minor, false)
    }

    /// As the administrator, without a client.
    pub fn of_administrator(user: &str) -> Self {
        Self::of(user, 0, true)
    }

    fn of(user: &str, minor: u16, unseen: bool) -> Self {
        Login {
            user: user.to_owned(),
            unseen,
            minor,
            asked: None,
            unproved: false,
            authenticated: false,
            refused: None,
        }
    }

    /// Reads what the server sends.
    pub fn server(&mut self, input: &mut Input<'_>) -> Result<Next, Broken> {
        while let Some(head) = wire::server_head(input.left())? {
            if head.len > LONGEST {
                return Err(Broken("the server sent a message that is too long for a login; is it a PostgreSQL server?".into()));
            }
            let Some(message) = input.left().get(..head.len) else {
                return Ok(Next::Wait);
            };
            let body = &message[HEAD..];
            match (head.kind, self.authenticated) {
                (b'R', false) => {
                    if let Some(question) = self.authentication(body)? {
                        input.skip(head.len);
                        input.push(question);
                        return Ok(Next::Wait);
                    }
                    if !self.authenticated {
                        input.skip(head.len);
                        continue;
                    }
                }
                (b'K', true) if !self.unseen => {
                    input.skip(head.len);
                    if (8..=LONGEST_KEY).contains(&body.len()) {
                        // Before 3.2 keys had one length.
                        let most = if self.minor >= 2 { LONGEST_KEY } else { 8 };
                        self.asked = Some(Asked::CancelKey);
                        input.push(Step::OfferCancel((body.to_vec(), most as u32)));
                        return Ok(Next::Wait);
                    }
                    postern_sdk::warning!(
                        "the server's cancel key has {} bytes: this session can't be cancelled",
                        body.len()
                    );
                    continue;
                }
                (b'v', false) => {
                    // PostgreSQL sends the whole version or its minor part.
                    let newest = wire::u32_of(body).map_or(0, |(n, _)| n as u16);
                    self.minor = self.minor.min(newest);
                }
                (b'E', _) if self.unseen => {
                    return Err(Broken(format!(
                        "the database server refused the administrator {:?}: {}",
                        self.user,
                        Failure::read(body)
                    )));
                }
                (b'E', _) => {
                    self.refused = Some(
                        wire::error_field(body, b'C')
                            .unwrap_or("unknown")
                            .to_owned(),
                    );
                    input.event(audit::error(body, None));
                }
                (b'Z', true) => {
                    self.show(input, head.len);
                    return Ok(Next::Session);
                }
                (b'N' | b'S', _) | (_, true) => {}
                (kind, false) => {
                    return Err(Broken(format!(
                        "the server began with a message of type {:?} instead of a login",
                        kind as char
                    )));
                }
            }
            self.show(input, head.len);
        }
        Ok(Next::Wait)
    }

    fn show(&self, input: &mut Input<'_>, len: usize) {
        if self.unseen {
            input.skip(len);
        } else {
            input.pass(len);
        }
    }

    /// An authentication request. `None` with `authenticated` set: the client may see it.
    fn authentication(&mut self, body: &[u8]) -> Result<Option<Step>, Broken> {
        let cut = || Broken("the server's authentication request ends too early".into());
        let (code, rest) = wire::u32_of(body).ok_or_else(cut)?;
        let (asked, method) = match code {
            0 if self.unproved => {
                return Err(Broken(
                    "the server ended the login without a proof that it knows the password".into(),
                ));
            }
            0 => {
                self.authenticated = true;
                return Ok(None);
            }
            3 => {
                self.asked = Some(Asked::Cleartext);
                return Ok(Some(self.password()));
            }
            5 if rest.len() == 4 => (Asked::Md5, MD5),
            10 => (Asked::Mechanism, SCRAM),
            11 if self.unproved => (Asked::Proof, SCRAM),
            12 if self.unproved => (Asked::ServersProof, SCRAM),
            2 | 6 | 7 | 8 | 9 => {
                return Err(Broken(format!(
                    "the server wants {} of \"{}\", which Postern does not speak; let pg_hba.conf ask for cert or scram-sha-256",
                    match code {
                        7 | 8 => "GSSAPI",
                        9 => "SSPI",
                        2 => "Kerberos",
                        _ => "SCM credentials",
                    },
                    self.user
                )));
            }
            other => {
                return Err(Broken(format!(
                    "the server sent an authentication request {other} that makes no sense"
                )));
            }
        };
        self.asked = Some(asked);
        let data = match asked {
            // The list ends with an empty name.
            Asked::Mechanism => rest.strip_suffix(b"\0").unwrap_or(rest),
            _ => rest,
        };
        Ok(Some(Step::Answer(Challenge {
            method: method.into(),
            account: self.user.clone(),
            data: data.to_vec(),
        })))
    }

    /// PasswordMessage.
    fn password(&self) -> Step {
        Step::SendSecret(SecretMessage {
            account: self.user.clone(),
            parts: vec![
                TemplatePart::Bytes(vec![b'p']),
                // The length itself, and the zero byte.
                TemplatePart::LengthU32Be(5),
                TemplatePart::Secret,
                TemplatePart::Bytes(vec![0]),
            ],
        })
    }

    /// The host's answer; the error is for the client.
    pub fn answered(&mut self, result: StepResult) -> Result<Vec<Step>, String> {
        let send = |body: &[u8]| vec![Step::ToUpstream(wire::message(b'p', body))];
        match (self.asked.take(), result) {
            (Some(Asked::Mechanism), StepResult::Answered(answer)) => {
                let Some((mechanism, first)) = wire::text(&answer, answer.len()) else {
                    return Err("the host's answer to SASL names no mechanism".into());
                };
                self.unproved = true;
                let len = (first.len() as u32).to_be_bytes();
                Ok(send(&[mechanism, b"\0", &len, first].concat()))
            }
            (Some(Asked::Proof), StepResult::Answered(answer)) => Ok(send(&answer)),
            (Some(Asked::ServersProof), StepResult::Answered(_)) => {
                self.unproved = false;
                Ok(vec![])
            }
            (Some(Asked::Md5), StepResult::Answered(answer)) => {
                Ok(send(&[&answer, &b"\0"[..]].concat()))
            }
            (Some(Asked::Cleartext), StepResult::SecretSent) => Ok(vec![]),
            (Some(Asked::CancelKey), StepResult::CancelKey(key)) => {
                Ok(vec![Step::ToClient(wire::message(b'K', &key))])
            }
            (_, StepResult::AnswerFailed(why) | StepResult::SecretFailed(why)) => Err(format!(
                "Postern can't log in at the database server as \"{}\": {why}",
                self.user
            )),
            _ => Err("the host gave an answer to no question".into()),
        }
    }
}

#[cfg(test)]
mod tests;
