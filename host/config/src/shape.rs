//! Unknown keys, missing keys and wrong types, found by walking the parsed file along the
//! JSON schema of [`Config`](crate::Config), so that the types alone say what is valid.
//!
//! serde would stop at the first of them and know neither the section nor the nearest key.

use crate::keypath::{KeyPath, Seg, in_table, key};
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};
use toml::de::{DeTable, DeValue};

/// A byte of one of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub file: usize,
    pub offset: usize,
}

/// What is wrong, before it is turned into line and column.
#[derive(Debug)]
pub(crate) struct Finding {
    pub place: Place,
    pub message: String,
}

/// What the walk over all files found.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    /// Where each value (by its key) stands; the first of duplicates.
    pub places: BTreeMap<KeyPath, Place>,
    pub findings: Vec<Finding>,
    /// Tables with a mistyped key: what is missing there is not worth a second error.
    pub misspelt: BTreeSet<KeyPath>,
    /// A value has the wrong type or is missing, so the types can't be built.
    pub broken: bool,
}

/// The schema of the whole file.
pub(crate) fn schema() -> Json {
    schemars::schema_for!(crate::Config).to_value()
}

/// One schema, with references and `Option` resolved.
pub(crate) fn resolve<'s>(root: &'s Json, mut schema: &'s Json) -> &'s Json {
    loop {
        if let Some(pointer) = schema["$ref"].as_str().and_then(|r| r.strip_prefix('#')) {
            schema = root.pointer(pointer).unwrap_or(&Json::Null);
        } else if let Some(some) = schema["anyOf"]
            .as_array()
            .and_then(|any| any.iter().find(|one| one["type"] != "null"))
        {
            schema = some;
        } else {
            return schema;
        }
    }
}

/// The JSON type that a schema asks for; `None` where anything goes.
pub(crate) fn type_of(schema: &Json) -> Option<&str> {
    match &schema["type"] {
        Json::String(name) => Some(name),
        Json::Array(names) => names
            .iter()
            .filter_map(Json::as_str)
            .find(|name| *name != "null"),
        _ => None,
    }
}

/// The words that an enumeration allows; empty for everything else.
pub(crate) fn words(schema: &Json) -> Vec<&str> {
    let listed = schema["enum"].as_array().into_iter().flatten();
    let documented = schema["oneOf"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| &one["const"]);
    listed.chain(documented).filter_map(Json::as_str).collect()
}

/// Walks one file. Unknown keys are reported and removed; `top_level` says whether keys that are
/// missing at the top are (they may be in another file).
pub(crate) fn walk(table: &mut DeTable<'_>, root: &Json, file: usize, out: &mut Walk) {
    let mut walker = Walker {
        root,
        file,
        out,
        path: Vec::new(),
    };
    walker.table(table, root, Place { file, offset: 0 });
}

/// Keys that the file as a whole must have.
pub(crate) fn missing_at_top(root: &Json, has: impl Fn(&str) -> bool) -> Vec<String> {
    required(root)
        .filter(|key| !has(key))
        .map(|key| format!("missing key {key:?}"))
        .collect()
}

fn required(schema: &Json) -> impl Iterator<Item = &str> {
    schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Json::as_str)
}

struct Walker<'a> {
    root: &'a Json,
    file: usize,
    out: &'a mut Walk,
    path: KeyPath,
}

impl Walker<'_> {
    fn table(&mut self, table: &mut DeTable<'_>, schema: &Json, at: Place) {
        let schema = match self.variant(table, schema, at) {
            Some(schema) => schema,
            None => return,
        };
        let properties = schema["properties"].as_object();
        let others = Some(&schema["additionalProperties"]).filter(|s| s.is_object());
        if properties.is_none() && others.is_none() {
            return; // free-form: the plugin's settings
        }
        let mut unknown = Vec::new();
        for (name, value) in table.iter_mut() {
            let place = Place {
                file: self.file,
                offset: name.span().start,
            };
            let name = name.get_ref().as_ref();
            match properties.and_then(|p| p.get(name)).or(others) {
                Some(schema) => {
                    self.path.push(Seg::from(name));
                    self.value(value.get_mut(), schema, place);
                    self.path.pop();
                }
                None => {
                    let valid = properties.into_iter().flat_map(|p| p.keys());
                    let mut hint = nearest(name, valid.map(String::as_str));
                    if hint.is_empty() {
                        hint = elsewhere(self.root, name);
                    }
                    let table = in_table(&self.path);
                    self.report(place, format!("unknown key {name:?}{table}{hint}"));
                    self.out.misspelt.insert(self.path.clone());
                    unknown.push(name.to_owned());
                }
            }
        }
        for name in &unknown {
            table.remove(name.as_str());
        }
        if self.path.is_empty() {
            return; // what the top lacks may be in another file
        }
        for name in required(schema).filter(|name| !table.contains_key(*name)) {
            if !self.out.misspelt.contains(&self.path) {
                self.report(at, format!("missing key {name:?}{}", in_table(&self.path)));
            }
            self.out.broken = true;
        }
    }

    /// For a tagged enumeration (`method = "token"`), the schema of the variant that the tag names.
    fn variant<'s>(
        &mut self,
        table: &DeTable<'_>,
        schema: &'s Json,
        at: Place,
    ) -> Option<&'s Json> {
        let Some(variants) = schema["oneOf"].as_array() else {
            return Some(schema);
        };
        let tag_of = |one: &'s Json| {
            let properties = one["properties"].as_object()?;
            properties
                .iter()
                .find_map(|(key, s)| Some((key.as_str(), s["const"].as_str()?)))
        };
        let tag = variants.iter().find_map(tag_of).map(|(key, _)| key)?;
        let known: Vec<&str> = variants
            .iter()
            .filter_map(tag_of)
            .map(|(_, word)| word)
            .collect();
        let given = table.get_key_value(tag);
        let word = given.and_then(|(_, value)| value.get_ref().as_str());
        let found = variants
            .iter()
            .find(|one| word.is_some() && tag_of(one).map(|t| t.1) == word);
        if found.is_none() {
            self.out.broken = true;
            let table = in_table(&self.path);
            let message = match word {
                Some(word) => not_one_of(&format!("key {tag:?}{table}"), word, &known),
                None => format!(
                    "missing key {tag:?}{table}; it is one of {}",
                    quoted(&known)
                ),
            };
            let at = given.map_or(at, |(key, _)| Place {
                offset: key.span().start,
                ..at
            });
            self.report(at, message);
        }
        found
    }

    fn value(&mut self, value: &mut DeValue<'_>, schema: &Json, place: Place) {
        self.out.places.entry(self.path.clone()).or_insert(place);
        let schema = resolve(self.root, schema);
        let words = words(schema);
        let want = match type_of(schema) {
            Some(want) => want,
            None if !words.is_empty() => "string",
            None if schema["oneOf"].is_array() => "object",
            None => return,
        };
        match (want, value) {
            ("object", DeValue::Table(table)) => self.table(table, schema, place),
            ("array", DeValue::Array(items)) => {
                for (n, item) in items.iter_mut().enumerate() {
                    let place = Place {
                        file: self.file,
                        offset: item.span().start,
                    };
                    self.path.push(Seg::from(n));
                    self.value(item.get_mut(), &schema["items"], place);
                    self.path.pop();
                }
            }
            ("string", DeValue::String(text)) => {
                let wrong = if !words.is_empty() && !words.contains(&text.as_ref()) {
                    Some(not_one_of(&key(&self.path), text, &words))
                } else if schema["format"] == "duration" {
                    let error = humantime::parse_duration(text).err();
                    error.map(|e| format!("{}: {text:?} is no duration ({e}); write for example \"30s\" or \"1h 30m\"", key(&self.path)))
                } else {
                    None
                };
                if let Some(message) = wrong {
                    self.out.broken = true;
                    self.report(place, message);
                }
            }
            ("integer", DeValue::Integer(number)) => {
                let min = schema["minimum"].as_i64().unwrap_or(i64::MIN);
                let max = schema["maximum"].as_i64().unwrap_or(i64::from(u32::MAX));
                let parsed = i64::from_str_radix(number.as_str(), number.radix());
                if !parsed.is_ok_and(|n| (min..=max).contains(&n)) {
                    self.out.broken = true;
                    let key = key(&self.path);
                    self.report(
                        place,
                        format!("{key} is {number}; it must be from {min} to {max}"),
                    );
                }
            }
            ("boolean", DeValue::Boolean(_))
            | ("number", DeValue::Float(_) | DeValue::Integer(_)) => {}
            (want, value) => {
                self.out.broken = true;
                let hint = match (want, &*value) {
                    ("array", DeValue::Table(_)) => {
                        let list = in_table(&[self.path.as_slice(), &[Seg::Index(0)]].concat());
                        format!("; write it as {}", list.trim_start_matches(" in "))
                    }
                    ("array", DeValue::String(_)) => "; put it in brackets: [\"…\"]".to_owned(),
                    ("string", DeValue::Integer(_)) if schema["format"] == "duration" => {
                        "; write it with its unit, for example \"30s\"".to_owned()
                    }
                    ("string", DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_)) => {
                        "; put it in quotes".to_owned()
                    }
                    _ => String::new(),
                };
                let (want, found) = (english(want), toml_type(value));
                self.report(
                    place,
                    format!("{} must be {want}, not {found}{hint}", key(&self.path)),
                );
            }
        }
    }

    fn report(&mut self, place: Place, message: String) {
        self.out.findings.push(Finding { place, message });
    }
}

fn not_one_of(key: &str, word: &str, known: &[&str]) -> String {
    let hint = nearest(word, known.iter().copied());
    format!(
        "{key} is {word:?}; it must be one of {}{hint}",
        quoted(known)
    )
}

fn quoted(words: &[&str]) -> String {
    words
        .iter()
        .map(|word| format!("{word:?}"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// `; did you mean "resources"?`, or the whole list where nothing is near and the list is short.
fn nearest<'k>(given: &str, valid: impl Iterator<Item = &'k str>) -> String {
    let lower = given.to_lowercase().replace('-', "_");
    let scored = valid.map(|key| {
        (
            strsim::damerau_levenshtein(&lower, &key.replace('-', "_")),
            key,
        )
    });
    // A third of the word may be wrong; beyond that a guess only misleads.
    let near = scored.filter(|(distance, key)| *distance <= 1 + key.len().max(given.len()) / 3);
    near.min()
        .map_or_else(String::new, |(_, key)| format!("; did you mean {key:?}?"))
}

/// `; it belongs to [[services.<name>.resources]]`, where just one other section has that key.
fn elsewhere(root: &Json, key: &str) -> String {
    fn search(root: &Json, schema: &Json, path: &str, key: &str, found: &mut Vec<String>) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            if name == key && !path.is_empty() {
                found.push(path.to_owned());
            }
            let inner = resolve(root, property);
            let path = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}.{name}")
            };
            let named = resolve(root, &inner["additionalProperties"]);
            search(root, inner, &path, key, found);
            search(root, named, &format!("{path}.<name>"), key, found);
            search(
                root,
                resolve(root, &inner["items"]),
                &format!("[{path}]"),
                key,
                found,
            );
        }
    }
    let mut found = Vec::new();
    search(root, root, "", key, &mut found);
    match found.as_slice() {
        [only] => format!("; it belongs to [{only}]"),
        _ => String::new(),
    }
}

fn english(json_type: &str) -> &'static str {
    match json_type {
        "object" => "a table",
        "array" => "a list",
        "integer" => "a whole number",
        "boolean" => "true or false",
        "number" => "a number",
        _ => "a string",
    }
}

fn toml_type(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
