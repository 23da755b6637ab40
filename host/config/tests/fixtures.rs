//! What operators are told: for each bad configuration in `fixtures/` the whole text, in the `.txt` beside it.
//! `UPDATE=1` writes the texts anew, for reading in the difference.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

fn fixtures() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut paths: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir() || path.extension().is_some_and(|e| e == "toml"))
        .collect();
    paths.sort();
    paths
}

fn errors(path: &Path) -> String {
    if path.is_dir() {
        let error = postern_config::load(&path.join("postern.toml"))
            .unwrap_err()
            .to_string();
        return error.replace(&path.display().to_string(), "/etc/postern");
    }
    let text = std::fs::read_to_string(path).unwrap();
    postern_config::parse(&text, Path::new("/etc/postern/postern.toml"))
        .unwrap_err()
        .to_string()
}

#[test]
fn errors_are_worded_as_agreed() {
    let paths = fixtures();
    assert!(paths.len() > 10);
    let mut wrong = Vec::new();
    for path in paths {
        let (expected, got) = (path.with_extension("txt"), errors(&path) + "\n");
        assert!(
            !got.contains("do-not-show"),
            "{}: a token in an error:\n{got}",
            path.display()
        );
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&expected, &got).unwrap();
        }
        if std::fs::read_to_string(&expected).unwrap_or_default() != got {
            wrong.push(format!("{}:\n{got}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
