//! The user's profile: `~/.postern` (or `--home`, `$POSTERN_HOME`), a private directory with
//!
//! | file | |
//! | --- | --- |
//! | `profile.json` | cluster, proxy, user, CA pins, until when the certificates are valid |
//! | `tls.key`, `tls.crt` | for Auth, the proxy's helper path, and the end-to-end TLS inside it |
//! | `id_ed25519`, `id_ed25519-cert.pub` | for OpenSSH |
//! | `trust.json`, `known_hosts` | the cluster's CAs |
//!
//! Logging out deletes keys and certificates and keeps the rest, so that `postern login` alone
//! logs in again.

use crate::{failure::Failure, when};
use postern_identity::{CaKind, CaPin, ServiceKeys, TrustBundle, store, tls::TlsIdentity};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

const PROFILE: &str = "profile.json";
const TLS_KEY: &str = "tls.key";
const TLS_CERT: &str = "tls.crt";
const SSH_KEY: &str = "id_ed25519";
const SSH_CERT: &str = "id_ed25519-cert.pub";
const TRUST: &str = "trust.json";
const HOST_CA: &str = "host-ca.pem";
const KNOWN_HOSTS: &str = "known_hosts";
/// A certificate with less than this to live, in seconds, is as good as expired: the agent looks at it again once the
/// connection has got there, and OpenSSH would only say "Permission denied".
const TO_GET_THERE: i64 = 5;
/// What logging out deletes.
const SECRETS: [&str; 4] = [TLS_KEY, SSH_KEY, TLS_CERT, SSH_CERT];

/// What is known about the cluster and who the user is there; no secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    pub cluster: String,
    /// `host:port`
    pub proxy: String,
    pub user: String,
    pub ca_pins: Vec<CaPin>,
    /// Unix time at which the certificates expire; 0 after logging out.
    pub not_after: i64,
    #[serde(default)]
    pub roles: Vec<String>,
    /// Logins that the SSH certificate is good for.
    #[serde(default)]
    pub logins: Vec<String>,
}

/// What Auth answered to a login, with the keys it signed.
pub struct Credentials<'a> {
    pub keys: &'a ServiceKeys,
    pub tls_cert_pem: &'a str,
    pub ssh_cert: &'a str,
    pub trust: &'a TrustBundle,
}

/// The directory that holds the profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home(PathBuf);

impl Home {
    /// `given` is `--home` or `$POSTERN_HOME`; else `~/.postern`.
    pub fn locate(given: Option<&Path>) -> Result<Self, Failure> {
        let dir = match given
            .map(Path::to_owned)
            .or_else(|| std::env::home_dir().map(|h| h.join(".postern")))
        {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => {
                return Err(Failure::new(
                    "cannot tell where your home directory is; set POSTERN_HOME",
                ));
            }
        };
        // OpenSSH gets these paths, and runs us from wherever it is started.
        let dir = std::path::absolute(&dir)
            .map_err(|e| Failure::new(format!("{}: {e}", dir.display())))?;
        Ok(Home(dir))
    }

    pub fn dir(&self) -> &Path {
        &self.0
    }
    pub fn ssh_key(&self) -> PathBuf {
        self.0.join(SSH_KEY)
    }
    pub fn ssh_cert(&self) -> PathBuf {
        self.0.join(SSH_CERT)
    }
    pub fn known_hosts(&self) -> PathBuf {
        self.0.join(KNOWN_HOSTS)
    }

    pub fn tls_cert(&self) -> PathBuf {
        self.0.join(TLS_CERT)
    }
    pub fn tls_key(&self) -> PathBuf {
        self.0.join(TLS_KEY)
    }

    /// A PEM file with the cluster's host CA, for clients that verify agents themselves.
    pub fn host_ca(&self) -> Result<PathBuf, Failure> {
        let path = self.0.join(HOST_CA);
        let trust = self.trust()?;
        let pem: String = trust
            .of(CaKind::Host)
            .map(|ca| ca.x509_pem.as_str())
            .collect();
        store::write_secret(&path, pem.as_bytes())?;
        Ok(path)
    }

    /// The profile, if there ever was a login.
    pub fn load(&self) -> Result<Option<Profile>, Failure> {
        if !self.0.exists() {
            return Ok(None);
        }
        Ok(store::read_json(&self.0.join(PROFILE))?)
    }

    /// The profile of a user who is logged in now; else what to run.
    pub fn logged_in(&self) -> Result<Profile, Failure> {
        let Some(profile) = self.load()? else {
            return Err(Failure::new(
                "you are not logged in; run: postern login --proxy HOST:PORT --user NAME (or with the link you were given)",
            ));
        };
        profile.check_valid(when::now())?;
        Ok(profile)
    }

    /// Certificate and key for TLS.
    pub fn tls_identity(&self) -> Result<TlsIdentity, Failure> {
        let text = |name: &str| -> Result<Zeroizing<String>, Failure> {
            let path = self.0.join(name);
            let bytes = store::read_secret(&path)?;
            let text = std::str::from_utf8(&bytes).map_err(|_| {
                Failure::new(format!("{} is damaged; run: postern login", path.display()))
            })?;
            Ok(Zeroizing::new(text.to_owned()))
        };
        Ok(TlsIdentity {
            chain_pem: text(TLS_CERT)?.to_string(),
            key_pem: text(TLS_KEY)?,
        })
    }

    /// The cluster's CAs.
    pub fn trust(&self) -> Result<TrustBundle, Failure> {
        let path = self.0.join(TRUST);
        store::read_json(&path)?.ok_or_else(|| {
            Failure::new(format!("{} is missing; run: postern login", path.display()))
        })
    }

    /// Replaces whatever was there. `profile.json` is written last and removed first: an
    /// interrupted login reads as not logged in, never as keys beside the wrong certificate.
    pub fn save(&self, profile: &Profile, new: &Credentials<'_>) -> Result<(), Failure> {
        store::private_dir(&self.0)?;
        remove(&self.0.join(PROFILE))?;
        let write = |name: &str, bytes: &[u8]| store::write_secret(&self.0.join(name), bytes);
        write(TLS_KEY, new.keys.x509_key_pem.as_bytes())?;
        write(TLS_CERT, new.tls_cert_pem.as_bytes())?;
        write(SSH_KEY, new.keys.ssh_key.as_bytes())?;
        if new.ssh_cert.is_empty() {
            remove(&self.ssh_cert())?;
        } else {
            write(SSH_CERT, line(new.ssh_cert).as_bytes())?;
        }
        store::write_json(&self.0.join(TRUST), new.trust)?;
        write(KNOWN_HOSTS, known_hosts(new.trust).as_bytes())?;
        store::write_json(&self.0.join(PROFILE), profile)?;
        Ok(())
    }

    /// Deletes keys and certificates. Returns whether there were any.
    pub fn log_out(&self) -> Result<bool, Failure> {
        let mut had = false;
        for name in SECRETS {
            had |= remove(&self.0.join(name))?;
        }
        if let Some(mut profile) = self.load()? {
            profile.not_after = 0;
            store::write_json(&self.0.join(PROFILE), &profile)?;
        }
        Ok(had)
    }

    /// Deletes everything we wrote.
    pub fn forget(&self) -> Result<bool, Failure> {
        let mut had = false;
        for name in SECRETS
            .into_iter()
            .chain([PROFILE, TRUST, KNOWN_HOSTS, HOST_CA])
        {
            had |= remove(&self.0.join(name))?;
        }
        // Only if nothing else is in it.
        let _ = std::fs::remove_dir(&self.0);
        Ok(had)
    }
}

impl Profile {
    /// Whether the certificates are there and valid at `now`, for long enough to open a session with; else since when
    /// not, and what to run.
    pub fn check_valid(&self, now: i64) -> Result<(), Failure> {
        if self.not_after == 0 {
            return Err(Failure::new(format!(
                "you are logged out of cluster {}; run: postern login",
                self.cluster
            )));
        }
        if self.not_after <= now {
            let ago = when::relative(now, self.not_after);
            return Err(Failure::new(format!(
                "your certificate for cluster {} expired {ago} ({}); run: postern login",
                self.cluster,
                when::local(self.not_after)
            )));
        }
        if self.not_after < now + TO_GET_THERE {
            return Err(Failure::new(format!(
                "your certificate for cluster {} expires within {TO_GET_THERE} s, too soon to open a session with; run: postern login",
                self.cluster
            )));
        }
        Ok(())
    }
}

/// OpenSSH's trust in the cluster's host CA, and in nothing else, for names of the cluster.
pub fn known_hosts(trust: &TrustBundle) -> String {
    trust
        .of(CaKind::Host)
        .filter_map(|ca| ca.ssh.as_deref())
        .map(|key| format!("@cert-authority *.ssh.{} {}\n", trust.cluster, key.trim()))
        .collect()
}

fn line(text: &str) -> String {
    format!("{}\n", text.trim_end())
}

fn remove(path: &Path) -> Result<bool, Failure> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Failure::new(format!(
            "cannot delete {}: {e}",
            path.display()
        ))),
    }
}

#[cfg(test)]
mod tests;
