//! Runs plugins: WebAssembly components of the worlds in `wit/`, loaded, limited, replaced.
//!
//! The only crate that knows wasmtime; nothing of it shows in the public types. What to read first:
//!
//! - [`Runtime`]: the engines, the `.cwasm` cache, the CPU ticker. One per process, passed around explicitly.
//! - [`Plugin`]: one version of one component, compiled. Cheap to clone; old sessions keep the old version.
//! - [`Codec`] and [`SshGuard`]: one fresh instance each, for one connection (D6). A trap ends that one alone.
//! - [`PluginError`]: what failed, on which plugin, and what to do about it.
#![forbid(unsafe_op_in_unsafe_fn)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod error;
mod runtime;
mod types;

pub use error::{Cause, PluginError, TrapKind};
pub use runtime::{Codec, Plugin, Runtime, SshGuard};
pub use types::*;
