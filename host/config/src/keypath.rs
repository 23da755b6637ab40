//! Where a value stands in the configuration: `services`, `ssh`, `resources`, 0, `name`.

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Seg {
    Key(String),
    Index(usize),
}

impl From<&str> for Seg {
    fn from(key: &str) -> Self {
        Seg::Key(key.to_owned())
    }
}

impl From<&String> for Seg {
    fn from(key: &String) -> Self {
        Seg::Key(key.clone())
    }
}

impl From<usize> for Seg {
    fn from(index: usize) -> Self {
        Seg::Index(index)
    }
}

/// The steps from the top of the file.
pub(crate) type KeyPath = Vec<Seg>;

/// `at!["services", name, "resources", 0]`
macro_rules! at {
    ($($seg:expr),* $(,)?) => { vec![$($crate::keypath::Seg::from($seg)),*] };
}
pub(crate) use at;

/// The table that `path` names, as TOML writes it: ` in [services.ssh]`, ` in [[services.ssh.resources]]`,
/// and nothing for the top of the file.
pub(crate) fn in_table(path: &[Seg]) -> String {
    match path.last() {
        None => String::new(),
        Some(Seg::Index(_)) => format!(" in [[{}]]", dotted(path)),
        Some(Seg::Key(_)) => format!(" in [{}]", dotted(path)),
    }
}

/// `key "name" in [table]`
pub(crate) fn key(path: &[Seg]) -> String {
    // An element of a list is spoken of by the list's key.
    let end = path.iter().rposition(|seg| matches!(seg, Seg::Key(_)));
    let Some((Seg::Key(last), table)) = end.and_then(|end| path[..=end].split_last()) else {
        return "the file".to_owned();
    };
    format!("key {last:?}{}", in_table(table))
}

fn dotted(path: &[Seg]) -> String {
    let keys = path.iter().filter_map(|seg| match seg {
        Seg::Key(key) => Some(key),
        Seg::Index(_) => None,
    });
    let quoted = keys.map(|key| {
        let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if !key.is_empty() && key.chars().all(bare) {
            key.clone()
        } else {
            format!("{key:?}")
        }
    });
    quoted.collect::<Vec<_>>().join(".")
}
