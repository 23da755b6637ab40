//! The account behind a login name, and the environment its sessions begin with.

use crate::child::request::Login;
use crate::{SessionContext, SshdOptions};
use nix::unistd::{User, geteuid, getgrouplist};
use std::ffi::CString;
use std::net::SocketAddr;

/// Looks the account up (may ask a directory service: not for the connection's task) and checks that this agent may serve it.
pub fn find(name: &str, allow_same_user: bool) -> Result<Login, String> {
    let user = User::from_name(name)
        .map_err(|e| format!("login {name:?}: cannot look up the account: {}", e.desc()))?
        .ok_or_else(|| format!("login {name:?} does not exist on this host"))?;
    let me = geteuid();
    if user.uid == me && !allow_same_user {
        return Err(format!(
            "login {name:?} is the account the agent runs as, and could read the agent's keys: use another login, or set allow_same_user = true on the agent (for development)"
        ));
    }
    if user.uid != me && !me.is_root() {
        return Err(format!(
            "login {name:?} needs an agent that runs as root; this one runs as uid {me} and can serve only that login"
        ));
    }
    let c_name = CString::new(name).map_err(|_| "a login name with a NUL byte".to_owned())?;
    let groups = getgrouplist(&c_name, user.gid)
        .map_err(|e| format!("login {name:?}: cannot look up its groups: {}", e.desc()))?;
    let text = |p: std::path::PathBuf, default: &str| match p.to_string_lossy() {
        s if s.is_empty() => default.to_owned(),
        s => s.into_owned(),
    };
    Ok(Login {
        name: user.name,
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
        groups: groups.into_iter().map(|g| g.as_raw()).collect(),
        home: text(user.dir, "/"),
        shell: text(user.shell, "/bin/sh"),
    })
}

/// What every session has, then what the client sent, then `TERM`.
pub fn environment(
    login: &Login,
    ctx: &SessionContext,
    sent: Vec<(String, String)>,
    term: Option<&str>,
) -> Vec<(String, String)> {
    let path = if login.uid == 0 {
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    } else {
        "/usr/local/bin:/usr/bin:/bin:/usr/games"
    };
    let mut env = vec![
        ("USER".to_owned(), login.name.clone()),
        ("LOGNAME".to_owned(), login.name.clone()),
        ("HOME".to_owned(), login.home.clone()),
        ("PATH".to_owned(), path.to_owned()),
        ("MAIL".to_owned(), format!("/var/mail/{}", login.name)),
        ("SHELL".to_owned(), login.shell.clone()),
    ];
    if let Ok(from) = ctx.source.parse::<SocketAddr>() {
        // The stream came through a tunnel: there is no address of ours. The words are OpenSSH's for that.
        let (ip, port) = (from.ip().to_canonical(), from.port());
        env.push(("SSH_CLIENT".into(), format!("{ip} {port} 65535")));
        env.push((
            "SSH_CONNECTION".into(),
            format!("{ip} {port} UNKNOWN 65535"),
        ));
    }
    env.push(("POSTERN_SESSION".into(), ctx.session_id.clone()));
    if let Some(term) = term.filter(|t| !t.is_empty()) {
        env.push(("TERM".into(), term.to_owned()));
    }
    env.retain(|(_, v)| !v.contains('\0'));
    env.extend(sent);
    env
}

/// Whether a client may set this variable. Those that say who one is are never its to set.
pub fn accepts_env(opts: &SshdOptions, name: &str, value: &str) -> bool {
    const OURS: [&str; 8] = [
        "USER",
        "LOGNAME",
        "HOME",
        "SHELL",
        "MAIL",
        "PATH",
        "TERM",
        "POSTERN_SESSION",
    ];
    // What makes a loader or shell run other code than the command that was decided on, whatever the patterns allow.
    const STEERS: [&str; 6] = ["BASH_ENV", "ENV", "SHELLOPTS", "BASHOPTS", "PS4", "IFS"];
    const STEERING: [&str; 4] = ["SSH_", "LD_", "BASH_FUNC_", "POSTERN_"];
    let well_formed = !name.is_empty()
        && name.len() <= 256
        && value.len() <= 32 << 10
        && !name.contains(['=', '\0'])
        && !value.contains('\0');
    well_formed
        && !OURS.contains(&name)
        && !STEERS.contains(&name)
        && !STEERING.iter().any(|prefix| name.starts_with(prefix))
        && opts
            .accept_env
            .iter()
            .any(|pattern| glob(pattern.as_bytes(), name.as_bytes()))
}

/// `*` and `?` as in a shell.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    // The classic two-pointer walk: remembers the last star only, so no pattern is slow.
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&c) if c == b'?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, text, want) in [
            ("LC_*", "LC_ALL", true),
            ("LC_*", "LC_", true),
            ("LC_*", "LANG", false),
            ("*", "", true),
            ("?", "", false),
            ("A?C*E", "ABCDDE", true),
            ("A?C*E", "ABCDDEF", false),
            ("**x**", "aaxbb", true),
            ("LANG", "LANGUAGE", false),
        ] {
            assert_eq!(
                glob(pattern.as_bytes(), text.as_bytes()),
                want,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn who_one_is_and_what_code_runs_is_never_the_clients_to_say() {
        let opts = SshdOptions {
            accept_env: vec!["*".into()],
            ..Default::default()
        };
        assert!(accepts_env(&opts, "EDITOR", "vi"));
        for name in [
            "HOME",
            "USER",
            "SHELL",
            "PATH",
            "SSH_CONNECTION",
            "LD_PRELOAD",
            "BASH_ENV",
            "BASH_FUNC_ls%%",
            "ENV",
            "",
            "A=B",
            "A\0",
        ] {
            assert!(!accepts_env(&opts, name, "x"), "{name:?}");
        }
        assert!(!accepts_env(&opts, "A", "x\0y"));
    }

    #[test]
    fn unknown_and_own_logins_are_refused_in_words() {
        let unknown = find("no-such-login-here", false).unwrap_err();
        assert_eq!(
            unknown,
            "login \"no-such-login-here\" does not exist on this host"
        );
        let me = User::from_uid(geteuid()).unwrap().unwrap();
        assert!(
            find(&me.name, false)
                .unwrap_err()
                .contains("allow_same_user")
        );
        assert_eq!(find(&me.name, true).unwrap().uid, me.uid.as_raw());
    }
}
