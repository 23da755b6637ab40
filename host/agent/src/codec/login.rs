//! Logging in at a server in a plugin's stead: the secret is read when it is needed, stays here, and answers one challenge
//! exchange per connection.

use postern_config::{Secret, UpstreamAdmin, UpstreamAuth};
use postern_plugin::Challenge;
use postgres_protocol::authentication::{md5_hash, sasl};
use sasl::{ChannelBinding, ScramSha256};

/// Rounds of hashing that a server may ask for; PostgreSQL's default is 4096. A server could otherwise keep a CPU busy for as
/// long as it likes.
const MAX_ITERATIONS: u64 = 1_000_000;
/// The longest challenge.
const MAX_CHALLENGE: usize = 8 << 10;

pub const SCRAM: &str = "scram-sha-256";
pub const MD5: &str = "md5-postgres";

/// How far the exchange on the connection made last is.
#[derive(Default)]
pub enum Exchange {
    #[default]
    Fresh,
    /// The client's first message is out.
    Begun(Box<Scram>),
    /// The client's last message is out.
    Proven(Box<Scram>),
    Done,
}

pub struct Scram {
    account: String,
    scram: ScramSha256,
}

/// Where the secret of an account is.
pub fn secret(
    auth: &UpstreamAuth,
    admin: Option<&UpstreamAdmin>,
    account: &str,
) -> Result<Secret, String> {
    let source = match admin {
        Some(admin) => Some(&admin.password),
        None => auth.password_of(account),
    };
    match (source, auth) {
        (Some(source), _) => source.read().map_err(|e| {
            // Which file it is, is the operator's business.
            tracing::error!(account, "no password for a login at a server: {e}");
            format!("this host can't read the password of {account:?}; ask its operator to look at the log")
        }),
        (None, UpstreamAuth::Password { .. }) => Err(format!(
            "this host has no password for account {account:?}; its operator sets one by auth.passwords of the resource"
        )),
        (None, UpstreamAuth::Certificate) => Err(format!(
            "the server wants a password for account {account:?}, but this host logs in with a certificate; its operator sets auth = {{ method = \"password\", … }} of the resource, or `cert` for it in the server's pg_hba.conf"
        )),
    }
}

impl Exchange {
    /// A secret in the clear is an exchange of its own.
    pub fn cleartext(&mut self) -> Result<(), String> {
        match std::mem::replace(self, Exchange::Done) {
            Exchange::Fresh => Ok(()),
            _ => Err("the server wants a second login on one connection, which no server should; the connection can't be used".into()),
        }
    }

    /// Answers a challenge for an account that has been checked. `end_point`: of the server's certificate, where there is TLS.
    /// `known`: nobody else can be at the other end, nor in between: TLS was verified in full, or it is a Unix socket.
    pub async fn answer(
        &mut self,
        challenge: &Challenge,
        end_point: Option<Vec<u8>>,
        known: bool,
        secret: impl FnOnce() -> Result<Secret, String>,
    ) -> Result<Vec<u8>, String> {
        if challenge.data.len() > MAX_CHALLENGE {
            return Err("the server's challenge is longer than 8 KiB".into());
        }
        let account = challenge.account.as_str();
        // Whatever happens, what was here is used up.
        match (challenge.method.as_str(), std::mem::replace(self, Exchange::Done)) {
            (SCRAM, Exchange::Fresh) => {
                let (scram, first) = begin(&challenge.data, end_point, &secret()?)?;
                let account = account.to_owned();
                *self = Exchange::Begun(Box::new(Scram { account, scram }));
                Ok(first)
            }
            (SCRAM, Exchange::Begun(begun)) if begun.account == account => {
                check_iterations(&challenge.data)?;
                let data = challenge.data.clone();
                // Thousands of rounds: not on a thread that serves others.
                let proven = tokio::task::spawn_blocking(move || {
                    let mut begun = begun;
                    begun.scram.update(&data).map(|()| begun)
                });
                let proven = proven.await.map_err(|e| e.to_string())?;
                let proven = proven.map_err(|e| format!("the server's challenge: {e}"))?;
                let last = proven.scram.message().to_vec();
                *self = Exchange::Proven(proven);
                Ok(last)
            }
            (SCRAM, Exchange::Proven(mut proven)) if proven.account == account => {
                let genuine = proven.scram.finish(&challenge.data);
                genuine.map_err(|e| {
                    format!("the server did not prove that it knows the password of {account:?}: {e}")
                })?;
                Ok(Vec::new())
            }
            // The salt is the asker's choice: who may choose it can log in elsewhere with the answer, or search for the password.
            (MD5, Exchange::Fresh) if !known => Err(format!(
                "the server wants the password of {account:?} by MD5, whose answer is worth a login to whoever is in between, so it is given over verified TLS and Unix sockets only; let the server ask by scram-sha-256 (password_encryption, and the password set anew), or set tls.mode of the resource to \"verify-full\""
            )),
            (MD5, Exchange::Fresh) => {
                let salt = <[u8; 4]>::try_from(challenge.data.as_slice())
                    .map_err(|_| "the server's salt is not 4 bytes".to_owned())?;
                let hash = md5_hash(account.as_bytes(), secret()?.expose().as_bytes(), salt);
                Ok(hash.into_bytes())
            }
            (SCRAM | MD5, _) => Err(
                "the server wants a second login on one connection, which no server should; the connection can't be used"
                    .into(),
            ),
            (other, _) => Err(format!("this host can't answer challenges of method {other:?}")),
        }
    }
}

/// The mechanism chosen, and the first message.
fn begin(
    offered: &[u8],
    end_point: Option<Vec<u8>>,
    secret: &Secret,
) -> Result<(ScramSha256, Vec<u8>), String> {
    let offers = |name: &str| offered.split(|b| *b == 0).any(|m| m == name.as_bytes());
    let plus = offers(sasl::SCRAM_SHA_256_PLUS);
    let (mechanism, binding) = match end_point {
        Some(hash) if plus => (
            sasl::SCRAM_SHA_256_PLUS,
            ChannelBinding::tls_server_end_point(hash),
        ),
        _ if !offers(sasl::SCRAM_SHA_256) => {
            let names = String::from_utf8_lossy(offered).replace('\0', " ");
            return Err(format!(
                "the server offers none of the mechanisms that this host knows (it offers: {})",
                names.trim().escape_debug()
            ));
        }
        // We could and the server could not: it notices if somebody in between took its offer away.
        Some(_) => (sasl::SCRAM_SHA_256, ChannelBinding::unrequested()),
        None => (sasl::SCRAM_SHA_256, ChannelBinding::unsupported()),
    };
    let scram = ScramSha256::new(secret.expose().as_bytes(), binding);
    let mut first = mechanism.as_bytes().to_vec();
    first.push(0);
    first.extend_from_slice(scram.message());
    Ok((scram, first))
}

/// `i=` of the server's first message (RFC 5802, section 5.1); what it is besides is checked where it is used.
fn check_iterations(data: &[u8]) -> Result<(), String> {
    let mut attributes = data.split(|b| *b == b',');
    let asked = attributes.find_map(|a| a.strip_prefix(b"i="));
    let asked = asked.and_then(|n| std::str::from_utf8(n).ok()?.parse::<u64>().ok());
    match asked {
        Some(n) if n <= MAX_ITERATIONS => Ok(()),
        _ => Err(format!(
            "the server's challenge asks for no number of rounds, or for more than {MAX_ITERATIONS}"
        )),
    }
}

#[cfg(test)]
mod tests;
