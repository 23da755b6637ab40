//! `docs/configuration.md` is what the types say. `UPDATE=1` writes it anew.
#![allow(clippy::unwrap_used)]

use std::path::Path;

#[test]
fn the_manual_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let made = postern_config::reference();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == made,
        "docs/configuration.md is out of date; run: UPDATE=1 cargo test -p postern-config --test reference"
    );
}

/// The examples in the manual are read as any configuration is.
#[test]
fn the_examples_are_valid() {
    let manual = postern_config::reference();
    let examples: Vec<&str> = manual
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(!examples.is_empty());
    for example in examples {
        postern_config::parse(example, Path::new("/etc/postern/postern.toml")).unwrap();
    }
}

/// Every key is explained, and the defaults that the manual shows are those of the types.
#[test]
fn nothing_is_left_unexplained() {
    let manual = postern_config::reference();
    for row in manual.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        assert!(cells.last().is_some_and(|text| text.len() > 5), "{row}");
    }
    for row in [
        "| `data_dir` | path | `\"/var/lib/postern\"` |",
        "| `cert_ttl` | duration | `\"1day\"` |",
        "| `transport` | `\"auto\"`, `\"ssh\"`, `\"tls\"` | `\"auto\"` |",
        "| `memory_mb` | 1 to 4096 | `32` |",
        "| `public_addr` | `host:port` | (required) |",
    ] {
        assert!(manual.contains(row), "{row}\n{manual}");
    }
}
