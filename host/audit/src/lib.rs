//! Audit events: their stable form, and the durable spool that an agent keeps until Auth has stored them.
//! (`event.rs`: Event and constructors of the named events; `spool.rs`: the spool.)
pub mod event { 
/// One audit event. JSON: {"uid","event","version","time","cluster", ...fields flattened}
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Event { /** UUIDv7, the idempotency key */ pub uid: String, /** stable name, e.g. `session.start` */ pub event: String, /** schema version of this event name */ pub version: u32, /** RFC 3339 UTC, ms */ pub time: String, #[serde(flatten)] pub fields: serde_json::Map<String, serde_json::Value> }
impl Event {
    pub fn new(name: &str) -> Self { todo!() }
    /// Sets a field (builder style); null values are left out.
    pub fn with(self, key: &str, value: impl serde::Serialize) -> Self { todo!() }
}
pub mod names { pub const USER_LOGIN: &str = "user.login"; pub const AGENT_JOIN: &str = "agent.join"; pub const SESSION_START: &str = "session.start"; pub const SESSION_END: &str = "session.end"; pub const SESSION_REJECTED: &str = "session.rejected"; pub const EXEC: &str = "exec"; pub const RESOURCE_CONFLICT: &str = "resource.conflict"; pub const AGENT_COPIED: &str = "agent.copied"; pub const PORT_FORWARD: &str = "port.forward"; pub const JOIN_REFUSED: &str = "agent.join.refused"; pub const PLUGIN_TRAP: &str = "plugin.trap"; pub const AUTH_REFUSED: &str = "auth.refused"; }
}
pub mod spool {
use crate::event::Event;
/// Where events go. Cheap to clone. `emit` is durable when it returns (group commit); where the disk is full it says so.
#[derive(Clone)] pub struct Emitter { }
#[derive(Debug, Clone, thiserror::Error)] #[error("audit spool {path}: {why}")] pub struct SpoolError { pub path: String, pub why: String }
impl Emitter { pub async fn emit(&self, event: Event) -> Result<(), SpoolError> { todo!() } 
  /// For events that need not be durable before going on; errors are logged.
  pub fn emit_later(&self, event: Event) { todo!() } }
/// The queue on disk: append-only segments of JSON lines, fsynced in groups, deleted when delivered.
pub struct Spool { }
impl Spool {
    /// Opens (or recovers: a torn last line is cut) the spool in `dir`.
    pub async fn open(dir: &std::path::Path, max_bytes: u64) -> Result<(Spool, Emitter), SpoolError> { todo!() }
    /// Delivers batches until cancelled: `deliver` returns Ok when Auth has stored the batch (deduplicated by uid). Retries with backoff.
    pub async fn deliver<F, Fut>(self, deliver: F) where F: FnMut(Vec<Event>) -> Fut + Send, Fut: Future<Output = Result<(), String>> + Send { todo!() }
}
}
pub use event::{Event, names}; pub use spool::{Emitter, Spool, SpoolError};
