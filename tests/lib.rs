//! End-to-end tests of Postern: the real `posternd` and `postern`, the OpenSSH client and whatever else people use,
//! in temporary directories, on free loopback ports, or in network namespaces of their own.
//!
//! Each file beside this one is a suite. [`harness`] is what they share; `cargo xtask demo` and `bench` use it as well.
//! A suite builds nothing: `cargo xtask test` does that before it runs them.
#![forbid(unsafe_code)]

pub mod harness;

pub use harness::*;
