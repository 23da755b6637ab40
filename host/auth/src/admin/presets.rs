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
    fixed: Fixed,
}

/// What of a pattern must be without wildcards.
enum Fixed {
    All,
    /// After one of these words, an owner and the slash behind it: with `acme*`, `acme-evil` would join too.
    Path(&'static [&'static str]),
}

const fn id(claim: &'static str) -> Owner {
    let fixed = Fixed::All;
    Owner { claim, fixed }
}

const fn path(claim: &'static str, words: &'static [&'static str]) -> Owner {
    let fixed = Fixed::Path(words);
    Owner { claim, fixed }
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
            path("repository", &[""]),
            id("repository_id"),
            id("repository_owner"),
            id("repository_owner_id"),
            id("enterprise"),
            id("enterprise_id"),
            path("sub", &["repo:"]),
        ],
        example: "repository=acme/shop",
    },
    // https://docs.gitlab.com/ci/secrets/id_token_authentication/
    Preset {
        word: "gitlab",
        issuer: Some("https://gitlab.com"),
        owners: &[
            path("project_path", &[""]),
            id("project_id"),
            id("namespace_path"),
            id("namespace_id"),
            path("sub", &["project_path:"]),
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

    /// Whether the rules admit nobody but those of a named owner, whatever the method was called. An issuer of the
    /// operator's own (GitHub Enterprise Server, a GitLab of one's own) may be trusted as a whole.
    pub fn narrow_enough(admit: &Admit, issuer: &str) -> Result<(), String> {
        let issuer = issuer.trim_end_matches('/');
        let public = |p: &&Preset| !p.owners.is_empty() && p.issuer == Some(issuer);
        let Some(public) = PRESETS.iter().find(public) else {
            return Ok(());
        };
        let rules = match admit {
            Admit::AllowAny => {
                return Err(format!(
                    "everybody can get a token of {issuer}; say whose may join, e.g. {}",
                    public.example
                ));
            }
            Admit::MustMatch(rules) => rules,
        };
        match rules.iter().find(|rule| !public.names_an_owner(rule)) {
            None => Ok(()),
            Some(_) => {
                let claims: Vec<&str> = public.owners.iter().map(|o| o.claim).collect();
                Err(format!(
                    "a rule names no owner, so strangers' tokens of {issuer} could match; give it one of {} (wildcards only \
                     after the first /), e.g. {}",
                    claims.join(", "),
                    public.example
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
        match self.fixed {
            Fixed::All => fixed.len() == pattern.len(),
            Fixed::Path(words) => words.iter().any(|word| {
                let path = fixed.strip_prefix(word).and_then(|p| p.split_once('/'));
                path.is_some_and(|(owner, _)| !owner.is_empty() && !owner.contains(':'))
            }),
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
            assert_eq!(Preset::narrow_enough(&good, issuer), Ok(()), "{good:?}");
        }
        for open in [
            rule(&[("ref", "refs/heads/main")]),
            rule(&[("repository", "acme*")]),
            rule(&[("repository", "*/shop")]),
            rule(&[("repository", "/*")]),
            rule(&[("repository_owner", "acme*")]),
            rule(&[("sub", "repo:*")]),
            rule(&[("sub", "repo:/*")]),
            rule(&[("sub", "ref:refs/heads/*")]),
            rule(&[("sub", "repo:x:ref:refs/*")]),
            rule(&[("sub", "environment:prod")]),
            Admit::AllowAny,
        ] {
            let why = Preset::narrow_enough(&open, issuer).unwrap_err();
            assert!(why.contains("repository=acme/shop"), "{open:?}: {why}");
            // One's own server has no strangers.
            let own = Preset::narrow_enough(&open, "https://github.corp.example");
            assert_eq!(own, Ok(()));
        }
        let kubernetes = Preset::named("kubernetes").unwrap().issuer.unwrap();
        assert!(Preset::narrow_enough(&Admit::AllowAny, kubernetes).is_ok());
        let gitlab = rule(&[("sub", "project_path:acme/shop:ref_type:branch:ref:*")]);
        assert!(Preset::narrow_enough(&gitlab, "https://gitlab.com").is_ok());
        assert!(Preset::narrow_enough(&Admit::AllowAny, "https://gitlab.com/").is_err());
        assert!(Preset::named("jenkins").is_err());
    }
}
