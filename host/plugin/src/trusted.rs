//! Files that decide what we run must be nobody else's to change: the file itself, and every directory above it, because who
//! may write a directory may exchange what is in it.

use nix::unistd::{Gid, Uid, User, geteuid};
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Checks `path` (symlinks followed) and its parents. Returns the real path. The error is (path, what is wrong and what to do).
///
/// May own them: root, this process's user, and whoever owns this program's own file (who can change that can do anything).
pub fn trusted_path(path: &Path) -> Result<PathBuf, (PathBuf, String)> {
    let trust = Trust::of_this_process();
    let real = path
        .canonicalize()
        .map_err(|e| (path.to_path_buf(), e.to_string()))?;
    for p in real.ancestors() {
        let meta = p
            .symlink_metadata()
            .map_err(|e| (p.to_path_buf(), e.to_string()))?;
        if let Err(why) = trust.check(p, &meta) {
            return Err((p.to_path_buf(), why));
        }
    }
    Ok(real)
}

pub(crate) struct Trust {
    owners: Vec<u32>,
}

impl Trust {
    pub(crate) fn of_this_process() -> Self {
        let mut owners = vec![0, geteuid().as_raw()];
        if let Ok(exe) = std::fs::metadata("/proc/self/exe") {
            owners.push(exe.uid());
        }
        Trust { owners }
    }

    pub(crate) fn check(&self, path: &Path, meta: &Metadata) -> Result<(), String> {
        let (uid, mode) = (meta.uid(), meta.mode());
        if !self.owners.contains(&uid) {
            return Err(format!(
                "belongs to {}, who could exchange it: chown root {}",
                user_name(uid),
                path.display()
            ));
        }
        // In /tmp and the like, only the owner may rename or remove an entry.
        let sticky = meta.is_dir() && mode & 0o1000 != 0;
        if mode & 0o002 != 0 && !sticky {
            return Err(format!(
                "is writable by everybody (mode {:04o}): chmod o-w {}",
                mode & 0o7777,
                path.display()
            ));
        }
        if mode & 0o020 != 0 && !sticky && !private_group(meta.gid(), uid) {
            return Err(format!(
                "is writable by its group (mode {:04o}): chmod g-w {}",
                mode & 0o7777,
                path.display()
            ));
        }
        Ok(())
    }
}

fn user_name(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(u)) => u.name,
        _ => format!("uid {uid}"),
    }
}

/// A group of the owner alone, as distributions give to each user (then umask 002 is common): it has the owner's name and no
/// other member. Root's group is as good.
fn private_group(gid: u32, uid: u32) -> bool {
    if gid == 0 {
        return true;
    }
    let (Ok(Some(user)), Ok(Some(group))) = (
        User::from_uid(Uid::from_raw(uid)),
        nix::unistd::Group::from_gid(Gid::from_raw(gid)),
    ) else {
        return false;
    };
    group.name == user.name && group.mem.iter().all(|m| *m == user.name)
}

/// Makes a directory that only we can use, or checks that it is one.
pub(crate) fn private_dir(dir: &Path) -> Result<(), String> {
    use std::os::unix::fs::DirBuilderExt;
    match std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
    {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(format!("cannot make it: {e}")),
    }
    let meta = dir.symlink_metadata().map_err(|e| e.to_string())?;
    if !meta.is_dir() {
        return Err("is not a directory".into());
    }
    if meta.uid() != geteuid().as_raw() {
        return Err(format!(
            "belongs to {}, not to this process's user",
            user_name(meta.uid())
        ));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(format!(
            "is open to others (mode {:04o}): chmod 700 {}",
            meta.mode() & 0o7777,
            dir.display()
        ));
    }
    trusted_path(dir)
        .map(drop)
        .map_err(|(p, why)| format!("{} {why}", p.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    fn chmod(p: &Path, mode: u32) {
        fs::set_permissions(p, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_file_and_all_above_it_are_looked_at() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("a/b");
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join("p.wasm");
        fs::write(&file, "x").unwrap();
        chmod(&file, 0o644);
        assert_eq!(trusted_path(&file).unwrap(), file.canonicalize().unwrap());

        chmod(&file, 0o646);
        let (p, why) = trusted_path(&file).unwrap_err();
        assert!(p.ends_with("p.wasm") && why.contains("chmod o-w"), "{why}");
        chmod(&file, 0o644);

        chmod(&tmp.path().join("a"), 0o777);
        let (p, why) = trusted_path(&file).unwrap_err();
        assert!(p.ends_with("a") && why.contains("mode 0777"), "{why}");
        chmod(&tmp.path().join("a"), 0o1777);
        assert!(trusted_path(&file).is_ok(), "sticky");
    }

    #[test]
    fn a_symlink_is_judged_by_where_it_leads() {
        let tmp = tempfile::tempdir().unwrap();
        let open = tmp.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::write(open.join("p"), "x").unwrap();
        chmod(&open, 0o777);
        let link = tmp.path().join("link");
        std::os::unix::fs::symlink(open.join("p"), &link).unwrap();
        assert!(trusted_path(&link).is_err());
    }

    #[test]
    fn private_directories() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("x/y");
        private_dir(&dir).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        private_dir(&dir).unwrap();
        chmod(&dir, 0o750);
        assert!(private_dir(&dir).unwrap_err().contains("chmod 700"));
    }
}
