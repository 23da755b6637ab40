//! One value of a rule: what it matches, and its template expanded.

use regex::{Regex, RegexBuilder};
use std::collections::BTreeMap;

/// Bytes of a pattern's text.
const MAX_TEXT: usize = 512;
/// Bytes of a compiled expression. `\w{1000}` and the like are refused rather than paid for.
const MAX_COMPILED: usize = 256 * 1024;

/// What one value matches.
#[derive(Debug, Clone)]
pub(crate) enum Pattern {
    /// `*`
    Any,
    /// The text itself. What a template expanded to is always this.
    Exact(String),
    /// `*` any number of characters, `?` one.
    Glob(String),
    /// `^…`
    Regex(Regex),
    /// Not understood: never allows, always denies.
    Broken,
}

/// On which side a pattern stands, which decides what a broken one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Allow,
    Deny,
}

impl Pattern {
    /// The text itself, where it is one.
    pub fn exact(&self) -> Option<&str> {
        match self {
            Pattern::Exact(text) => Some(text),
            _ => None,
        }
    }

    pub fn matches(&self, value: &str, side: Side) -> bool {
        match self {
            Pattern::Any => true,
            Pattern::Exact(text) => text == value,
            Pattern::Glob(glob) => glob_matches(glob, value),
            Pattern::Regex(regex) => regex.is_match(value),
            Pattern::Broken => side == Side::Deny,
        }
    }
}

/// Adds the patterns that `text` stands for: one, or one per value of the trait it names.
pub(crate) fn expand(text: &str, traits: &BTreeMap<String, Vec<String>>, out: &mut Vec<Pattern>) {
    match parse(text) {
        Ok(Parsed::Pattern(pattern)) => out.push(pattern),
        Ok(Parsed::Template {
            before,
            name,
            after,
        }) => {
            let values = traits
                .get(name)
                .into_iter()
                .flatten()
                .filter(|value| !value.is_empty());
            out.extend(values.map(|value| Pattern::Exact(format!("{before}{value}{after}"))));
        }
        Err(_) => out.push(Pattern::Broken),
    }
}

/// Whether the text is acceptable in a new role.
pub(crate) fn check(text: &str) -> Result<(), String> {
    parse(text).map(|_| ())
}

/// Whether the text stands for certain values, in a new role: what is granted has to have a name.
pub(crate) fn check_value(text: &str) -> Result<(), String> {
    match parse(text)? {
        Parsed::Pattern(Pattern::Exact(_)) | Parsed::Template { .. } => Ok(()),
        Parsed::Pattern(_) => Err("is a pattern; name one by one what is granted".into()),
    }
}

enum Parsed<'t> {
    Pattern(Pattern),
    Template {
        before: &'t str,
        name: &'t str,
        after: &'t str,
    },
}

fn parse(text: &str) -> Result<Parsed<'_>, String> {
    if text.is_empty() {
        return Err("is empty".into());
    }
    if text.len() > MAX_TEXT {
        return Err(format!("is longer than {MAX_TEXT} bytes"));
    }
    if text == "*" {
        return Ok(Parsed::Pattern(Pattern::Any));
    }
    if text.starts_with('^') {
        return regex(text).map(|regex| Parsed::Pattern(Pattern::Regex(regex)));
    }
    if text.contains("{{") || text.contains("}}") {
        return template(text);
    }
    // Other tools' globs have sets; here they would match nothing, which in a deny rule lets through.
    if text.contains(['[', ']', '{', '}']) {
        return Err("has brackets, which globs here don't know; write a regular expression, as in \"^web-[0-9]+$\"".into());
    }
    let text = text.to_owned();
    let glob = text.contains(['*', '?']);
    Ok(Parsed::Pattern(if glob {
        Pattern::Glob(text)
    } else {
        Pattern::Exact(text)
    }))
}

/// `before{{internal.name}}after`, where before and after are plain text.
fn template(text: &str) -> Result<Parsed<'_>, String> {
    let usage =
        || "is no template; it has the form {{internal.<trait>}} or {{external.<trait>}}, once";
    let (before, rest) = text.split_once("{{").ok_or_else(usage)?;
    let (name, after) = rest.split_once("}}").ok_or_else(usage)?;
    let name = name.trim();
    let name = name
        .strip_prefix("internal.")
        .or_else(|| name.strip_prefix("external."));
    let word = |b: u8| b.is_ascii_alphanumeric() || b"_-./:".contains(&b);
    let name = name
        .filter(|name| !name.is_empty() && name.bytes().all(word))
        .ok_or_else(usage)?;
    // What a trait holds is literal, so what stands around it has to be as well.
    if [before, after]
        .iter()
        .any(|part| part.contains(['*', '?', '^', '{', '}', '[', ']']))
    {
        return Err(
            "mixes a template with a pattern; what stands around a template is plain text".into(),
        );
    }
    Ok(Parsed::Template {
        before,
        name,
        after,
    })
}

/// The anchors hold for the whole expression: `^a|b$` means `^(?:a|b)$`, as everyone who writes it does.
fn regex(text: &str) -> Result<Regex, String> {
    let compile = |text: &str| {
        RegexBuilder::new(text)
            .size_limit(MAX_COMPILED)
            .dfa_size_limit(MAX_COMPILED)
            .nest_limit(32)
            .build()
    };
    // The text itself must be valid, lest a stray `)` close our own group.
    let valid = compile(text).and_then(|_| {
        let body = text.strip_prefix('^').unwrap_or(text);
        match body.strip_suffix('$').filter(|body| ends_unescaped(body)) {
            Some(body) => compile(&format!("^(?:{body})$")),
            None => compile(&format!("^(?:{body})")),
        }
    });
    valid.map_err(|e| match e {
        regex::Error::CompiledTooBig(_) => "is too large a regular expression".into(),
        // The last line of regex's picture says what is wrong.
        e => {
            let text = e.to_string();
            let why = text
                .lines()
                .last()
                .unwrap_or_default()
                .trim_start_matches("error: ");
            format!("is no regular expression: {why}")
        }
    })
}

/// Whether a `$` after this text is an anchor rather than `\$`.
fn ends_unescaped(text: &str) -> bool {
    text.bytes().rev().take_while(|b| *b == b'\\').count() % 2 == 0
}

/// On a mismatch only the last `*` takes one character more, so the work is at most glob × text.
fn glob_matches(glob: &str, text: &str) -> bool {
    let (mut glob, mut text) = (glob.chars(), text.chars());
    let mut last_star = None;
    loop {
        let (mut next_glob, mut next_text) = (glob.clone(), text.clone());
        match (next_glob.next(), next_text.next()) {
            (None, None) => return true,
            (Some('*'), _) => {
                last_star = Some((next_glob.clone(), text.clone()));
                glob = next_glob;
                continue;
            }
            (Some(want), Some(have)) if want == '?' || want == have => {
                (glob, text) = (next_glob, next_text);
                continue;
            }
            _ => {}
        }
        let Some((after_star, from)) = &mut last_star else {
            return false;
        };
        if from.next().is_none() {
            return false;
        }
        (glob, text) = (after_star.clone(), from.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(pattern: &str, value: &str) -> bool {
        let mut out = Vec::new();
        expand(pattern, &BTreeMap::new(), &mut out);
        out.iter().any(|p| p.matches(value, Side::Allow))
    }

    #[test]
    fn forms() {
        for (pattern, yes, no) in [
            ("prod", vec!["prod"], vec!["PROD", "prod2", "", "*"]),
            ("*", vec!["", "x"], vec![]),
            ("web-*", vec!["web-", "web-1"], vec!["web", "xweb-1"]),
            ("*-db-*", vec!["a-db-b", "-db-", "a-db-db-"], vec!["a-db"]),
            ("w?b", vec!["web", "wäb"], vec!["wb", "weeb"]),
            ("^st", vec!["st", "staging"], vec!["xst"]),
            ("^st$", vec!["st"], vec!["sta", "st\n"]),
            (
                "^prod|stage$",
                vec!["prod", "stage"],
                vec!["production", "xstage"],
            ),
            (r"^a\$", vec!["a$", "a$b"], vec!["a"]),
            (r"^a\\$", vec![r"a\"], vec![r"a\b"]),
            ("a.c", vec!["a.c"], vec!["abc"]),
        ] {
            for value in yes {
                assert!(matches(pattern, value), "{pattern} should match {value:?}");
            }
            for value in no {
                assert!(
                    !matches(pattern, value),
                    "{pattern} should not match {value:?}"
                );
            }
        }
    }

    #[test]
    fn what_is_refused() {
        for bad in [
            "",
            "^(",
            "^a)|(b$",
            "web-[0-9]",
            "{a,b}",
            "{{internal.}}",
            "{{logins}}",
            "{{internal.a b}}",
            "{{internal.a",
            "internal.a}}",
            "*{{internal.a}}",
            "{{internal.a}}{{internal.b}}",
            r"^\w{1000}{100}$",
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
            assert!(!matches(bad, bad), "{bad:?}");
        }
        assert!(check(&"x".repeat(513)).is_err());
        for good in [
            "{{internal.logins}}",
            "{{ external.team }}",
            "svc-{{internal.team}}-ro",
        ] {
            assert!(check(good).is_ok(), "{good:?}");
        }
    }

    proptest! {
        #[test]
        fn globs_are_as_the_expression_they_stand_for(glob in "[ab*?]{1,8}", text in "[abc]{0,10}") {
            let expression: String = glob.chars().map(|c| match c {
                '*' => "(?s:.*)".to_owned(),
                '?' => "(?s:.)".to_owned(),
                c => regex::escape(&c.to_string()),
            }).collect();
            let reference = Regex::new(&format!("^{expression}$")).unwrap();
            prop_assert_eq!(glob_matches(&glob, &text), reference.is_match(&text));
        }

        #[test]
        fn a_malicious_glob_ends(text in "a{2000,4000}") {
            let glob = "a*".repeat(200) + "b";
            prop_assert!(!glob_matches(&glob, &text));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}", value in "\\PC{0,40}") {
            matches(&text, &value);
        }
    }
}
