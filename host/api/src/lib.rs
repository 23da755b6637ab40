//! How Postern's parts speak to the Auth Service: the gRPC definitions (`proto/postern.proto`, generated code
//! committed in `src/gen` so that nobody needs protoc), and what both ends must agree on beside them: how a
//! channel is opened, how a join is signed, what a token looks like, and how a refusal is worded.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod bootstrap;
mod connect;
pub mod https;
pub mod join;
pub mod status;
pub mod token;

/// The generated messages, clients and servers.
#[path = "gen/postern.v1.rs"]
pub mod v1;

pub use connect::{connect_lazy, connect_unix};

/// Upper bound of one gRPC message, either way (bytes). Both ends set it.
pub const MAX_MESSAGE: usize = 1024 * 1024;
