//! The real OpenSSH clients, rsync and a russh client against this crate's server, on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod access;
mod bench;
mod files;
mod forwarding;
mod limits;
mod sessions;
mod support;
