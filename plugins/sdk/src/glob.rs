//! Globs as operators write them: `*` any number of characters, `?` one. Nothing else is special.

/// Does the whole of `text` match? `admit` says which characters a wildcard may stand for. Takes at most
/// `pattern.len() * text.len()` steps, so a hostile text costs no more than a long one.
pub fn matches_where(pattern: &str, text: &str, admit: impl Fn(char) -> bool) -> bool {
    let (p, t): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut pi, mut ti) = (0, 0);
    // Where to go back to: the last star, and the character after those that it has taken so far.
    let mut star: Option<(usize, usize)> = None;
    while ti < t.len() {
        match p.get(pi) {
            Some('*') => {
                star = Some((pi, ti));
                pi += 1;
            }
            Some('?') if admit(t[ti]) => {
                pi += 1;
                ti += 1;
            }
            // A literal '?' in the pattern is never a literal: it only reaches here when not admitted.
            Some(c) if *c == t[ti] && *c != '?' => {
                pi += 1;
                ti += 1;
            }
            _ => match star {
                Some((sp, st)) if admit(t[st]) => {
                    star = Some((sp, st + 1));
                    pi = sp + 1;
                    ti = st + 1;
                }
                _ => return false,
            },
        }
    }
    p[pi..].iter().all(|c| *c == '*')
}

/// Wildcards stand for any character.
pub fn matches(pattern: &str, text: &str) -> bool {
    matches_where(pattern, text, |_| true)
}

/// Does any pattern match?
pub fn any<S: AsRef<str>>(patterns: &[S], text: &str) -> bool {
    patterns.iter().any(|p| matches(p.as_ref(), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, slow.
    fn naive(p: &[char], t: &[char], admit: &dyn Fn(char) -> bool) -> bool {
        match (p.first(), t.first()) {
            (None, None) => true,
            (Some('*'), _) => {
                naive(&p[1..], t, admit)
                    || t.first()
                        .is_some_and(|c| admit(*c) && naive(p, &t[1..], admit))
            }
            (Some('?'), Some(c)) => admit(*c) && naive(&p[1..], &t[1..], admit),
            (Some(a), Some(b)) => a == b && naive(&p[1..], &t[1..], admit),
            _ => false,
        }
    }

    fn words(alphabet: &[char], up_to: usize) -> Vec<Vec<char>> {
        let mut all = vec![vec![]];
        let mut last = all.clone();
        for _ in 0..up_to {
            last = last
                .iter()
                .flat_map(|w| alphabet.iter().map(move |c| [w.as_slice(), &[*c]].concat()))
                .collect();
            all.extend(last.clone());
        }
        all
    }

    #[test]
    fn agrees_with_the_definition_on_all_short_words() {
        for p in words(&['a', 'b', '*', '?'], 4) {
            for t in words(&['a', 'b', '?'], 4) {
                for (name, admit) in [
                    ("any", &(|_| true) as &dyn Fn(char) -> bool),
                    ("not b", &|c| c != 'b'),
                ] {
                    let (ps, ts): (String, String) = (p.iter().collect(), t.iter().collect());
                    assert_eq!(
                        matches_where(&ps, &ts, admit),
                        naive(&p, &t, admit),
                        "{ps:?} {ts:?} {name}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_hostile_text_costs_no_more_than_its_length() {
        assert!(!matches(
            &format!("{}b", "a*".repeat(50)),
            &"a".repeat(30_000)
        ));
        assert!(!matches("*a*a*a*a*a*a*a*a*b", &"a".repeat(30_000)));
    }
}
