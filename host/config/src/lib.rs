//! The configuration file (design D4): its types, how it is read and checked, and
//! the difference of two versions.
//!
//! - `model`: the types, whose doc comments are the reference manual;
//! - [`load`]: TOML files to a [`Config`], with every error and its place;
//! - `shape`: unknown keys and wrong types, decided by the types' own JSON schema;
//! - `validate`: what a type can't say (names, addresses, what needs what);
//! - [`diff`]: what changed between two configurations, as a person reads it;
//! - [`reference`]: `docs/configuration.md`, made from the types.
//!
//! Nothing here reads the environment but [`SecretSource::read`], and nothing but the files named is opened.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod address;
mod diff;
mod error;
mod keypath;
mod load;
mod model;
mod reference;
mod secret;
mod shape;
mod upstream;
mod validate;

pub use address::{Address, AddressError};
pub use diff::{Change, diff};
pub use error::{ConfigError, Diagnostic};
pub use load::{load, parse, sources};
pub use model::{
    Agent, Auth, CertFiles, Config, Diag, HealthCheck, JoinParams, Limits, LockMode, Log,
    LogFormat, Proxy, Resource, Rollback, Service, SshOptions, Transport,
};
pub use reference::reference;
pub use secret::{Secret, SecretFileError};
pub use upstream::{
    ANY_ACCOUNT, SecretError, SecretSource, TlsMode, UpstreamAdmin, UpstreamAuth, UpstreamTls,
};
pub use validate::{RESERVED_KINDS, warnings};
