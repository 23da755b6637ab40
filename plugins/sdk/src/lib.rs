//! What authors of Postern plugins use: a trait per world, typed settings, globs, logging; for databases messages and events.
//!
//! ```ignore
//! struct Tcp;
//! impl postern_sdk::codec::Codec for Tcp { … }
//! postern_sdk::export_codec!(Tcp);
//! ```
//!
//! A plugin is a pure state machine: everything it knows comes in through the trait's methods, everything it wants goes out
//! as their result. So it is tested natively, by calling these methods (`cargo test`), and `wit/` explains every item.

pub mod accounts;
pub mod codec;
pub mod event;
pub mod glob;
pub mod input;
pub mod log;
pub mod manifest;
pub mod settings;
pub mod ssh;

pub use manifest::{Manifest, Wants};
pub use postern_world_imports::postern::plugin::types::{AuditEvent, Endpoint, Principals, Side};
pub use settings::{Problem, Settings};
