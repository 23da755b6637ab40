//! The wire format, as far as it has to be read here: heads of messages, zero-terminated texts, and the two messages that
//! are written (https://www.postgresql.org/docs/current/protocol-message-formats.html).
//!
//! By hand, because looking at heads in place is what this plugin is for; the crate `postgres-protocol` parses a client's
//! side of the conversation out of owned buffers.

/// Bytes before the body: the type, and the length of everything but the type.
pub const HEAD: usize = 5;
/// Longest message of a type that carries data: `PQ_LARGE_MESSAGE_LIMIT`, 1 GiB.
const LARGE: usize = 0x3fff_fffe;
/// Longest message of any other type: `PQ_SMALL_MESSAGE_LIMIT`.
const SMALL: usize = 10_000;

/// What one side sent makes no sense; worded for the user, and for the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken(pub String);

/// The head of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub kind: u8,
    /// Of the whole message, its head included.
    pub len: usize,
}

/// The first message of a client's `data`, if its head is there.
pub fn client_head(data: &[u8]) -> Result<Option<Head>, Broken> {
    let Some(head) = head(data) else {
        return Ok(None);
    };
    let most = match head.kind {
        b'Q' | b'P' | b'B' | b'F' | b'd' => LARGE,
        b'E' | b'D' | b'C' | b'S' | b'H' | b'X' | b'c' | b'f' => SMALL,
        other => {
            let what = shown(other);
            return Err(Broken(format!(
                "a client's message can't be of type {what}"
            )));
        }
    };
    checked(head, most, "the client").map(Some)
}

/// The first message of a server's `data`, if its head is there. Types that PostgreSQL does not know are let through: other
/// servers speak this protocol too.
pub fn server_head(data: &[u8]) -> Result<Option<Head>, Broken> {
    let Some(head) = head(data) else {
        return Ok(None);
    };
    if !head.kind.is_ascii_alphanumeric() {
        let what = shown(head.kind);
        return Err(Broken(format!(
            "a server's message can't be of type {what}"
        )));
    }
    checked(head, LARGE, "the server").map(Some)
}

/// Bytes of the whole messages of this type that `data` begins with: the fast way through rows and COPY data.
pub fn run(data: &[u8], kind: u8) -> usize {
    let mut at = 0;
    while let Some((head, body)) = data[at..].split_first_chunk::<HEAD>() {
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        // What is longer than what is there, or no length at all, is for `head`.
        if head[0] != kind || len < HEAD - 1 || len - (HEAD - 1) > body.len() {
            break;
        }
        at += len + 1;
    }
    at
}

fn head(data: &[u8]) -> Option<Head> {
    let (kind, rest) = data.split_first()?;
    let len = rest.first_chunk().map(|len| u32::from_be_bytes(*len))?;
    Some(Head {
        kind: *kind,
        len: (len as usize).saturating_add(1),
    })
}

fn checked(head: Head, most: usize, who: &str) -> Result<Head, Broken> {
    if (HEAD..=most).contains(&head.len) {
        return Ok(head);
    }
    let (what, says) = (shown(head.kind), head.len - 1);
    Err(Broken(format!(
        "{who} sent a message of type {what} with the impossible length {says}"
    )))
}

fn shown(kind: u8) -> String {
    match kind {
        b if b.is_ascii_graphic() => format!("'{}'", b as char),
        b => format!("0x{b:02x}"),
    }
}

/// Splits a text off that a zero byte ends, which must be within the first `most` bytes.
pub fn text(data: &[u8], most: usize) -> Option<(&[u8], &[u8])> {
    let end = data.iter().take(most).position(|b| *b == 0)?;
    Some((&data[..end], &data[end + 1..]))
}

/// Splits a number off.
pub fn u16_of(data: &[u8]) -> Option<(u16, &[u8])> {
    let (n, rest) = data.split_first_chunk()?;
    Some((u16::from_be_bytes(*n), rest))
}

/// Splits a number off.
pub fn u32_of(data: &[u8]) -> Option<(u32, &[u8])> {
    let (n, rest) = data.split_first_chunk()?;
    Some((u32::from_be_bytes(*n), rest))
}

/// A message of this type.
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD + body.len());
    out.push(kind);
    out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(body);
    out
}

/// A message without a type, as clients begin with.
pub fn untyped(code: u32, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + body.len());
    out.extend_from_slice(&(body.len() as u32 + 8).to_be_bytes());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(body);
    out
}

/// An ErrorResponse that ends a session, as every client shows it.
pub fn fatal(sqlstate: &str, why: &str) -> Vec<u8> {
    let mut body = Vec::new();
    for (field, value) in [
        (b'S', "FATAL"),
        (b'V', "FATAL"),
        (b'C', sqlstate),
        (b'M', why),
    ] {
        body.push(field);
        body.extend(value.bytes().filter(|b| *b != 0));
        body.push(0);
    }
    body.push(0);
    message(b'E', &body)
}

/// Fields of an ErrorResponse: what `field` holds, if it is text and within what is there of the body.
pub fn error_field(body: &[u8], field: u8) -> Option<&str> {
    let mut rest = body;
    loop {
        let (name, after) = rest.split_first()?;
        let (value, after) = text(after, after.len())?;
        if *name == field {
            return std::str::from_utf8(value).ok();
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads() {
        assert_eq!(client_head(b"Q\0\0\0"), Ok(None));
        assert_eq!(
            client_head(b"Q\0\0\0\x06x"),
            Ok(Some(Head { kind: b'Q', len: 7 }))
        );
        assert!(client_head(b"Q\0\0\0\x03").is_err());
        assert!(client_head(b"Q\x7f\0\0\0").is_err());
        assert!(client_head(b"S\0\x01\0\0").is_err());
        assert!(client_head(b"d\0\x01\0\0").is_ok());
        assert!(client_head(b"p\0\0\0\x04").unwrap_err().0.contains("'p'"));
        assert!(server_head(b"\0\0\0\0\x04").unwrap_err().0.contains("0x00"));
        assert_eq!(
            server_head(b"q\0\0\0\x04"),
            Ok(Some(Head { kind: b'q', len: 5 }))
        );
        assert!(server_head(b"D\xff\xff\xff\xff").is_err());
    }

    #[test]
    fn runs_end_before_what_is_not_there() {
        let rows = [
            message(b'd', b"a"),
            message(b'd', b""),
            message(b'd', b"bcd"),
        ]
        .concat();
        assert_eq!(run(&rows, b'd'), rows.len());
        assert_eq!(run(&rows, b'D'), 0);
        assert_eq!(run(&rows[..rows.len() - 1], b'd'), 11);
        assert_eq!(
            run(&[&rows, &b"C\0\0\0\x04"[..]].concat(), b'd'),
            rows.len()
        );
        assert_eq!(run(b"d\0\0\0\x03abc", b'd'), 0);
        assert_eq!(run(b"d\xff\xff\xff\xffabc", b'd'), 0);
    }

    #[test]
    fn an_error_reads_as_it_was_written() {
        let error = fatal("28000", "no\0t you");
        assert_eq!(server_head(&error).unwrap().unwrap().len, error.len());
        assert_eq!(error_field(&error[HEAD..], b'C'), Some("28000"));
        assert_eq!(error_field(&error[HEAD..], b'M'), Some("not you"));
        assert_eq!(error_field(&error[HEAD..], b'D'), None);
        assert_eq!(error_field(&error[HEAD..HEAD + 3], b'C'), None);
    }
}
