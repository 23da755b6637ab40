//! Reading: the file and the `conf.d/*.toml` beside it become one [`Config`], or a list of
//! errors with their places.

use crate::{
    Address, Agent, Config, ConfigError, Diagnostic, JoinParams, UpstreamAuth,
    keypath::{KeyPath, at},
    shape::{self, Finding, Place, Walk},
    validate,
};
use serde::Deserialize;
use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};
use zeroize::Zeroizing;

/// Nobody writes this much by hand: a larger file is the wrong one.
const MAX_FILE: u64 = 4 << 20;

/// One file as read. Wiped when dropped, for it may hold tokens.
struct Source {
    path: PathBuf,
    text: Zeroizing<String>,
}

/// Reads `path` and `conf.d/*.toml` beside it (sorted by name; hidden files are passed over). Relative
/// paths in a file are relative to that file.
///
/// # Errors
/// Everything that is wrong, in all files, each with its place.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let files = sources(path)?;
    let mut texts = Vec::with_capacity(files.len());
    let mut diagnostics = Vec::new();
    for file in files {
        match read(&file) {
            Ok(text) => texts.push(Source { path: file, text }),
            Err(message) => diagnostics.push(Diagnostic {
                file,
                place: None,
                message,
            }),
        }
    }
    if diagnostics.is_empty() {
        build(&texts)
    } else {
        Err(ConfigError { diagnostics })
    }
}

/// Reads one text as if it stood in the file `origin`, without a `conf.d`.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str, origin: &Path) -> Result<Config, ConfigError> {
    build(&[Source {
        path: origin.into(),
        text: Zeroizing::new(text.to_owned()),
    }])
}

/// The files that [`load`] reads, `path` first.
///
/// # Errors
/// Where `conf.d` exists but can't be listed.
pub fn sources(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let dir = path.parent().unwrap_or(Path::new("")).join("conf.d");
    let mut files = Vec::new();
    let listed = std::fs::read_dir(&dir).and_then(|entries| {
        for entry in entries {
            let file = entry?.path();
            let hidden = file
                .file_name()
                .is_none_or(|n| n.as_encoded_bytes().starts_with(b"."));
            if !hidden && file.extension().is_some_and(|e| e == "toml") {
                files.push(file);
            }
        }
        Ok(())
    });
    match listed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(ConfigError::one(dir, format!("cannot be listed: {e}")));
        }
        _ => {}
    }
    files.sort();
    files.insert(0, path.to_owned());
    Ok(files)
}

fn read(path: &Path) -> Result<Zeroizing<String>, String> {
    // With room for the whole file at once: a growing buffer leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::new());
    File::open(path)
        .and_then(|file| {
            let size = file.metadata()?.len().min(MAX_FILE);
            bytes.reserve_exact(usize::try_from(size).unwrap_or(0) + 1);
            file.take(MAX_FILE + 1).read_to_end(&mut bytes)
        })
        .map_err(|e| format!("cannot be read: {e}"))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err("is larger than 4 MiB, so this is no configuration".into());
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(e) => Err(format!("is not UTF-8 text (byte {})", e.valid_up_to())),
    }
}

fn build(sources: &[Source]) -> Result<Config, ConfigError> {
    let schema = shape::schema();
    let mut walk = Walk::default();
    let mut whole = DeTable::new();
    let mut complete = true;
    for file in 0..sources.len() {
        complete &= add_file(&mut whole, sources, file, &schema, &mut walk);
    }
    walk.broken |= !complete;
    // What seems missing may be in a file that could not be understood, or misspelt.
    if complete && !walk.misspelt.contains(&KeyPath::new()) {
        let place = Place { file: 0, offset: 0 };
        for message in shape::missing_at_top(&schema, |key| whole.contains_key(key)) {
            walk.findings.push(Finding { place, message });
        }
    }
    if walk.broken {
        return Err(located(walk.findings, sources));
    }
    let deserializer = toml::Deserializer::from(Spanned::new(0..0, whole));
    let mut config = match Config::deserialize(deserializer) {
        Ok(config) => config,
        Err(error) => {
            // A key at the top is missing or misspelt; or the walk let pass what serde does not.
            if walk.findings.is_empty() {
                let message = error.message().to_owned();
                walk.findings.push(Finding {
                    place: Place { file: 0, offset: 0 },
                    message,
                });
            }
            return Err(located(walk.findings, sources));
        }
    };
    resolve_paths(&mut config, &walk, sources);
    if config.diag.listen.is_empty() {
        let socket = config.data_dir.join("posternd.sock");
        config.diag.listen = format!("unix:{}", socket.display());
    }
    for problem in validate::validate(&config) {
        if problem.missing && walk.misspelt.contains(&problem.at) {
            continue; // most likely it is there, misspelt
        }
        let place = place_of(&walk, &problem.at);
        walk.findings.push(Finding {
            place,
            message: problem.message,
        });
    }
    if !walk.findings.is_empty() {
        return Err(located(walk.findings, sources));
    }
    default_agent(&mut config);
    Ok(config)
}

/// Parses, checks and merges one file; `false` where it can't be understood at all.
fn add_file<'s>(
    whole: &mut DeTable<'s>,
    sources: &'s [Source],
    file: usize,
    schema: &serde_json::Value,
    walk: &mut Walk,
) -> bool {
    let Some(source) = sources.get(file) else {
        return false;
    };
    let (parsed, errors) = DeTable::parse_recoverable(&source.text);
    for error in &errors {
        // Never toml's own rendering: it quotes the line, which may hold a token.
        let offset = error.span().map_or(0, |span| span.start);
        let message = format!("not valid TOML: {}", error.message().trim());
        walk.findings.push(Finding {
            place: Place { file, offset },
            message,
        });
    }
    if !errors.is_empty() {
        return false;
    }
    let mut table = parsed.into_inner();
    let version = table.get("version").and_then(|v| integer(v.get_ref()));
    if let Some(version) = version.filter(|v| *v != 1) {
        // The keys of another version would only give misleading errors.
        let offset = table
            .get_key_value("version")
            .map_or(0, |(key, _)| key.span().start);
        let message = format!(
            "version {version} of the configuration is not understood by this posternd; it reads version 1"
        );
        walk.findings.push(Finding {
            place: Place { file, offset },
            message,
        });
        return false;
    }
    // Before the walk, while the places are those of earlier files.
    let again = find_again(&table, file, sources, walk);
    shape::walk(&mut table, schema, file, walk);
    merge(whole, table, &again);
    true
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    let number = value.as_integer()?;
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

/// What an earlier file already has: reported, and returned so that it is not merged.
fn find_again(
    table: &DeTable<'_>,
    file: usize,
    sources: &[Source],
    walk: &mut Walk,
) -> Vec<KeyPath> {
    let mut again = Vec::new();
    let mut check = |path: KeyPath, what: String, offset: usize| {
        let Some(first) = walk.places.get(&path).filter(|_| file > 0) else {
            return;
        };
        let first = locate(first, sources);
        let message = format!(
            "{what} is already in {}:{}:{}",
            first.0.display(),
            first.1.0,
            first.1.1
        );
        walk.findings.push(Finding {
            place: Place { file, offset },
            message,
        });
        again.push(path);
    };
    for (key, value) in table {
        let name = key.get_ref().as_ref();
        let offset = key.span().start;
        match value.get_ref() {
            DeValue::Table(services) if name == "services" => {
                for service in services.keys() {
                    let name = service.get_ref().as_ref();
                    check(
                        at!["services", name],
                        format!("service {name:?}"),
                        service.span().start,
                    );
                }
            }
            DeValue::Table(_) => check(at![name], format!("[{name}]"), offset),
            _ if name == "version" => {}
            _ => check(at![name], format!("key {name:?}"), offset),
        }
    }
    again
}

fn merge<'s>(whole: &mut DeTable<'s>, table: DeTable<'s>, again: &[KeyPath]) {
    for (key, value) in table {
        if again.contains(&at![key.get_ref().as_ref()]) {
            continue;
        }
        match (
            whole.get_mut(key.get_ref().as_ref()).map(Spanned::get_mut),
            value,
        ) {
            (Some(DeValue::Table(services)), value) if key.get_ref() == "services" => {
                if let DeValue::Table(more) = value.into_inner() {
                    let new = more.into_iter().filter(|(name, _)| {
                        !again.contains(&at!["services", name.get_ref().as_ref()])
                    });
                    services.extend(new);
                }
            }
            (Some(_), _) => {} // `version`, which every file may have
            (None, value) => {
                whole.insert(key, value);
            }
        }
    }
}

/// An agent beside its proxy dials that proxy. `posternd` replaces port 0 by the port it got.
fn default_agent(config: &mut Config) {
    let Some(proxy) = &config.proxy else { return };
    let Ok(local) = proxy.listen.parse::<Address>() else {
        return;
    };
    if config.agent.is_none() && !config.services.is_empty() {
        config.agent = Some(Agent::default());
    }
    if let Some(agent) = config.agent.as_mut().filter(|agent| agent.proxy.is_empty()) {
        agent.proxy = local.dialable().to_string();
    }
}

/// A relative path is relative to the file it stands in.
fn resolve_paths(config: &mut Config, walk: &Walk, sources: &[Source]) {
    let dir_of = |path: KeyPath| {
        let file = walk.places.get(&path).map_or(0, |place| place.file);
        let parent = sources.get(file).and_then(|source| source.path.parent());
        parent.unwrap_or(Path::new("")).to_owned()
    };
    let fix = |value: &mut PathBuf, path: KeyPath| {
        if value.is_relative() && !value.as_os_str().is_empty() {
            *value = dir_of(path).join(&*value);
        }
    };
    let fix_join = |join: &mut Option<JoinParams>, path: KeyPath| {
        for (key, file) in join.iter_mut().flat_map(JoinParams::files_mut) {
            let mut path = path.clone();
            path.push(key.into());
            fix(file, path);
        }
    };
    if walk.places.contains_key(&at!["data_dir"]) {
        fix(&mut config.data_dir, at!["data_dir"]);
    }
    if let Some(proxy) = &mut config.proxy {
        if let Some(tls) = &mut proxy.tls {
            fix(&mut tls.cert_file, at!["proxy", "tls", "cert_file"]);
            fix(&mut tls.key_file, at!["proxy", "tls", "key_file"]);
        }
        fix_join(&mut proxy.join_params, at!["proxy", "join_params"]);
    }
    if let Some(agent) = &mut config.agent {
        if let Some(dir) = &mut agent.plugin_dir {
            fix(dir, at!["agent", "plugin_dir"]);
        }
        fix_join(&mut agent.join_params, at!["agent", "join_params"]);
    }
    for (name, service) in &mut config.services {
        if service.plugin_is_path() {
            let mut plugin = PathBuf::from(&service.plugin);
            fix(&mut plugin, at!["services", name, "plugin"]);
            service.plugin = plugin.to_string_lossy().into_owned();
        }
        fix_join(
            &mut service.join_params,
            at!["services", name, "join_params"],
        );
        for (n, resource) in service.resources.iter_mut().enumerate() {
            let path = |key: &str| at!["services", name, "resources", n, key];
            if let Some(file) = resource.tls.as_mut().and_then(|tls| tls.ca_file.as_mut()) {
                fix(file, path("tls"));
            }
            if let Some(UpstreamAuth::Password { passwords }) = &mut resource.auth {
                for file in passwords.values_mut().filter_map(|s| s.file.as_mut()) {
                    fix(file, path("auth"));
                }
            }
            if let Some(file) = resource
                .admin
                .as_mut()
                .and_then(|a| a.password.file.as_mut())
            {
                fix(file, path("admin"));
            }
        }
    }
}

/// The place of the value, or of the nearest table around it that is in a file.
fn place_of(walk: &Walk, path: &KeyPath) -> Place {
    let mut path = path.as_slice();
    loop {
        if let Some(place) = walk.places.get(path) {
            return *place;
        }
        match path.split_last() {
            Some((_, rest)) => path = rest,
            None => return Place { file: 0, offset: 0 },
        }
    }
}

fn locate(place: &Place, sources: &[Source]) -> (PathBuf, (usize, usize)) {
    let Some(source) = sources.get(place.file) else {
        return (PathBuf::new(), (1, 1));
    };
    let before = source.text.get(..place.offset).unwrap_or(&source.text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (source.path.clone(), (line, column))
}

/// In the order of files and of lines, each once.
fn located(mut findings: Vec<Finding>, sources: &[Source]) -> ConfigError {
    findings.sort_by(|a, b| {
        let order = |f: &Finding| (f.place.file, f.place.offset);
        order(a)
            .cmp(&order(b))
            .then_with(|| a.message.cmp(&b.message))
    });
    findings.dedup_by(|a, b| a.place == b.place && a.message == b.message);
    let diagnostics = findings.into_iter().map(|finding| {
        let (file, place) = locate(&finding.place, sources);
        Diagnostic {
            file,
            place: Some(place),
            message: finding.message,
        }
    });
    ConfigError {
        diagnostics: diagnostics.collect(),
    }
}

#[cfg(test)]
mod tests;
