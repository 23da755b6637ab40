//! What a client begins with: requests for encryption, a request to cancel, or the startup message.

use crate::wire;

/// PostgreSQL takes no more (`MAX_STARTUP_PACKET_LENGTH`).
const LONGEST: usize = 10_000;
/// Names longer than this are cut by the server (`NAMEDATALEN - 1`): what we asked about would not be what is used.
const LONGEST_NAME: usize = 63;

/// Bytes of a cancel key that the host gives, process id included.
pub const LONGEST_KEY: usize = 256;

const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSS: u32 = 80_877_104;

/// `SSLRequest`, as it is sent to the server.
pub fn ssl_request() -> Vec<u8> {
    wire::untyped(SSL, &[])
}

/// `CancelRequest`, with the server's key.
pub fn cancel_request(key: &[u8]) -> Vec<u8> {
    wire::untyped(CANCEL, key)
}

/// One first message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum First {
    /// Not all of it is there.
    Partial,
    /// It asks for encryption inside of the TLS that we have.
    Encryption {
        len: usize,
        gss: bool,
    },
    /// It asks to cancel the session with this key.
    Cancel {
        len: usize,
        key: Vec<u8>,
    },
    Startup(Startup),
}

/// The startup message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Startup {
    /// As it came; it goes to the server like that.
    pub bytes: Vec<u8>,
    /// The 2 of 3.2.
    pub minor: u16,
    pub user: String,
    pub database: String,
    pub replication: bool,
    /// All other parameters, as they came.
    pub settings: Vec<(Vec<u8>, Vec<u8>)>,
}

/// SQLSTATE and words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(pub &'static str, pub String);

fn refused<T>(sqlstate: &'static str, why: impl Into<String>) -> Result<T, Refused> {
    Err(Refused(sqlstate, why.into()))
}

/// Reads the first message.
pub fn first(data: &[u8]) -> Result<First, Refused> {
    let Some((len, rest)) = wire::u32_of(data) else {
        return Ok(First::Partial);
    };
    let len = len as usize;
    if !(8..=LONGEST).contains(&len) {
        return refused("08P01", no_postgres(data));
    }
    let Some((code, rest)) = wire::u32_of(rest) else {
        return Ok(First::Partial);
    };
    let Some(body) = rest.get(..len - 8) else {
        return Ok(First::Partial);
    };
    match (code, code >> 16) {
        (SSL | GSS, _) if body.is_empty() => Ok(First::Encryption {
            len,
            gss: code == GSS,
        }),
        (CANCEL, _) if (8..=LONGEST_KEY).contains(&body.len()) => Ok(First::Cancel {
            len,
            key: body.to_vec(),
        }),
        (SSL | GSS | CANCEL, _) => refused(
            "08P01",
            "a request before the start has an impossible length",
        ),
        (_, 3) => startup(&data[..len], code as u16, body).map(First::Startup),
        (_, major) => refused(
            "0A000",
            format!(
                "protocol version {major}.{} is not known here; it is 3.0 to 3.2 for all of today's clients",
                code as u16
            ),
        ),
    }
}

fn no_postgres(data: &[u8]) -> String {
    let what = match data {
        [0x16, 3, ..] => {
            ": it speaks TLS inside of TLS; set sslmode=disable, the connection to Postern is encrypted already"
        }
        [b'G', b'E', b'T', b' ', ..] | [b'P', b'O', b'S', b'T', ..] => ": it speaks HTTP",
        [b'S', b'S', b'H', b'-', ..] => ": it speaks SSH",
        _ => "",
    };
    format!("this is no client of PostgreSQL{what}")
}

fn startup(bytes: &[u8], minor: u16, body: &[u8]) -> Result<Startup, Refused> {
    let (mut user, mut database, mut replication) = (None, None, None);
    let mut settings = Vec::new();
    let mut rest = body;
    loop {
        let Some((name, after)) = wire::text(rest, rest.len()) else {
            return refused("08P01", "the startup message ends within a parameter");
        };
        if name.is_empty() {
            if !after.is_empty() {
                return refused("08P01", "the startup message goes on after its end");
            }
            break;
        }
        let Some((value, after)) = wire::text(after, after.len()) else {
            return refused("08P01", "the startup message ends within a parameter");
        };
        rest = after;
        let known = match name {
            b"user" => &mut user,
            b"database" => &mut database,
            b"replication" => &mut replication,
            _ => {
                settings.push((name.to_vec(), value.to_vec()));
                continue;
            }
        };
        // Servers differ in which of two they take.
        if known.replace(value).is_some() {
            let name = String::from_utf8_lossy(name);
            return refused(
                "08P01",
                format!("the startup message says twice what {name} is"),
            );
        }
    }
    let user = match user {
        Some(user) if !user.is_empty() => named("user", user)?,
        _ => return refused("28000", "the client names no database user"),
    };
    let database = match database {
        Some(database) if !database.is_empty() => named("database", database)?,
        _ => user.clone(),
    };
    Ok(Startup {
        bytes: bytes.to_vec(),
        minor,
        user,
        database,
        replication: replication.is_some_and(|r| !is_false(r)),
        settings,
    })
}

fn named(what: &str, name: &[u8]) -> Result<String, Refused> {
    if name.len() > LONGEST_NAME {
        return refused(
            "28000",
            format!("the name of the {what} is longer than {LONGEST_NAME} bytes"),
        );
    }
    match std::str::from_utf8(name) {
        Ok(name) => Ok(name.to_owned()),
        Err(_) => refused("28000", format!("the name of the {what} is not UTF-8")),
    }
}

/// What PostgreSQL's `parse_bool` takes for false. Anything else may ask for replication.
fn is_false(value: &[u8]) -> bool {
    let value = value.to_ascii_lowercase();
    let begins = |word: &[u8], least: usize| value.len() >= least && word.starts_with(&value);
    begins(b"false", 1) || begins(b"no", 1) || begins(b"off", 2) || value == b"0"
}

#[cfg(test)]
mod tests;
