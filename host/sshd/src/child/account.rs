//! May this account log in now? What OpenSSH without PAM asks: expiry, and whether the host accepts logins.

use super::request::Login;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Runs as root: `/etc/shadow` is root's.
pub fn check(login: &Login, nologin: &[PathBuf]) -> Result<(), String> {
    if login.uid != 0 {
        for file in nologin {
            if let Some(text) = closed(file) {
                return Err(format!("this host is not accepting logins: {text}"));
            }
        }
    }
    let today = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs() / 86_400);
    match std::fs::read_to_string("/etc/shadow") {
        Ok(shadow) if expired(&shadow, &login.name, today) => Err(format!(
            "login {:?}: the account has expired on this host (see: chage -l {})",
            login.name, login.name
        )),
        // Accounts of a directory service are not in the file; a host without the file has no expiry.
        _ => Ok(()),
    }
}

/// The first 4 KB of the file, if it is there; a file that can't be read closes the host too.
fn closed(file: &Path) -> Option<String> {
    match std::fs::read(file) {
        Ok(text) => Some(
            String::from_utf8_lossy(&text[..text.len().min(4096)])
                .trim()
                .to_owned(),
        ),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => Some(format!("{}: {e}", file.display())),
    }
}

/// shadow(5): the eighth field is the day (since 1970) from which on the account is closed; empty or absent: never.
fn expired(shadow: &str, login: &str, today: u64) -> bool {
    shadow
        .lines()
        .map(|line| line.split(':'))
        .find_map(|mut fields| {
            (fields.next() == Some(login)).then(|| fields.nth(6).map(str::to_owned))
        })
        .flatten()
        .and_then(|day| day.parse::<u64>().ok())
        .is_some_and(|day| day <= today)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_is_the_eighth_field() {
        let shadow = "root:*:20000:0:99999:7:::\nold:!:1:0:99999:7::19000:\nnew:!:1:0:9:7::30000:\nshort:x\n";
        assert!(expired(shadow, "old", 19_000));
        assert!(!expired(shadow, "old", 18_999));
        assert!(!expired(shadow, "new", 20_000));
        assert!(!expired(shadow, "root", 20_000));
        assert!(!expired(shadow, "short", 20_000));
        assert!(!expired(shadow, "nobody", 20_000));
    }

    #[test]
    fn a_nologin_file_closes_the_host_for_all_but_root() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("nologin");
        let mut login = Login {
            name: "somebody-unknown".into(),
            uid: 4242,
            gid: 4242,
            groups: vec![],
            home: "/".into(),
            shell: "/bin/sh".into(),
        };
        assert_eq!(check(&login, std::slice::from_ref(&file)), Ok(()));
        std::fs::write(&file, "moving house\n").unwrap();
        assert_eq!(
            check(&login, std::slice::from_ref(&file)),
            Err("this host is not accepting logins: moving house".into())
        );
        login.uid = 0;
        assert_eq!(check(&login, &[file]), Ok(()));
    }
}
