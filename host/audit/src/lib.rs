//! Audit events: their stable form, and the durable spool that an agent keeps until Auth has
//! stored them.
//!
//! An event that [`Emitter::emit`] acknowledged is on disk; it is delivered at least once, and
//! Auth tells repetitions by the event's `uid`.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod event;
pub mod spool;

pub use event::{Event, MAX_EVENT, names};
pub use spool::{
    BATCH, BATCH_BYTES, Emitter, Left, Others, Pending, Spool, SpoolError, SpoolState, others,
};
