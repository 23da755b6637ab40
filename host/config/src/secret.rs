//! Values that must never be shown: join tokens, passwords.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use std::{
    borrow::Cow,
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// A join token has 44 bytes, an ID token one to three KB; anything larger is some other file.
pub(crate) const MAX_SECRET_FILE: u64 = 16 * 1024;

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

/// Why a file gives no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// The file can't be read (yet: it is watched).
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file has no single line of text in it.
    #[error("{path}: it {why}; put the secret alone into the file")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl Secret {
    /// Reads a file that holds one word and nothing else: a join token, an ID token.
    pub fn read(path: &Path) -> Result<Self, SecretFileError> {
        let read = read_small(path);
        let path = path.to_owned();
        let text = match read {
            Ok(text) => text,
            Err(source) => return Err(SecretFileError::Read { path, source }),
        };
        let word = text.trim();
        let why = if text.len() as u64 > MAX_SECRET_FILE {
            "is larger than 16 KB"
        } else if word.is_empty() {
            "is empty"
        } else if word.contains(char::is_whitespace) {
            "holds more than one word"
        } else {
            return Ok(Secret::new(word.to_owned()));
        };
        Err(SecretFileError::Content { path, why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::JoinParams;

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
    fn the_file_is_read_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        assert!(matches!(
            Secret::read(&path),
            Err(SecretFileError::Read { .. })
        ));
        for (content, want) in [("", "empty"), ("a b\n", "more than one word")] {
            std::fs::write(&path, content).unwrap();
            assert!(Secret::read(&path).unwrap_err().to_string().contains(want));
        }
        std::fs::write(&path, "x".repeat(20_000)).unwrap();
        let why = Secret::read(&path).unwrap_err().to_string();
        assert!(why.contains("16 KB"));
        std::fs::write(&path, "pt_1_abc\n").unwrap();
        assert_eq!(Secret::read(&path).unwrap().expose(), "pt_1_abc");
    }
}
