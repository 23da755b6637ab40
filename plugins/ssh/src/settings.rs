//! The settings of a service with plugin `ssh`: `[services.<name>.settings]`. The defaults allow what an OpenSSH user expects.

use crate::rules::TargetPattern;
use postern_sdk::{Problem, Settings};
use serde::Deserialize;

/// See `settings.schema.json`, which says the same to editors; a test keeps the two together.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SshSettings {
    /// Interactive shells.
    pub shell: bool,
    /// Terminals.
    pub pty: bool,
    /// Commands (`ssh host command`, `rsync`, `scp -O`, `git`).
    pub exec: AllowDeny,
    /// Environment variables, of those that the host's `accept_env` lets through.
    pub env: Vec<String>,
    /// Subsystems; `sftp` is also what `scp` uses.
    pub subsystems: Vec<String>,
    /// Targets of `-L`, `-D` and `-W`.
    pub forward: AllowDeny,
}

/// Patterns; `deny` wins.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AllowDeny {
    pub allow: Vec<String>,
    pub deny: Vec<String>,
}

impl Default for AllowDeny {
    fn default() -> Self {
        AllowDeny {
            allow: vec!["*".into()],
            deny: vec![],
        }
    }
}

impl Default for SshSettings {
    fn default() -> Self {
        SshSettings {
            shell: true,
            pty: true,
            exec: AllowDeny::default(),
            env: vec!["*".into()],
            subsystems: vec!["sftp".into()],
            forward: AllowDeny::default(),
        }
    }
}

impl Settings for SshSettings {
    fn problems(&self) -> Vec<Problem> {
        let mut out = Vec::new();
        for (list, patterns) in [
            ("forward.allow", &self.forward.allow),
            ("forward.deny", &self.forward.deny),
        ] {
            for (i, p) in patterns.iter().enumerate() {
                if let Err(why) = TargetPattern::parse(p) {
                    out.push(Problem::new(format!("{list}[{i}]"), why));
                }
            }
        }
        let named = [
            ("exec.allow", &self.exec.allow),
            ("exec.deny", &self.exec.deny),
            ("env", &self.env),
            ("subsystems", &self.subsystems),
        ];
        for (list, patterns) in named {
            for (i, p) in patterns.iter().enumerate() {
                if p.is_empty() {
                    out.push(Problem::new(
                        format!("{list}[{i}]"),
                        "an empty pattern matches nothing; leave it out",
                    ));
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_sdk::settings::check;

    #[test]
    fn nothing_written_is_what_openssh_does() {
        assert_eq!(check::<SshSettings>("{}"), Ok(SshSettings::default()));
        assert_eq!(
            check::<SshSettings>(r#"{"exec":{}}"#),
            Ok(SshSettings::default())
        );
    }

    #[test]
    fn all_problems_come_at_once_with_their_paths() {
        let e = check::<SshSettings>(
            r#"{"forward":{"allow":["db:5432","db"],"deny":["x:99999"]},"env":[""]}"#,
        )
        .unwrap_err();
        let paths: Vec<&str> = e.iter().map(|p| p.path.as_str()).collect();
        assert_eq!(paths, ["forward.allow[1]", "forward.deny[0]", "env[0]"]);
        assert!(e[0].message.contains("host:port"), "{e:?}");
        let e = check::<SshSettings>(r#"{"sheel":false}"#).unwrap_err();
        assert_eq!(e[0].path, "sheel");
    }

    #[test]
    fn the_schema_names_the_same_settings() {
        let schema: serde_json::Value =
            serde_json::from_str(include_str!("settings.schema.json")).unwrap();
        let mut names: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
        names.sort();
        assert_eq!(
            names,
            ["env", "exec", "forward", "pty", "shell", "subsystems"]
        );
        // Its defaults are ours.
        let defaults: serde_json::Map<String, serde_json::Value> = schema["properties"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(k, v)| (k.clone(), v["default"].clone()))
            .collect();
        assert_eq!(
            check::<SshSettings>(&serde_json::Value::Object(defaults).to_string()),
            Ok(SshSettings::default())
        );
    }
}
