//! What a command ends with when it fails: one sentence that says what failed, why, and what to
//! do, and the exit code.

/// A failed command. Exit code 1, or 2 where the command line itself was wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    /// Something did not work.
    pub fn new(message: impl Into<String>) -> Self {
        Failure {
            message: message.into(),
            code: 1,
        }
    }

    /// The command line asks for something that makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Failure {
            message: message.into(),
            code: 2,
        }
    }

    pub fn code(&self) -> u8 {
        self.code
    }
}

impl From<postern_identity::store::StoreError> for Failure {
    fn from(e: postern_identity::store::StoreError) -> Self {
        Failure::new(e.to_string())
    }
}

impl From<postern_identity::NameError> for Failure {
    fn from(e: postern_identity::NameError) -> Self {
        Failure::usage(e.to_string())
    }
}

/// The innermost cause of an error: transports wrap what a person needs to know ("connection
/// refused") in layers that say nothing ("transport error").
pub fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut e = error;
    while let Some(next) = e.source() {
        e = next;
    }
    // An io::Error made from another error shows it, but names it as its source only one level down.
    e.to_string()
}
