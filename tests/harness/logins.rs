//! Logins that exist for the agent of a test only: its `/etc/passwd`, `group` and `shadow` are private mounts of copies
//! with a few lines more, so that sessions really change their uid without touching the machine. Needs root.

use anyhow::{Context, Result};
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The login most tests use.
pub const LOGIN: &str = "deploy";
/// Another one.
pub const OTHER_LOGIN: &str = "backup-op";
/// One whose account has expired.
pub const EXPIRED_LOGIN: &str = "leaver";

const ALL: [(&str, u32); 3] = [
    (LOGIN, 61_001),
    (OTHER_LOGIN, 61_002),
    (EXPIRED_LOGIN, 61_003),
];

/// The copies.
pub struct Logins {
    dir: PathBuf,
}

impl Logins {
    pub fn create(dir: &Path) -> Result<Self> {
        std::fs::create_dir(dir)?;
        let (mut passwd, mut group, mut shadow) =
            (read("passwd")?, read("group")?, read("shadow")?);
        for (name, id) in ALL {
            let home = dir.join(name);
            std::fs::create_dir(&home)?;
            std::os::unix::fs::chown(&home, Some(id), Some(id))?;
            std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o750))?;
            passwd += &format!("{name}:x:{id}:{id}::{}:/bin/bash\n", home.display());
            group += &format!("{name}:x:{id}:\n");
            // `*`: no password works, but the account is not locked. Field 8: the day it expires.
            let expires = if name == EXPIRED_LOGIN { "19000" } else { "" };
            shadow += &format!("{name}:*:19000:0:99999:7::{expires}:\n");
        }
        group += &format!("lab-extra:x:61010:{LOGIN}\n");
        for (name, content, mode) in [
            ("passwd", passwd, 0o644),
            ("group", group, 0o644),
            ("shadow", shadow, 0o600),
        ] {
            let file = dir.join(name);
            std::fs::write(&file, content)?;
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode))?;
        }
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?;
        Ok(Logins {
            dir: dir.to_path_buf(),
        })
    }

    pub fn home(&self, login: &str) -> PathBuf {
        self.dir.join(login)
    }

    /// What goes in front of a program that shall see them; it `exec`s the program.
    pub(super) fn wrapper(&self) -> Vec<OsString> {
        let mut script = String::new();
        for name in ["passwd", "group", "shadow"] {
            script += &format!(
                "mount --bind '{}' /etc/{name} && ",
                self.dir.join(name).display()
            );
        }
        script += "exec \"$0\" \"$@\"";
        [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            &script,
        ]
        .map(OsString::from)
        .to_vec()
    }
}

fn read(name: &str) -> Result<String> {
    let path = Path::new("/etc").join(name);
    let mut content = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    if !content.is_empty() && !content.ends_with('\n') {
        content.push('\n');
    }
    Ok(content)
}
