//! What the two ends say to each other: the header ahead of a stream's bytes, and the frames of the control
//! channel. Both are a big-endian `u32` length and that many bytes of JSON. Everything here is read from the
//! network, so every length has a limit.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest [`StreamHeader`], in bytes of JSON.
pub const MAX_HEADER: usize = 4096;
/// Largest frame of the control channel, in bytes of JSON.
pub const MAX_FRAME: usize = 64 * 1024;
/// Resources announced in one frame; more come in further frames (63-byte names keep it under [`MAX_FRAME`]).
pub(crate) const ANNOUNCE_CHUNK: usize = 500;

/// What the proxy tells the agent about a stream, ahead of its bytes (at most [`MAX_HEADER`] bytes).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamHeader {
    /// Kind of the resource asked for.
    pub kind: String,
    /// Name of the resource asked for.
    pub resource: String,
    /// Where the client's connection came from, `ip:port`.
    pub source: String,
    /// The user as authenticated at the proxy: for logs only, the agent decides from the user's own certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The client is anonymous so far: an unauthenticated ClientHello was passed through.
    #[serde(default)]
    pub direct: bool,
    /// A cancel request in plaintext follows, of whatever session has its key; `resource` is empty.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancel: bool,
    /// Correlates the logs of proxy and agent.
    #[serde(default)]
    pub trace: String,
}

/// One resource that an agent's service offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnouncedResource {
    /// DNS label, unique per kind.
    pub name: String,
    /// Whether clients that have not authenticated at the proxy may be passed through.
    #[serde(default)]
    pub direct: bool,
    /// The agent finds that the resource's own address does not answer: other agents that serve it are preferred.
    /// From an older agent, or one that does not probe: `false`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unhealthy: bool,
}

/// What an agent's service announces over its control connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Kind of every resource in it.
    pub kind: String,
    /// All resources; the next announcement replaces this one.
    pub resources: Vec<AnnouncedResource>,
    /// Version of posternd.
    pub version: String,
}

/// One frame of the control channel, either way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub(crate) enum Frame {
    /// Agent → proxy. The first one is the greeting. `more`: the rest of the list follows in another frame.
    Announce {
        #[serde(flatten)]
        announcement: Announcement,
        /// How many idle data connections the agent keeps.
        warm: usize,
        #[serde(default)]
        more: bool,
    },
    /// Proxy → agent: the answer to each complete announcement. `refused` names are not in the certificate.
    Welcome {
        version: String,
        #[serde(default)]
        refused: Vec<String>,
    },
    Ping {
        seq: u64,
    },
    Pong {
        seq: u64,
    },
    /// Proxy → agent: so many streams wait for a data connection.
    WantData {
        n: usize,
    },
    /// Proxy → agent: connect anew at once, this connection ends.
    Goodbye {
        reason: String,
    },
    /// Proxy → agent: another connection of the same service carries the new streams now; live ones go on here.
    Superseded,
    /// Agent → proxy: no new streams, please.
    Drain,
    /// Proxy → agent: no new stream comes after this.
    Drained,
    /// From a newer version: ignored.
    #[serde(other)]
    Unknown,
}

pub(crate) fn encode<T: Serialize>(value: &T, limit: usize) -> io::Result<Vec<u8>> {
    let mut out = vec![0; 4];
    serde_json::to_writer(&mut out, value)?;
    let len = out.len() - 4;
    if len > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("message of {len} bytes is longer than {limit}"),
        ));
    }
    out[..4].copy_from_slice(&(len as u32).to_be_bytes());
    Ok(out)
}

/// Reads a length-prefixed JSON value of at most `limit` bytes. A clean end before the first byte is
/// `UnexpectedEof`; a length above the limit or wrong JSON is `InvalidData`.
pub async fn read_json<T: DeserializeOwned>(
    io: &mut (impl AsyncRead + Unpin),
    limit: usize,
) -> io::Result<T> {
    let len = io.read_u32().await? as usize;
    if len > limit {
        return Err(invalid(format!(
            "message of {len} bytes is longer than {limit}"
        )));
    }
    let mut body = vec![0; len];
    io.read_exact(&mut body).await?;
    parse_json(&body)
}

/// Writes a length-prefixed JSON value and flushes it.
pub async fn write_json<T: Serialize>(
    io: &mut (impl AsyncWrite + Unpin),
    value: &T,
    limit: usize,
) -> io::Result<()> {
    io.write_all(&encode(value, limit)?).await?;
    io.flush().await
}

/// The body of a length-prefixed message (a plain function, so that it can be fuzzed).
pub fn parse_json<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    serde_json::from_slice(body).map_err(|e| invalid(format!("malformed message: {e}")))
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn too_long_is_refused_before_it_is_read() {
        let (mut a, mut b) = tokio::io::duplex(64);
        a.write_u32(MAX_HEADER as u32 + 1).await.unwrap();
        let e = read_json::<StreamHeader>(&mut b, MAX_HEADER)
            .await
            .unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_full_part_of_an_announcement_fits_into_a_frame() {
        let resource = AnnouncedResource {
            name: "x".repeat(63),
            direct: false,
            unhealthy: true,
        };
        let frame = Frame::Announce {
            announcement: Announcement {
                kind: "k".repeat(63),
                resources: vec![resource; ANNOUNCE_CHUNK],
                version: "0".repeat(63),
            },
            warm: 64,
            more: true,
        };
        encode(&frame, MAX_FRAME).unwrap();
    }

    #[test]
    fn unknown_frames_are_ignored_and_known_ones_keep_their_form() {
        let f: Frame = parse_json(br#"{"type":"from-the-future","x":1}"#).unwrap();
        assert_eq!(f, Frame::Unknown);
        let f: Frame = parse_json(
            br#"{"type":"announce","kind":"ssh","resources":[{"name":"web-1"}],"version":"1","warm":1}"#,
        )
        .unwrap();
        assert!(matches!(
            f,
            Frame::Announce {
                warm: 1,
                more: false,
                ..
            }
        ));
        let Frame::Announce { announcement, .. } = f else {
            unreachable!()
        };
        assert!(!announcement.resources[0].unhealthy);
        assert_eq!(
            serde_json::to_string(&Frame::WantData { n: 2 }).unwrap(),
            r#"{"type":"want-data","n":2}"#
        );
    }
}
