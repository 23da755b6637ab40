//! What is known of well-known issuers of ID tokens: where they are, and which rules would let in strangers. At an issuer
//! that the whole world uses, a rule has to name an owner.

use postern_idtoken::{Admit, Rule};

/// See the module.
pub struct Preset {
    pub word: &'static str,
    pub issuer: Option<&'static str>,
    /// Claims that name an owner; one of them has to be in each rule. Empty: the issuer is the operator's own.
    owners: &'static [Owner],
    example: &'static str,
}

/// A claim that says whose token it is.
struct Owner {
    claim: &'static str,
    /// A pattern may have wildcards after this in its fixed part, and what stands there before it is the owner: with
    /// `acme*`, `acme-evil` would join too. `None`: no wildcards.
    until: Option<&'static str>,
}

const fn owner(claim: &'static str, until: Option<&'static str>) -> Owner {
    Owner { claim, until }
}

const PRESETS: [Preset; 4] = [
    Preset {
        word: "oidc",
        issuer: None,
        owners: &[],
        example: "",
    },
    // https://docs.github.com/en/actions/reference/security/oidc
    Preset {
        word: "github",
        issuer: Some("https://token.actions.githubusercontent.com"),
        owners: &[
            owner("repository", Some("/")),
            owner("repository_id", None),
            owner("repository_owner", None),
            owner("repository_owner_id", None),
            owner("enterprise", None),
            owner("enterprise_id", None),
            owner("sub", Some("/")),
        ],
        example: "repository=acme/shop",
    },
    // https://docs.gitlab.com/ci/secrets/id_token_authentication/
    Preset {
        word: "gitlab",
        issuer: Some("https://gitlab.com"),
        owners: &[
            owner("project_path", Some("/")),
            owner("project_id", None),
            owner("namespace_path", None),
            owner("namespace_id", None),
            owner("sub", Some("/")),
        ],
        example: "project_path=acme/shop",
    },
    // https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/
    Preset {
        word: "kubernetes",
        issuer: Some("https://kubernetes.default.svc.cluster.local"),
        owners: &[],
        example: "",
    },
];

impl Preset {
    pub fn named(word: &str) -> Result<&'static Self, String> {
        PRESETS.iter().find(|p| p.word == word).ok_or_else(|| {
            let words: Vec<&str> = PRESETS.iter().map(|p| p.word).collect();
            format!(
                "{word:?} is no join method with ID tokens; there are {}",
                words.join(", ")
            )
        })
    }

    /// Whether the rules admit nobody but those of a named owner. An issuer of the operator's own (GitHub Enterprise
    /// Server, a GitLab of one's own) may be trusted as a whole.
    pub fn narrow_enough(&self, admit: &Admit, issuer: &str) -> Result<(), String> {
        if self.owners.is_empty() || self.issuer != Some(issuer) {
            return Ok(());
        }
        let rules = match admit {
            Admit::AllowAny => {
                return Err(format!(
                    "everybody can get a token of {issuer}; say whose may join, e.g. {}",
                    self.example
                ));
            }
            Admit::MustMatch(rules) => rules,
        };
        match rules.iter().find(|rule| !self.names_an_owner(rule)) {
            None => Ok(()),
            Some(_) => {
                let claims: Vec<&str> = self.owners.iter().map(|o| o.claim).collect();
                Err(format!(
                    "a rule names no owner, so strangers' tokens of {issuer} could match; give it one of {} (wildcards only \
                     after the first /), e.g. {}",
                    claims.join(", "),
                    self.example
                ))
            }
        }
    }

    fn names_an_owner(&self, rule: &Rule) -> bool {
        self.owners.iter().any(|owner| {
            rule.0
                .get(owner.claim)
                .is_some_and(|pattern| owner.named_by(pattern))
        })
    }
}

impl Owner {
    fn named_by(&self, pattern: &str) -> bool {
        let fixed = pattern.split(['*', '?']).next().unwrap_or_default();
        if fixed.len() == pattern.len() {
            return true;
        }
        match self.until {
            Some(end) => fixed.split_once(end).is_some_and(|(name, _)| {
                // Of `repo:acme/`, the part behind the colon.
                !name.rsplit(':').next().unwrap_or_default().is_empty()
            }),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(claims: &[(&str, &str)]) -> Admit {
        let claims = claims
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Admit::MustMatch(vec![Rule(claims.collect())])
    }

    #[test]
    fn a_rule_for_a_public_issuer_names_an_owner() {
        let github = Preset::named("github").unwrap();
        let issuer = github.issuer.unwrap();
        for good in [
            rule(&[("repository", "acme/shop")]),
            rule(&[("repository", "acme/*"), ("ref", "refs/heads/*")]),
            rule(&[("sub", "repo:acme/shop:*")]),
            rule(&[("repository_owner", "acme")]),
        ] {
            assert_eq!(github.narrow_enough(&good, issuer), Ok(()), "{good:?}");
        }
        for open in [
            rule(&[("ref", "refs/heads/main")]),
            rule(&[("repository", "acme*")]),
            rule(&[("repository", "*/shop")]),
            rule(&[("repository", "/*")]),
            rule(&[("repository_owner", "acme*")]),
            rule(&[("sub", "repo:*")]),
            rule(&[("sub", "repo:/*")]),
            Admit::AllowAny,
        ] {
            let why = github.narrow_enough(&open, issuer).unwrap_err();
            assert!(why.contains("repository=acme/shop"), "{open:?}: {why}");
            // One's own server has no strangers.
            assert_eq!(
                github.narrow_enough(&open, "https://github.corp.example"),
                Ok(())
            );
        }
        let kubernetes = Preset::named("kubernetes").unwrap();
        assert!(
            kubernetes
                .narrow_enough(&Admit::AllowAny, kubernetes.issuer.unwrap())
                .is_ok()
        );
        assert!(Preset::named("jenkins").is_err());
    }
}
