//! What a host has to show for a new token: the token's own secret, or what its environment gives it.

use super::CreateArgs;
use crate::failure::Failure;
use clap::{Args, ValueEnum};
use postern_api::v1::create_token_request::Method as Request;
use postern_api::v1::{BoundKeypairMethod, IdTokenMethod, StringMap};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How hosts prove that they may join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Method {
    /// A secret, shown once
    #[default]
    Token,
    /// An ID token of an OpenID Connect issuer
    Oidc,
    /// GitHub Actions
    Github,
    /// GitLab CI
    Gitlab,
    /// A Kubernetes service account
    Kubernetes,
    /// A key pair that outlives the host's data directory
    #[value(name = "bound_keypair")]
    BoundKeypair,
}

/// Options of the methods in which the environment proves who asks.
#[derive(Debug, Args)]
#[command(next_help_heading = "Joining without a secret")]
pub struct MethodArgs {
    /// What a host has to show
    #[arg(long, value_enum, default_value_t, value_name = "METHOD")]
    pub method: Method,
    /// What the token is called; goes into join_params of the hosts
    #[arg(long, value_name = "NAME", required_if_eq_any(METHODS.map(|m| ("method", m))))]
    pub name: Option<String>,
    /// The issuer of ID tokens, exactly as in their claim `iss` [default: that of GitHub, GitLab or Kubernetes]
    #[arg(long, value_name = "URL")]
    issuer: Option<String>,
    /// The audience that ID tokens must have; may be repeated [default: the cluster's name]
    #[arg(long, value_name = "AUDIENCE")]
    audience: Vec<String>,
    /// Claims that an ID token must have, all of them; may be repeated, one of them is then enough. `*` stands for any
    /// text, a name that begins with / is a JSON pointer
    #[arg(long, value_name = "CLAIM=VALUE,…", value_parser = parse_rule)]
    must_match: Vec<Rule>,
    /// Admit every ID token of this issuer and audience
    #[arg(long, conflicts_with = "must_match")]
    allow_any: bool,
    /// The issuer's public keys as a file (a JWK set), where Auth can't fetch them from the issuer
    #[arg(long, value_name = "FILE")]
    jwks: Option<PathBuf>,
    /// The CAs of the issuer's HTTPS, PEM [default: those of the Auth host]
    #[arg(long, value_name = "FILE")]
    issuer_ca: Option<PathBuf>,
    /// The public key of the host's key pair, as `posternd join-key` shows it [default: the first host to show the
    /// registration secret registers its own]
    #[arg(long, value_name = "'ssh-ed25519 …'")]
    public_key: Option<String>,
    /// How often a host may join again with its key pair, after its data directory was lost
    #[arg(long, value_name = "N", default_value_t = 1)]
    recoveries: u32,
}

/// All but the secret token, which has an id instead of a name.
const METHODS: [&str; 5] = ["oidc", "github", "gitlab", "kubernetes", "bound_keypair"];

/// One `--must-match`.
#[derive(Debug, Clone)]
struct Rule(BTreeMap<String, String>);

fn parse_rule(text: &str) -> Result<Rule, String> {
    let mut claims = BTreeMap::new();
    for pair in text.split(',') {
        let (claim, value) = pair.split_once('=').ok_or_else(|| {
            format!("{pair:?} is not CLAIM=VALUE; write for example repository=acme/shop")
        })?;
        let (claim, value) = (claim.trim().to_owned(), value.trim().to_owned());
        if claims.insert(claim.clone(), value).is_some() {
            return Err(format!("the claim {claim:?} is there twice"));
        }
    }
    Ok(Rule(claims))
}

impl Method {
    /// As `--method` and `join_params` write it.
    pub fn word(self) -> &'static str {
        match self {
            Method::Token => "token",
            Method::Oidc => "oidc",
            Method::Github => "github",
            Method::Gitlab => "gitlab",
            Method::Kubernetes => "kubernetes",
            Method::BoundKeypair => "bound_keypair",
        }
    }
}

impl MethodArgs {
    /// What Auth is asked for.
    pub fn request(&self) -> Result<Option<Request>, Failure> {
        let of_id_tokens = self.issuer.is_some()
            || !self.audience.is_empty()
            || !self.must_match.is_empty()
            || self.allow_any
            || self.jwks.is_some()
            || self.issuer_ca.is_some();
        let wrong = |what: &str| {
            Err(Failure::usage(format!(
                "{what} does not belong to --method {}",
                self.method.word()
            )))
        };
        match self.method {
            Method::Token | Method::BoundKeypair if of_id_tokens => wrong(
                "an option of ID tokens (--issuer, --audience, --must-match, --allow-any, --jwks, --issuer-ca)",
            ),
            method if method != Method::BoundKeypair && self.public_key.is_some() => {
                wrong("--public-key")
            }
            Method::Token if self.name.is_some() => wrong("--name"),
            Method::Token => Ok(None),
            Method::BoundKeypair => Ok(Some(Request::BoundKeypair(BoundKeypairMethod {
                public_key: self.public_key.clone().unwrap_or_default(),
                recoveries: self.recoveries,
            }))),
            Method::Oidc | Method::Github | Method::Gitlab | Method::Kubernetes => {
                Ok(Some(Request::IdToken(IdTokenMethod {
                    preset: self.method.word().to_owned(),
                    issuer: self.issuer.clone().unwrap_or_default(),
                    audiences: self.audience.clone(),
                    must_match: self.must_match.iter().map(Rule::message).collect(),
                    allow_any: self.allow_any,
                    jwks_json: self
                        .jwks
                        .as_deref()
                        .map(read)
                        .transpose()?
                        .unwrap_or_default(),
                    ca_pem: self
                        .issuer_ca
                        .as_deref()
                        .map(read)
                        .transpose()?
                        .unwrap_or_default(),
                })))
            }
        }
    }
}

impl CreateArgs {
    /// The value of `join_params` for the hosts. `secret`: what Auth answered, to be shown once.
    pub fn join_params(&self, secret: &str) -> String {
        let quote = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let method = self.method.method.word();
        let name = quote(self.method.name.as_deref().unwrap_or_default());
        let more = match self.method.method {
            Method::Token => format!("token = {}", quote(secret)),
            Method::Oidc => {
                format!("token_name = {name}, id_token_file = \"/run/postern/id-token\"")
            }
            Method::Github | Method::Gitlab | Method::Kubernetes => format!("token_name = {name}"),
            Method::BoundKeypair if secret.is_empty() => {
                format!("token_name = {name}, key_file = \"/etc/postern/join/key.pem\"")
            }
            Method::BoundKeypair => format!(
                "token_name = {name}, key_file = \"/etc/postern/join/key.pem\", registration_secret_file = \"/etc/postern/join/secret\""
            ),
        };
        format!("{{ method = \"{method}\", {more} }}")
    }
}

impl Rule {
    fn message(&self) -> StringMap {
        StringMap {
            values: self.0.clone(),
        }
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|e| Failure::usage(format!("{}: {e}", path.display())))
}
