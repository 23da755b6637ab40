//! The commands, one a file: their arguments, which are their documentation, and what they do.

pub mod agents;
pub mod audit;
pub mod config;
pub mod db;
pub mod locks;
pub mod login;
pub mod logout;
pub mod ls;
pub mod proxy;
pub mod roles;
pub mod ssh;
pub mod status;
pub mod tokens;
pub mod users;
