//! ID tokens of other parties' issuers (OpenID Connect): whether one is genuine, and whether a host that shows it may
//! join. Pure: keys, rules and the time are given, nothing is fetched or stored here.

#![forbid(unsafe_code)]

mod keys;
mod refusal;
mod rules;
mod verify;

pub use keys::{Keys, KeysError};
pub use refusal::Refusal;
pub use rules::{Admit, Rule, RulesError};
pub use verify::{LEEWAY, Policy, Proof, verify};

#[cfg(test)]
mod tests;
