//! What agent and session child say to each other.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// No request is longer: a command is at most one SSH packet, the environment is limited.
pub const MAX_BYTES: usize = 2 << 20;

/// The account a session runs as, looked up by the agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Login {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
    pub shell: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Run {
    /// The login shell, interactive.
    Shell,
    /// `shell -c …`
    Command(String),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PtyRequest {
    pub cols: u16,
    pub rows: u16,
    pub xpixel: u16,
    pub ypixel: u16,
    /// RFC 4254 §8: opcode and argument.
    pub modes: Vec<(u8, u32)>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    pub login: Login,
    pub run: Run,
    /// The whole environment, except `SSH_TTY`.
    pub env: Vec<(String, String)>,
    pub pty: Option<PtyRequest>,
    /// See [`crate::SshdOptions::nologin`].
    pub nologin: Vec<PathBuf>,
}

/// After `Ready` (with the descriptors: PTY master, or the agent's ends of stdin, stdout, stderr) the socket closes when the
/// shell runs, or `Failed` comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Ready,
    Failed(String),
}
