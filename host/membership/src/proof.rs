//! What a service shows when it asks to join: a join token, or what its environment gave it. Read at each attempt, since
//! tokens are rotated and files are put in place late.

use std::env::VarError;
use std::path::PathBuf;
use std::time::Duration;

use postern_api::{https, join as signing, v1};
use postern_config::{JoinParams, Secret, SecretFileError};
use postern_identity::{HostKey, store::StoreError};
use serde::Deserialize;
use zeroize::Zeroizing;

/// One question to GitHub, all in all.
const GITHUB_TIMEOUT: Duration = Duration::from_secs(10);
/// Its answer has two to three KB.
const GITHUB_MAX: usize = 64 * 1024;
/// Set by GitHub for each job with the permission `id-token: write`.
const GITHUB_URL: &str = "ACTIONS_ID_TOKEN_REQUEST_URL";
const GITHUB_TOKEN: &str = "ACTIONS_ID_TOKEN_REQUEST_TOKEN";

/// Where the proof comes from.
pub enum TokenSource {
    /// Within the grant none is needed.
    None,
    /// As configured.
    Params(JoinParams),
    /// Made in this process, by the Auth Service beside us.
    Minted(Zeroizing<String>),
}

/// What is shown.
#[derive(Default)]
pub struct Proof {
    token: Zeroizing<String>,
    token_name: String,
    id_token: Zeroizing<String>,
    registration_secret: Zeroizing<String>,
    bound_key: Option<HostKey>,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    #[error("{0}")]
    File(#[from] SecretFileError),
    #[error("{0}")]
    Key(#[from] StoreError),
    #[error(
        "the environment variable {name} is {why}; posternd reads it when it starts, so set it in its unit or job"
    )]
    Env { name: String, why: &'static str },
    #[error(
        "this is no GitHub Actions job with the permission `id-token: write` ({GITHUB_URL} or {GITHUB_TOKEN} is not set)"
    )]
    NotGithub,
    #[error("GitHub gave no ID token: {0}")]
    Github(String),
}

impl TokenSource {
    /// Reads, or asks for, what is to be shown.
    pub async fn proof(&self, cluster: &str) -> Result<Proof, ProofError> {
        let params = match self {
            TokenSource::None => return Ok(Proof::default()),
            TokenSource::Minted(token) => return Ok(Proof::token(token)),
            TokenSource::Params(params) => params,
        };
        let id_token = match params {
            JoinParams::Token { .. } => return Ok(Proof::token(&self.read()?)),
            JoinParams::BoundKeypair { key_file, .. } => {
                let bound_key = HostKey::load_or_create(key_file)?;
                return Ok(Proof {
                    token_name: params.token_name().unwrap_or_default().to_owned(),
                    // Once the key is registered the file is often gone; Auth says so if it would have needed it.
                    registration_secret: self.read().unwrap_or_default(),
                    bound_key: Some(bound_key),
                    ..Proof::default()
                });
            }
            JoinParams::Github { audience, .. } => {
                from_github(audience.as_deref().unwrap_or(cluster)).await?
            }
            JoinParams::Oidc { .. } | JoinParams::Gitlab { .. } | JoinParams::Kubernetes { .. } => {
                self.read()?
            }
        };
        Ok(Proof {
            token_name: params.token_name().unwrap_or_default().to_owned(),
            id_token,
            ..Proof::default()
        })
    }

    /// What is in file or environment now: a change of it is worth an attempt at once. Asks nobody.
    pub fn seen(&self) -> Option<Zeroizing<String>> {
        self.read().ok()
    }

    fn read(&self) -> Result<Zeroizing<String>, ProofError> {
        let file = |path: &PathBuf| -> Result<_, ProofError> {
            Ok(Zeroizing::new(Secret::read(path)?.expose().to_owned()))
        };
        match self {
            TokenSource::None => Ok(Zeroizing::default()),
            TokenSource::Minted(token) => Ok(token.clone()),
            TokenSource::Params(params) => match params {
                JoinParams::Token {
                    token: Some(token), ..
                } => Ok(Zeroizing::new(token.expose().to_owned())),
                JoinParams::Token {
                    token_file: Some(path),
                    ..
                }
                | JoinParams::Oidc {
                    id_token_file: Some(path),
                    ..
                }
                | JoinParams::Kubernetes {
                    id_token_file: path,
                    ..
                }
                | JoinParams::BoundKeypair {
                    registration_secret_file: Some(path),
                    ..
                } => file(path),
                JoinParams::Oidc {
                    id_token_env: Some(name),
                    ..
                }
                | JoinParams::Gitlab {
                    id_token_env: name, ..
                } => env(name),
                // Nothing that could be seen to change (the first and second kind are refused by validation).
                JoinParams::Token { .. }
                | JoinParams::Oidc { .. }
                | JoinParams::BoundKeypair { .. }
                | JoinParams::Github { .. } => Ok(Zeroizing::default()),
            },
        }
    }
}

impl Proof {
    fn token(token: &str) -> Self {
        Proof {
            token: Zeroizing::new(token.to_owned()),
            ..Proof::default()
        }
    }

    /// Puts it into a request that is otherwise complete, and signs with the bound key for this host. The host key's own
    /// signature comes after it.
    pub fn show(&self, request: &mut v1::JoinRequest, host_key: &HostKey) {
        request.token = self.token.to_string();
        request.token_name = self.token_name.clone();
        request.id_token = self.id_token.to_string();
        request.registration_secret = self.registration_secret.to_string();
        if let Some(key) = &self.bound_key {
            signing::sign_bound(request, key, host_key.public());
        }
    }
}

fn env(name: &str) -> Result<Zeroizing<String>, ProofError> {
    let missing = |why| ProofError::Env {
        name: name.to_owned(),
        why,
    };
    match std::env::var(name) {
        Ok(value) if value.trim().is_empty() => Err(missing("empty")),
        Ok(value) => Ok(Zeroizing::new(value.trim().to_owned())),
        Err(VarError::NotPresent) => Err(missing("not set")),
        Err(VarError::NotUnicode(_)) => Err(missing("no text")),
    }
}

#[derive(Deserialize)]
struct GithubAnswer {
    value: String,
}

/// <https://docs.github.com/en/actions/reference/security/oidc>, "Methods for requesting the OIDC token".
async fn from_github(audience: &str) -> Result<Zeroizing<String>, ProofError> {
    let (Ok(url), Ok(token)) = (env(GITHUB_URL), env(GITHUB_TOKEN)) else {
        return Err(ProofError::NotGithub);
    };
    let failed = |why: String| ProofError::Github(why);
    let mut url = reqwest::Url::parse(&url).map_err(|e| failed(format!("{GITHUB_URL}: {e}")))?;
    url.query_pairs_mut().append_pair("audience", audience);
    let tls = https::public_tls().map_err(failed)?;
    let client = https::client(tls, GITHUB_TIMEOUT).map_err(failed)?;
    let request = client
        .get(url)
        .bearer_auth(token.as_str())
        .header("accept", "application/json");
    let body = https::body(request, GITHUB_MAX).await.map_err(failed)?;
    let answer: GithubAnswer = serde_json::from_slice(&Zeroizing::new(body))
        .map_err(|_| failed("its answer holds no field \"value\"".into()))?;
    Ok(Zeroizing::new(answer.value))
}
