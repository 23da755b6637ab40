//! Is this a plugin, for which world, and does it describe itself in a way that we can use? Nothing here runs a guest.

use crate::error::Cause;
use crate::types::{Description, Wants, World};

/// Our package in `wit/`.
pub(crate) const PACKAGE: &str = "postern:plugin/";
pub(crate) const VERSION: &str = "0.1.0";

/// The first eight bytes tell modules and components apart.
pub(crate) fn check_header(file: &str, bytes: &[u8]) -> Result<(), Cause> {
    let why = match bytes {
        [] => "it is empty",
        [0, b'a', b's', b'm', 0x0d, 0, 1, 0, ..] => return Ok(()),
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => {
            "it is a core module; build it with --target wasm32-wasip2 (not wasip1 or unknown-unknown)"
        }
        [0, b'a', b's', b'm', ..] => {
            "it is WebAssembly of a version that this host does not know; update posternd, or build it with older tools"
        }
        [0x7f, b'E', b'L', b'F', ..] => {
            "it is machine code (a .cwasm or a program); install the .wasm"
        }
        [b'(', ..] => "it is WebAssembly text; install the binary .wasm",
        _ => "it does not begin like one; the file is damaged or something else",
    };
    Err(Cause::NotAComponent {
        file: file.into(),
        why: why.into(),
    })
}

/// Which world the exports belong to.
pub(crate) fn which_world(file: &str, exports: &[String]) -> Result<World, Cause> {
    let has = |what: &str| {
        exports
            .iter()
            .any(|e| *e == format!("{PACKAGE}{what}@{VERSION}"))
    };
    let other_version = exports
        .iter()
        .filter_map(|e| e.strip_prefix(PACKAGE)?.split_once('@'))
        .find(|(_, v)| *v != VERSION);
    if let (Some((what, v)), false) = (other_version, has("manifest")) {
        return Err(Cause::WrongWorld {
            file: file.into(),
            why: format!(
                "was built for {PACKAGE}{what}@{v}, this host runs {VERSION}: rebuild it, or use a posternd of its time"
            ),
        });
    }
    let missing = |what: &str, help: &str| Cause::MissingExport {
        file: file.into(),
        export: format!("the export {PACKAGE}{what}@{VERSION}"),
        help: help.into(),
    };
    if !has("manifest") {
        return Err(missing(
            "manifest",
            "it is a component, but no Postern plugin (a plugin calls export_codec! or export_ssh!, see docs/plugins.md)",
        ));
    }
    match (
        has("codec-service"),
        has("ssh-service"),
        has("http-service"),
    ) {
        (true, false, false) => Ok(World::Codec),
        (false, true, false) => Ok(World::Ssh),
        (false, false, true) => Err(Cause::WrongWorld {
            file: file.into(),
            why: "implements world `http`, which this version of posternd does not run yet".into(),
        }),
        (false, false, false) => Err(missing(
            "codec-service or ssh-service",
            "it says who it is, but serves nothing; build it for world `codec` or `ssh`",
        )),
        _ => Err(Cause::WrongWorld {
            file: file.into(),
            why: "implements several worlds; a plugin implements one".into(),
        }),
    }
}

/// Before it was asked.
pub(crate) fn unknown(world: World) -> Description {
    Description {
        world,
        kind: String::new(),
        protocol: String::new(),
        version: String::new(),
        summary: String::new(),
        principals: vec![],
        settings_schema: String::new(),
        wants: Wants::default(),
    }
}

/// Kinds that mean something else in names and ports.
const RESERVED: [&str; 3] = ["auth", "proxy", "web"];

pub(crate) fn check_description(d: &Description) -> Result<(), String> {
    let label = |s: &str| {
        (1..=63).contains(&s.len())
            && s.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !s.starts_with('-')
            && !s.ends_with('-')
    };
    if !label(&d.kind) {
        return Err(format!(
            "kind {:?} is not a DNS label (a-z, 0-9, -, at most 63)",
            d.kind
        ));
    }
    if RESERVED.contains(&d.kind.as_str()) {
        return Err(format!("kind {:?} is reserved", d.kind));
    }
    let plain =
        |s: &str, max: usize| !s.is_empty() && s.len() <= max && !s.chars().any(char::is_control);
    if !plain(&d.version, 64) {
        return Err("its version is empty, longer than 64 bytes or not plain text".into());
    }
    for p in &d.principals {
        if p.name == "labels"
            || p.name.is_empty()
            || !p
                .name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        {
            return Err(format!(
                "principal {:?} is not a name of a-z, 0-9, _ (nor `labels`)",
                p.name
            ));
        }
    }
    if serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&d.settings_schema)
        .is_err()
    {
        return Err("its settings-schema is not a JSON object".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worlds_are_told_by_exports() {
        let e = |names: &[&str]| {
            names
                .iter()
                .map(|n| format!("postern:plugin/{n}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            which_world("f", &e(&["manifest@0.1.0", "ssh-service@0.1.0"])).unwrap(),
            World::Ssh
        );
        let cases: [(&[&str], &str); 5] = [
            (&[], "no Postern plugin"),
            (&["manifest@0.1.0"], "serves nothing"),
            (
                &["manifest@0.2.0", "codec-service@0.2.0"],
                "was built for postern:plugin/manifest@0.2.0",
            ),
            (
                &["manifest@0.1.0", "http-service@0.1.0"],
                "does not run yet",
            ),
            (
                &["manifest@0.1.0", "ssh-service@0.1.0", "codec-service@0.1.0"],
                "several worlds",
            ),
        ];
        for (names, expected) in cases {
            let said = which_world("f.wasm", &e(names)).unwrap_err().to_string();
            assert!(
                said.starts_with("f.wasm") && said.contains(expected),
                "{said}"
            );
        }
    }

    #[test]
    fn descriptions_are_checked() {
        let good = Description {
            kind: "tcp".into(),
            version: "1".into(),
            settings_schema: "{}".into(),
            ..unknown(World::Codec)
        };
        assert!(check_description(&good).is_ok());
        for kind in ["", "auth", "Tcp", "a.b", "-x"] {
            assert!(
                check_description(&Description {
                    kind: kind.into(),
                    ..good.clone()
                })
                .is_err(),
                "{kind}"
            );
        }
        assert!(
            check_description(&Description {
                version: "1\n2".into(),
                ..good.clone()
            })
            .is_err()
        );
        assert!(
            check_description(&Description {
                settings_schema: "[]".into(),
                ..good.clone()
            })
            .is_err()
        );
        let p = crate::types::Principal {
            name: "labels".into(),
            help: String::new(),
        };
        assert!(
            check_description(&Description {
                principals: vec![p],
                ..good
            })
            .is_err()
        );
    }
}
