//! Settings: JSON in, a typed value or problems out. The problem's path is what the operator wrote.

use serde::de::DeserializeOwned;

/// One thing wrong in the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `forward.allow[2]`; empty for the settings as a whole.
    pub path: String,
    pub message: String,
}

impl Problem {
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Problem {
            path: path.into(),
            message: message.into(),
        }
    }
}

/// A plugin's settings: `#[derive(Deserialize)] #[serde(default, deny_unknown_fields)]`, so that a typing error is an error.
pub trait Settings: DeserializeOwned {
    /// What types can't say. All problems at once, so that the operator need not find them one by one.
    fn problems(&self) -> Vec<Problem> {
        Vec::new()
    }
}

/// For plugins without settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoSettings {}
impl Settings for NoSettings {}

/// Parses and checks. An empty text is an empty object.
pub fn check<S: Settings>(json: &str) -> Result<S, Vec<Problem>> {
    let json = if json.trim().is_empty() { "{}" } else { json };
    if !json.trim_start().starts_with('{') {
        // serde would fill a struct from a list, too.
        return Err(vec![Problem::new(
            "",
            "settings are an object of names and values",
        )]);
    }
    let mut de = serde_json::Deserializer::from_str(json);
    let settings: S = serde_path_to_error::deserialize(&mut de).map_err(|e| {
        let path = match e.path().to_string() {
            p if p == "." => String::new(),
            p => p,
        };
        vec![Problem::new(path, plain(&e.into_inner()))]
    })?;
    de.end().map_err(|e| vec![Problem::new("", plain(&e))])?;
    match settings.problems() {
        p if p.is_empty() => Ok(settings),
        p => Err(p),
    }
}

/// serde_json adds "at line 1 column 20", which means nothing to someone who wrote TOML.
fn plain(e: &serde_json::Error) -> String {
    let s = e.to_string();
    match s.rfind(" at line ") {
        Some(at) if !e.is_syntax() => s[..at].to_string(),
        _ => s,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize, Default, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Inner {
        allow: Vec<String>,
        limit: u32,
    }
    #[derive(Debug, Deserialize, Default, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Outer {
        exec: Inner,
    }
    impl Settings for Outer {
        fn problems(&self) -> Vec<Problem> {
            if self.exec.limit > 10 {
                vec![Problem::new("exec.limit", "at most 10")]
            } else {
                vec![]
            }
        }
    }

    #[test]
    fn paths_name_what_the_operator_wrote() {
        assert_eq!(check::<Outer>(""), Ok(Outer::default()));
        let e = check::<Outer>(r#"{"exec":{"allow":["a", 3]}}"#).unwrap_err();
        assert_eq!(e[0].path, "exec.allow[1]");
        assert_eq!(e[0].message, "invalid type: integer `3`, expected a string");
        let e = check::<Outer>(r#"{"exec":{"alow":[]}}"#).unwrap_err();
        assert_eq!(e[0].path, "exec.alow");
        assert_eq!(
            e[0].message,
            "unknown field `alow`, expected `allow` or `limit`"
        );
        assert_eq!(
            check::<Outer>(r#"{"exec":{"limit":11}}"#),
            Err(vec![Problem::new("exec.limit", "at most 10")])
        );
        assert!(check::<Outer>("{} x").is_err());
        assert!(check::<Outer>("[]").is_err());
        assert!(check::<NoSettings>(r#"{"x":1}"#).is_err());
    }
}
