//! Runs plugins: WebAssembly components of the worlds in `wit/`, loaded, limited, replaced.
//!
//! The only crate that knows wasmtime; nothing of it shows in the public types. What to read first:
//!
//! - [`Runtime`]: the engines, the `.cwasm` cache, the CPU ticker. One per process, passed around explicitly.
//! - [`Plugin`]: one version of one component, compiled. Cheap to clone; old sessions keep the old version.
//! - [`Codec`] and [`SshGuard`]: one fresh instance each, for one connection (D6). A trap ends that one alone.
//! - [`script`]: plays sessions from a file through a plugin, for their authors.
//! - [`PluginError`]: what failed, on which plugin, and what to do about it.
#![deny(unsafe_code)] // cache.rs loads our own machine code, compile.rs lowers a thread's priority
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod asking;
mod bindings;
mod cache;
mod codec;
mod compile;
mod engine;
mod error;
mod inspect;
mod instance;
mod load;
mod logging;
mod meter;
mod metrics;
mod plugin;
pub mod script;
mod ssh;
mod ticker;
mod trusted;
mod types;

pub use asking::Asking;
pub use codec::Codec;
pub use error::{Cause, PluginError, SettingsProblem, TrapKind};
pub use load::Runtime;
pub use plugin::{FirstConnections, Plugin};
pub use ssh::SshGuard;
pub use trusted::trusted_path;
pub use types::*;
