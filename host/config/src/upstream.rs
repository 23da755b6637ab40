//! How the agent meets the server behind a resource: whom it takes it for, and how it logs in there.

use crate::Secret;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};

/// The entry of `passwords` for accounts that have none of their own.
pub const ANY_ACCOUNT: &str = "*";

/// `[services.<name>.resources.tls]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamTls {
    /// `verify-full`: a certificate of a trusted CA for the right name. `verify-ca`: for any name. `insecure`: any
    /// certificate, so that whoever is in between can read and change everything.
    pub mode: TlsMode,
    /// PEM file with the CAs that may have issued the server's certificate. Default: the cluster's `db-server` CA
    /// (`postern db certs sign`).
    #[schemars(extend("format" = "path"))]
    pub ca_file: Option<PathBuf>,
    /// The name that the certificate must have. Default: the host in `address`.
    pub server_name: Option<String>,
}

/// How much of a server's certificate is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum TlsMode {
    #[default]
    VerifyFull,
    VerifyCa,
    Insecure,
}

/// How the agent logs in at the server, as the account that the user asked for and the roles allow.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(tag = "method", rename_all = "kebab-case", deny_unknown_fields)]
pub enum UpstreamAuth {
    /// A certificate for the account, signed by the cluster's `db-client` CA for each connection. The server trusts
    /// that CA (`ca.crt` of `postern db certs sign`) and has `cert` in `pg_hba.conf`.
    #[default]
    Certificate,
    /// The account's password. Users never see it, nor does the plugin.
    Password {
        /// By account: `{ app = { file = "app.password" } }`. `"*"` is for accounts without an entry of their own.
        passwords: BTreeMap<String, SecretSource>,
    },
}

/// Where a secret comes from; read whenever it is needed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SecretSource {
    /// A file that holds it alone; a newline at its end does not count.
    #[schemars(extend("format" = "path"))]
    pub file: Option<PathBuf>,
    /// An environment variable of `posternd`.
    pub env: Option<String>,
}

/// `[services.<name>.resources.admin]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamAdmin {
    /// Its name at the server. No user gets to be it.
    pub user: String,
    /// Its password.
    pub password: SecretSource,
    /// The database that it logs in at: every agent of this server has to name the same one, and users had better have none of it.
    #[serde(default = "database")]
    pub database: String,
}

fn database() -> String {
    "postgres".to_owned()
}

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file can't be read.
    #[error("password file {path}: {source}")]
    Read {
        /// As in the configuration.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file has something else in it.
    #[error("password file {path}: {why}; put the password alone into the file")]
    Content {
        /// As in the configuration.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The variable is not set, or empty.
    #[error("environment variable {name} of posternd is not set or no text")]
    Env {
        /// As in the configuration.
        name: String,
    },
}

impl SecretSource {
    /// The secret as it is now.
    ///
    /// # Errors
    /// Where there is none, with the file or variable.
    pub fn read(&self) -> Result<Secret, SecretError> {
        if let Some(name) = &self.env {
            return match std::env::var(name) {
                Ok(value) if !value.is_empty() => Ok(Secret::new(value)),
                _ => Err(SecretError::Env { name: name.clone() }),
            };
        }
        let path = self.file.clone().unwrap_or_default();
        let text = match crate::secret::read_small(&path) {
            Ok(text) => text,
            Err(source) => return Err(SecretError::Read { path, source }),
        };
        let secret = text.trim_end_matches(['\r', '\n']);
        let why = if text.len() as u64 > crate::secret::MAX_SECRET_FILE {
            "is larger than 16 KB"
        } else if secret.is_empty() {
            "is empty"
        } else if secret.contains(['\0', '\n']) {
            "holds more than one line"
        } else {
            return Ok(Secret::new(secret.to_owned()));
        };
        Err(SecretError::Content { path, why })
    }
}

impl UpstreamAuth {
    /// Where the account's password is; `None` where there is none for it.
    pub fn password_of(&self, account: &str) -> Option<&SecretSource> {
        match self {
            UpstreamAuth::Certificate => None,
            UpstreamAuth::Password { passwords } => passwords
                .get(account)
                .or_else(|| passwords.get(ANY_ACCOUNT)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_read_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        let source = SecretSource {
            file: Some(path.clone()),
            env: None,
        };
        assert!(matches!(source.read(), Err(SecretError::Read { .. })));
        for (content, want) in [("\n", "empty"), ("a\nb\n", "more than one line")] {
            std::fs::write(&path, content).unwrap();
            assert!(source.read().unwrap_err().to_string().contains(want));
        }
        std::fs::write(&path, "x".repeat(20_000)).unwrap();
        assert!(source.read().unwrap_err().to_string().contains("16 KB"));
        // Blanks are part of it.
        std::fs::write(&path, " pass word \r\n").unwrap();
        assert_eq!(source.read().unwrap().expose(), " pass word ");
        let unset = SecretSource {
            file: None,
            env: Some("POSTERN_NO_SUCH_VARIABLE".into()),
        };
        let why = unset.read().unwrap_err().to_string();
        assert!(why.contains("POSTERN_NO_SUCH_VARIABLE"), "{why}");
    }

    #[test]
    fn an_account_has_its_own_password_or_the_common_one() {
        let source = |name: &str| SecretSource {
            file: None,
            env: Some(name.into()),
        };
        let auth = UpstreamAuth::Password {
            passwords: [("app".into(), source("APP")), ("*".into(), source("ANY"))].into(),
        };
        assert_eq!(auth.password_of("app"), Some(&source("APP")));
        assert_eq!(auth.password_of("other"), Some(&source("ANY")));
        assert_eq!(UpstreamAuth::Certificate.password_of("app"), None);
    }
}
