//! Errors with their place: `file:line:column: what is wrong`.

use std::{fmt, path::PathBuf};

/// One thing that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Diagnostic {
    /// The file it is in.
    pub file: PathBuf,
    /// Line and column (of characters), both from 1; `None` where the file as a whole is meant.
    pub place: Option<(usize, usize)>,
    /// What is wrong and, where known, what to write instead.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some((line, column)) = self.place {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {}", self.message)
    }
}

/// Everything that is wrong with a configuration, in the order of files and lines.
/// Never empty. It is shown one per line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Sorted by file and place.
    pub diagnostics: Vec<Diagnostic>,
}

impl ConfigError {
    pub(crate) fn one(file: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        let diagnostic = Diagnostic {
            file: file.into(),
            place: None,
            message: message.into(),
        };
        ConfigError {
            diagnostics: vec![diagnostic],
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, diagnostic) in self.diagnostics.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            diagnostic.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
