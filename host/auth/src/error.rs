//! Why the Auth Service does not start, or why a call failed for a reason of ours.

use std::path::PathBuf;

use postern_api::status::{reasons, refuse};
use postern_identity::store::StoreError;
use tonic::{Code, Status};

use crate::db::DbError;
use crate::kv::KvError;

#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    #[error("auth: cannot listen on {addr}: {why}; is another process using the port?")]
    Listen { addr: String, why: String },
    #[error("auth: {what} {path}: {why}")]
    File {
        what: &'static str,
        path: PathBuf,
        why: String,
    },
    #[error("auth: {0}")]
    Store(#[from] StoreError),
    #[error("auth: {0}")]
    Db(#[from] DbError),
    #[error("auth: {0}")]
    Kv(#[from] KvError),
    #[error("auth: certificate authority: {0}")]
    Ca(String),
    #[error("auth: {0}")]
    Tls(String),
    #[error(
        "auth: the state in data_dir belongs to cluster {stored:?}, the configuration says {configured:?}; \
         set cluster = {stored:?}, or give the new cluster another data_dir"
    )]
    OtherCluster { stored: String, configured: String },
    #[error("auth: {0}")]
    Internal(String),
}

impl AuthError {
    pub fn ca(e: impl std::fmt::Display) -> Self {
        AuthError::Ca(e.to_string())
    }
}

/// What a caller hears of a failure of ours: the operator finds the details in Auth's log.
pub fn internal(what: &str, e: impl std::fmt::Display) -> Status {
    tracing::error!("{what}: {e}");
    refuse(
        Code::Unavailable,
        reasons::INTERNAL,
        format!("the Auth Service could not {what} (its log says why); try again"),
    )
}

/// The same towards an administrator on the Auth host, who is told what is wrong.
pub fn failed(what: &str, e: impl std::fmt::Display) -> Status {
    tracing::error!("{what}: {e}");
    refuse(
        Code::Unavailable,
        reasons::INTERNAL,
        format!("cannot {what}: {e}"),
    )
}
