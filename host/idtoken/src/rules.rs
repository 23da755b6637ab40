//! Which of an issuer's tokens let a host join: claim by claim. Nothing is admitted by default.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Who is admitted, of those whose token is genuine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Admit {
    /// Whoever one of the rules matches.
    MustMatch(Vec<Rule>),
    /// Everybody with a token of this issuer and audience. For a public issuer that is the whole world.
    AllowAny,
}

/// Every claim has to match. A name that begins with `/` is a JSON pointer (`/kubernetes.io/namespace`). In a
/// pattern, `*` stands for any text, also with slashes and colons in it, and `?` for one character.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rule(pub BTreeMap<String, String>);

/// Rules that admit nobody, or more than anybody meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    #[error(
        "there is no rule, so nobody could join; give claims to match, or allow any explicitly"
    )]
    None,
    #[error(
        "a rule names no claim, so it would match every token; say so explicitly if you mean it (allow any)"
    )]
    Empty,
    #[error(
        "the pattern of claim {0:?} is empty or only stars; give the value that the claim has to have"
    )]
    Stars(String),
}

impl Admit {
    /// Refuses rules that do not restrict: openness has to be spelled out.
    pub fn check(&self) -> Result<(), RulesError> {
        let Admit::MustMatch(rules) = self else {
            return Ok(());
        };
        if rules.is_empty() {
            return Err(RulesError::None);
        }
        for Rule(claims) in rules {
            if claims.is_empty() {
                return Err(RulesError::Empty);
            }
            if let Some((name, _)) = claims.iter().find(|(_, p)| p.bytes().all(|c| c == b'*')) {
                return Err(RulesError::Stars(name.clone()));
            }
        }
        Ok(())
    }

    pub(crate) fn admits(&self, claims: &Map<String, Value>) -> bool {
        match self {
            Admit::AllowAny => true,
            Admit::MustMatch(rules) => rules.iter().any(|rule| rule.matches(claims)),
        }
    }
}

impl Rule {
    fn matches(&self, claims: &Map<String, Value>) -> bool {
        // An empty rule admits nobody, whoever forgot to check it.
        !self.0.is_empty()
            && self
                .0
                .iter()
                .all(|(name, pattern)| find(claims, name).is_some_and(|v| fits(pattern, v)))
    }
}

/// The claim of exactly this name, else the one that a pointer leads to.
fn find<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(name) {
        return Some(value);
    }
    // A pointer's first part is a claim's name, `~1` and `~0` standing for `/` and `~`.
    let (first, rest) = match name.strip_prefix('/')?.split_once('/') {
        Some((first, rest)) => (first, format!("/{rest}")),
        None => (name.strip_prefix('/')?, String::new()),
    };
    let first = first.replace("~1", "/").replace("~0", "~");
    claims.get(&first)?.pointer(&rest)
}

/// Of a list, one element has to fit.
fn fits(pattern: &str, value: &Value) -> bool {
    match value {
        Value::String(text) => wildcard(pattern, text),
        Value::Bool(_) | Value::Number(_) => wildcard(pattern, &value.to_string()),
        Value::Array(items) => items.iter().any(|v| !v.is_array() && fits(pattern, v)),
        Value::Object(_) | Value::Null => false,
    }
}

/// `*` and `?`; everything else, brackets too (`dependabot[bot]`), stands for itself. Linear in memory, and at most
/// pattern × text steps.
fn wildcard(pattern: &str, text: &str) -> bool {
    let (p, t): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut i, mut j) = (0, 0);
    // Where the last star stands, and where its text ends so far.
    let mut star: Option<(usize, usize)> = None;
    while let Some(c) = t.get(j) {
        match p.get(i) {
            Some('*') => {
                star = Some((i, j));
                i += 1;
            }
            Some(want) if *want == '?' || want == c => {
                i += 1;
                j += 1;
            }
            _ => {
                let Some((at, end)) = star else { return false };
                star = Some((at, end + 1));
                i = at + 1;
                j = end + 1;
            }
        }
    }
    p.iter().skip(i).all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn wildcards() {
        for (pattern, text, fits) in [
            ("repo:acme/app:*", "repo:acme/app:ref:refs/heads/main", true),
            ("repo:acme/app:*", "repo:acme/app-evil:ref", false),
            ("*:main", "a:main", true),
            ("*:main", "a:main2", false),
            ("a*b*c", "axxbxxbc", true),
            ("dependabot[bot]", "dependabot[bot]", true),
            ("dependabot[bot]", "dependabotb", false),
            ("?", "é", true),
            ("?", "", false),
            ("", "", true),
            ("", "x", false),
        ] {
            assert_eq!(wildcard(pattern, text), fits, "{pattern:?} on {text:?}");
        }
    }

    proptest! {
        #[test]
        fn text_without_wildcards_matches_itself_alone(a in "[a-c/:.\\[\\]]{0,6}", b in "[a-c/:.\\[\\]]{0,6}") {
            prop_assert_eq!(wildcard(&a, &b), a == b);
            let joined = format!("{}{}", a, b);
            let starred = format!("{}*", a);
            prop_assert!(wildcard(&starred, &joined));
        }
    }

    #[test]
    fn openness_has_to_be_spelled_out() {
        let rule = |name: &str, p: &str| Rule([(name.to_owned(), p.to_owned())].into());
        assert_eq!(Admit::MustMatch(vec![]).check(), Err(RulesError::None));
        let empty = Admit::MustMatch(vec![Rule(BTreeMap::new())]);
        assert_eq!(empty.check(), Err(RulesError::Empty));
        assert!(!empty.admits(&Map::new()));
        for stars in ["", "*", "**"] {
            let open = Admit::MustMatch(vec![rule("sub", stars)]);
            assert_eq!(open.check(), Err(RulesError::Stars("sub".into())));
        }
        assert_eq!(Admit::MustMatch(vec![rule("sub", "a*")]).check(), Ok(()));
        assert_eq!(Admit::AllowAny.check(), Ok(()));
    }
}
