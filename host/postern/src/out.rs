//! What goes to standard output: tables a person likes to read, and JSON.

use crate::failure::Failure;
use comfy_table::{ContentArrangement, Table, presets};
use std::io::Write;

/// Prints text as it is, with a newline at its end. A reader that went away (`| head`) ends the
/// command quietly.
pub fn say(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    let end = if text.is_empty() || text.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.write_all(end.as_bytes()))
        .and_then(|()| stdout.flush())
    {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => Err(Failure::new(format!(
            "cannot write to standard output: {e}"
        ))),
    }
}

/// Prints one JSON document, indented.
pub fn json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Failure::new(format!("cannot print as JSON: {e}")))?;
    say(&text)
}

/// Columns without borders, two spaces apart.
pub fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| clean(cell)).collect::<Vec<_>>());
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

/// Facts about one thing: a label and a value a line.
pub fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(k, _)| k.len()).max().unwrap_or(0);
    facts
        .iter()
        .map(|(k, v)| format!("{k:width$}  {}", clean(v)).trim_end().to_owned() + "\n")
        .collect()
}

/// Text from elsewhere, made safe for a terminal: control characters (escape sequences among
/// them) are shown, not sent.
pub fn clean(text: &str) -> String {
    if !text.chars().any(needs_escape) {
        return text.to_owned();
    }
    text.chars()
        .fold(String::with_capacity(text.len() + 8), |mut out, c| {
            if needs_escape(c) {
                out.extend(c.escape_unicode())
            } else {
                out.push(c)
            }
            out
        })
}

/// Besides control characters: marks that reorder text (Unicode bidi controls), which can make a
/// line of the audit log read as something else.
fn needs_escape(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `a, b, c`, or a dash for nothing.
pub fn list(items: &[String]) -> String {
    if items.is_empty() {
        "-".to_owned()
    } else {
        items.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_no_borders_and_no_trailing_space() {
        let text = table(
            &["KIND", "NAME", "LABELS"],
            [
                vec!["ssh".into(), "web-1".into(), "env=prod".into()],
                vec!["tcp".into(), "a-longer-name".into(), "-".into()],
            ],
        );
        assert_eq!(
            text,
            "KIND  NAME           LABELS\nssh   web-1          env=prod\ntcp   a-longer-name  -\n"
        );
    }

    #[test]
    fn facts_line_up() {
        assert_eq!(
            facts(&[("User", "alice".into()), ("Certificate", "valid".into())]),
            "User         alice\nCertificate  valid\n"
        );
    }

    #[test]
    fn escape_sequences_are_shown_not_sent() {
        assert_eq!(clean("a\u{1b}[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(clean("two\nlines"), "two\\u{a}lines");
        assert_eq!(clean("\u{202e}txt"), "\\u{202e}txt");
        assert_eq!(clean("grüße"), "grüße");
    }
}
