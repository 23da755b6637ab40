//! SSH towards users: one connection in, sessions, forwardings and SFTP out.
//!
//! [`serve`] speaks SSH on any byte stream (a tunnel's, a socket's). Who may come in is the [`Gate`]'s decision (certificates,
//! locks, roles: the agent's), what a session may do is asked of the plugin before it happens, and what runs, runs as the
//! requested login in a session child ([`session_child_main`], design D10): this process never holds a user's privileges and the
//! user's processes never hold this one's.
//!
//! The way of a byte: `channel` takes what a client asks on one channel, `launch` starts the session child and gets
//! its pipes or PTY back, `pump` moves the bytes, `flow` keeps a slow process from blocking the rest of the connection.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod audit;
mod channel;
mod flow;
mod forward;
mod handler;
mod io;
mod launch;
mod login;
mod pump;
mod shared;
mod types;

pub use types::{
    Admitted, Gate, HostIdentity, SessionContext, SessionSummary, SshdError, SshdOptions,
};

mod serve;
pub use serve::serve;

mod child;
pub use child::session_child_main;

mod guard;
pub use guard::{Guard, GuardError, GuardSource};
