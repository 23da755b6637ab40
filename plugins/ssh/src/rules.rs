//! What the settings mean: one event in, one verdict out.

use crate::settings::{AllowDeny, SshSettings};
use postern_sdk::glob;
use postern_sdk::ssh::{Event, Verdict};

/// Decides. `resource` is only for the words of a refusal.
pub fn decide(s: &SshSettings, resource: &str, event: &Event) -> Verdict {
    let deny = |what: &str, setting: &str| {
        Verdict::Deny(format!(
            "{what} on {resource} (the service's setting `{setting}`)"
        ))
    };
    match event {
        Event::Shell if s.shell => Verdict::Allow,
        Event::Shell => deny("no shell is given", "shell"),
        Event::Pty(_) if s.pty => Verdict::Allow,
        Event::Pty(_) => deny("no terminal is given", "pty"),
        Event::Exec(command) if glob::any(&s.exec.deny, command) => {
            deny("this command is not run", "exec.deny")
        }
        Event::Exec(command) if s.exec.allow.iter().any(|p| command_allowed(p, command)) => {
            Verdict::Allow
        }
        Event::Exec(_) => deny("this command is not run", "exec.allow"),
        Event::Env((name, _)) if glob::any(&s.env, name) => Verdict::Allow,
        Event::Env(_) => Verdict::Ignore,
        Event::Subsystem(name) if glob::any(&s.subsystems, name) => Verdict::Allow,
        Event::Subsystem(name) => deny(
            &format!("subsystem {:?} is not offered", short(name)),
            "subsystems",
        ),
        Event::Forward(t) if targets(&s.forward.deny, &t.host, t.port) => deny(
            &format!("forwarding to {}:{} is not allowed", short(&t.host), t.port),
            "forward.deny",
        ),
        Event::Forward(t) if targets(&s.forward.allow, &t.host, t.port) => Verdict::Allow,
        Event::Forward(t) => deny(
            &format!("forwarding to {}:{} is not allowed", short(&t.host), t.port),
            "forward.allow",
        ),
    }
}

/// The command goes through the login's shell, so in an allow pattern a wildcard must not stand for what starts another
/// command there: `git-upload-pack *` does not allow `git-upload-pack x; sh`.
fn command_allowed(pattern: &str, command: &str) -> bool {
    pattern == "*" || glob::matches_where(pattern, command, |c| !is_shell_meta(c))
}

fn is_shell_meta(c: char) -> bool {
    matches!(
        c,
        ';' | '&' | '|' | '<' | '>' | '(' | ')' | '$' | '`' | '\\'
    ) || c.is_control()
}

fn targets(patterns: &[String], host: &str, port: u16) -> bool {
    patterns
        .iter()
        .any(|p| TargetPattern::parse(p).is_ok_and(|p| p.matches(host, port)))
}

/// What a client sends goes into messages only in part.
fn short(s: &str) -> String {
    s.chars().filter(|c| !c.is_control()).take(64).collect()
}

/// `host:port` of a forwarding, with wildcards.
#[derive(Debug, PartialEq, Eq)]
pub struct TargetPattern {
    host: String,
    ports: (u16, u16),
}

impl TargetPattern {
    /// `*`, `*:5432`, `db-*.internal:*`, `10.0.0.7:8000-8099`, `[::1]:22`. The error says what is wrong.
    pub fn parse(s: &str) -> Result<Self, String> {
        if s == "*" {
            return Ok(TargetPattern {
                host: "*".into(),
                ports: (0, u16::MAX),
            });
        }
        let (host, port) = s
            .rsplit_once(':')
            .ok_or_else(|| format!("{s:?} is not host:port (all ports: {s}:*)"))?;
        let host = canonical_host(host);
        if host.is_empty() {
            return Err(format!("{s:?} has no host (all hosts: *:{port})"));
        }
        let number = |p: &str| {
            p.parse::<u16>()
                .map_err(|_| format!("port {p:?} in {s:?} is not 0 to 65535, a range a-b, or *"))
        };
        let ports = match port.split_once('-') {
            _ if port == "*" => (0, u16::MAX),
            Some((a, b)) => (number(a)?, number(b)?),
            None => (number(port)?, number(port)?),
        };
        if ports.0 > ports.1 {
            return Err(format!("range {port} in {s:?} ends before it begins"));
        }
        Ok(TargetPattern { host, ports })
    }

    /// Does it cover this target?
    pub fn matches(&self, host: &str, port: u16) -> bool {
        (self.ports.0..=self.ports.1).contains(&port)
            && glob::matches(&self.host, &canonical_host(host))
    }
}

/// Names have no case, may end in a dot; IPv6 may be in brackets.
fn canonical_host(host: &str) -> String {
    let host = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

impl AllowDeny {
    #[cfg(test)]
    pub fn of(allow: &[&str], deny: &[&str]) -> Self {
        let own = |l: &[&str]| l.iter().map(|s| (*s).to_string()).collect();
        AllowDeny {
            allow: own(allow),
            deny: own(deny),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_sdk::ssh::{Pty, Target};

    fn exec(c: &str) -> Event {
        Event::Exec(c.into())
    }
    fn forward(host: &str, port: u16) -> Event {
        Event::Forward(Target {
            host: host.into(),
            port,
        })
    }
    fn env(n: &str) -> Event {
        Event::Env((n.into(), "v".into()))
    }
    fn allowed(s: &SshSettings, e: &Event) -> bool {
        decide(s, "web-1", e) == Verdict::Allow
    }

    #[test]
    fn defaults_allow_what_openssh_does() {
        let s = SshSettings::default();
        let pty = Event::Pty(Pty {
            term: "xterm".into(),
            cols: 80,
            rows: 24,
        });
        for e in [
            Event::Shell,
            pty,
            exec("a; b | c"),
            env("LANG"),
            Event::Subsystem("sftp".into()),
            forward("::1", 22),
        ] {
            assert!(allowed(&s, &e), "{e:?}");
        }
        assert!(!allowed(&s, &Event::Subsystem("netconf".into())));
    }

    #[test]
    fn an_allowed_command_can_not_be_extended() {
        let s = SshSettings {
            exec: AllowDeny::of(&["git-upload-pack *", "uptime"], &[]),
            ..Default::default()
        };
        for ok in ["uptime", "git-upload-pack '/srv/a.git'"] {
            assert!(allowed(&s, &exec(ok)), "{ok}");
        }
        for c in [
            ";", "&", "|", "\n", "$(", "`", ">", "<", "(", "\\", "\r", "\0", "&&",
        ] {
            assert!(
                !allowed(&s, &exec(&format!("git-upload-pack x{c}sh"))),
                "{c:?}"
            );
            assert!(!allowed(&s, &exec(&format!("uptime{c}sh"))), "{c:?}");
        }
        assert!(!allowed(&s, &exec(" uptime")));
        assert!(!allowed(&s, &exec("")));
    }

    #[test]
    fn deny_wins_and_says_which_setting() {
        let s = SshSettings {
            exec: AllowDeny::of(&["*"], &["*shutdown*"]),
            ..Default::default()
        };
        assert!(allowed(&s, &exec("ls")));
        let Verdict::Deny(why) = decide(&s, "web-1", &exec("sudo shutdown now; true")) else {
            panic!()
        };
        assert_eq!(
            why,
            "this command is not run on web-1 (the service's setting `exec.deny`)"
        );
    }

    #[test]
    fn switches() {
        let s = SshSettings {
            shell: false,
            pty: false,
            env: vec!["LC_*".into()],
            subsystems: vec![],
            ..Default::default()
        };
        assert!(!allowed(&s, &Event::Shell));
        assert!(allowed(&s, &exec("true")));
        assert!(allowed(&s, &env("LC_ALL")));
        assert_eq!(decide(&s, "web-1", &env("LD_PRELOAD")), Verdict::Ignore);
        assert!(!allowed(&s, &Event::Subsystem("sftp".into())));
    }

    #[test]
    fn forward_targets() {
        let s = SshSettings {
            forward: AllowDeny::of(
                &[
                    "db-*.internal:5432",
                    "10.0.0.7:8000-8099",
                    "[::1]:22",
                    "any.example:*",
                ],
                &["db-7.internal:*"],
            ),
            ..Default::default()
        };
        for (h, p) in [
            ("DB-1.internal.", 5432),
            ("10.0.0.7", 8000),
            ("10.0.0.7", 8099),
            ("::1", 22),
            ("any.example", 1),
        ] {
            assert!(allowed(&s, &forward(h, p)), "{h}:{p}");
        }
        for (h, p) in [
            ("db-1.internal", 5433),
            ("10.0.0.7", 8100),
            ("127.0.0.1", 22),
            ("db-7.internal", 5432),
            ("", 1),
        ] {
            assert!(!allowed(&s, &forward(h, p)), "{h}:{p}");
        }
    }

    #[test]
    fn target_patterns_that_mean_nothing_are_errors() {
        for bad in ["db", ":22", "db:", "db:x", "db:70000", "db:9-8", "db:1-"] {
            assert!(TargetPattern::parse(bad).is_err(), "{bad}");
        }
    }
}
