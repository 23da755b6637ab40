//! Values that must never be shown: join tokens, passwords.

use crate::JoinParams;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use std::{
    borrow::Cow,
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// Such a file holds one line; anything larger is some other file.
pub(crate) const MAX_SECRET_FILE: u64 = 4096;

/// A file's text, or the first bytes beyond [`MAX_SECRET_FILE`].
pub(crate) fn read_small(path: &Path) -> std::io::Result<Zeroizing<String>> {
    // With room for all of it at once: a growing buffer leaves copies behind.
    let mut text = Zeroizing::new(String::with_capacity(MAX_SECRET_FILE as usize + 2));
    File::open(path)?
        .take(MAX_SECRET_FILE + 1)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// A string that is wiped when dropped and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the value over; the caller's copy is gone with it.
    pub fn new(value: String) -> Self {
        Secret(Zeroizing::new(value))
    }

    /// The value itself. Whoever calls this answers for where it goes.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl<'de> serde::Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d).map(Secret::new)
    }
}

impl JsonSchema for Secret {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "secret" })
    }
}

/// Why there is no token to join with.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file can't be read (yet: it is watched).
    #[error("token file {path}: {source}")]
    Read {
        /// The file named by `token_file`.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file has no single line of text in it.
    #[error("token file {path}: {why}; put the token alone into the file")]
    Content {
        /// The file named by `token_file`.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl JoinParams {
    /// The join token, read from `token_file` now if that is where it is.
    pub fn token(&self) -> Result<Secret, TokenError> {
        let JoinParams::Token { token, token_file } = self;
        if let Some(token) = token {
            return Ok(token.clone());
        }
        let path = token_file.clone().unwrap_or_default();
        let text = match read_small(&path) {
            Ok(text) => text,
            Err(source) => return Err(TokenError::Read { path, source }),
        };
        let token = text.trim();
        let why = if text.len() as u64 > MAX_SECRET_FILE {
            "is larger than 4 KB"
        } else if token.is_empty() {
            "is empty"
        } else if token.contains(char::is_whitespace) {
            "holds more than one word"
        } else {
            return Ok(Secret::new(token.to_owned()));
        };
        Err(TokenError::Content { path, why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let secret = Secret::new("pt_1_hidden".into());
        assert!(!format!("{secret} {secret:?} {:#?}", Some(&secret)).contains("hidden"));
        let params = JoinParams::Token {
            token: Some(secret),
            token_file: None,
        };
        assert!(!format!("{params:?}").contains("hidden"));
    }

    #[test]
    fn the_token_file_is_read_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let params = JoinParams::Token {
            token: None,
            token_file: Some(path.clone()),
        };
        assert!(matches!(params.token(), Err(TokenError::Read { .. })));
        for (content, want) in [("", "empty"), ("a b\n", "more than one word")] {
            std::fs::write(&path, content).unwrap();
            assert!(params.token().unwrap_err().to_string().contains(want));
        }
        std::fs::write(&path, "x".repeat(5000)).unwrap();
        assert!(params.token().unwrap_err().to_string().contains("4 KB"));
        std::fs::write(&path, "pt_1_abc\n").unwrap();
        assert_eq!(params.token().unwrap().expose(), "pt_1_abc");
    }
}
