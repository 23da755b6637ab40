use super::*;

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn setup() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("state.json");
    (dir, file)
}

#[test]
fn directories_are_made_private_with_their_parents() {
    let (dir, _) = setup();
    let deep = dir.path().join("a/b");
    private_dir(&deep).unwrap();
    private_dir(&deep).unwrap();
    assert_eq!(
        (mode_of(&deep), mode_of(deep.parent().unwrap())),
        (0o700, 0o700)
    );
}

#[test]
fn loose_directories_are_refused_with_the_remedy() {
    let (dir, file) = setup();
    for mode in [0o755, 0o750, 0o701, 0o1777] {
        chmod(dir.path(), mode);
        let e = private_dir(dir.path()).unwrap_err();
        let remedy = format!("(mode {mode:04o}); run: chmod 700 {}", dir.path().display());
        assert!(e.to_string().ends_with(&remedy), "{e}");
    }
    chmod(dir.path(), 0o700);
    fs::write(&file, "").unwrap();
    let e = private_dir(&file).unwrap_err();
    assert!(e.to_string().contains("not a directory"), "{e}");
}

#[test]
fn secrets_are_private_whole_and_alone() {
    let (dir, file) = setup();
    // An older, laxer file does not pass its mode on.
    fs::write(&file, "old").unwrap();
    chmod(&file, 0o644);
    write_secret(&file, b"new").unwrap();
    assert_eq!(mode_of(&file), 0o600);
    assert_eq!(&**read_secret(&file).unwrap(), b"new");
    assert!(!create_secret(&file, b"newer").unwrap());
    assert_eq!(&**read_secret(&file).unwrap(), b"new");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn loose_files_are_refused_with_the_remedy() {
    let (_dir, file) = setup();
    write_json(&file, &1).unwrap();
    for mode in [0o640, 0o604, 0o620, 0o666] {
        chmod(&file, mode);
        let e = read_json::<u8>(&file).unwrap_err().to_string();
        assert!(
            e.contains(&format!("(mode {mode:04o}); run: chmod 600 ")),
            "{e}"
        );
    }
    chmod(&file, 0o400);
    assert_eq!(read_json::<u8>(&file).unwrap(), Some(1));
}

#[test]
fn what_belongs_to_somebody_else_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        return; // Only root can give a file away.
    }
    let (dir, file) = setup();
    write_secret(&file, b"x").unwrap();
    std::os::unix::fs::chown(&file, Some(4711), None).unwrap();
    let e = read_secret(&file).unwrap_err().to_string();
    assert!(e.contains("is owned by uid 4711, not by uid 0"), "{e}");
    std::os::unix::fs::chown(dir.path(), Some(4711), None).unwrap();
    assert!(matches!(
        private_dir(dir.path()),
        Err(StoreError::Owner { .. })
    ));
}

#[test]
fn half_written_json_is_corrupt_and_never_quoted() {
    let (_dir, file) = setup();
    let value = ("s3cret".to_owned(), 7u8);
    write_json(&file, &value).unwrap();
    assert_eq!(read_json(&file).unwrap(), Some(value));
    let whole = fs::read(&file).unwrap();
    let end = whole.len() - 1; // The line's end may be missing.
    for len in 0..end {
        fs::write(&file, &whole[..len]).unwrap();
        let e = read_json::<(String, u8)>(&file).unwrap_err();
        assert!(matches!(e, StoreError::Corrupt { .. }), "{len}: {e}");
    }
    for (content, hint) in [
        ("", "ends early"),
        ("[", "ends early"),
        ("\"s3cret\"", "another shape"),
        ("[\"x\",\"s3cret\"]", "another shape"),
        ("s3cret", "not JSON"),
        ("[\"x\",1] s3cret", "not JSON"),
    ] {
        fs::write(&file, content).unwrap();
        let e = read_json::<(String, u8)>(&file).unwrap_err().to_string();
        assert!(e.contains(hint) && e.contains("move it away"), "{e}");
        assert!(!e.contains("s3cret"), "{e}");
    }
}

#[test]
fn what_is_not_there_is_none_and_what_is_no_file_is_corrupt() {
    let (dir, file) = setup();
    assert_eq!(read_json::<u8>(&file).unwrap(), None);
    assert!(read_secret(&file).unwrap_err().is_not_found());
    assert!(matches!(
        read_secret(dir.path()),
        Err(StoreError::Corrupt { .. })
    ));
    let e = write_secret(&dir.path().join("gone/x"), b"").unwrap_err();
    assert!(
        e.to_string().contains("create a temporary file beside it"),
        "{e}"
    );
}

#[test]
fn a_failed_write_leaves_the_old_file() {
    let (dir, file) = setup();
    write_secret(&file, b"old").unwrap();
    let busy = dir.path().join("busy");
    fs::create_dir(&busy).unwrap();
    assert!(write_secret(&busy, b"new").is_err());
    assert_eq!(&**read_secret(&file).unwrap(), b"old");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}
