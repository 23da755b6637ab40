//! The SQL of prepared statements, so that a query event can tell what a Bind runs. Bounded: what was not used for longest is
//! forgotten.

use crate::audit::Sql;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Bytes of one session's statements.
const MOST: usize = 1 << 20;
/// What an entry takes beside its texts, about.
const ENTRY: usize = 128;

#[derive(Debug, Default)]
pub struct Statements {
    by_name: BTreeMap<Box<[u8]>, Entry>,
    bytes: usize,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    sql: Rc<Sql>,
    /// What else the name may stand for: the last of what the server has skipped, as it seems.
    other: Option<Rc<Sql>>,
    /// The name may stand for something else by now.
    doubt: bool,
    used: u64,
}

impl Entry {
    fn size(&self, name: &[u8]) -> usize {
        let other = self.other.as_ref().map_or(0, |s| s.cut.json.len());
        name.len() + self.sql.cut.json.len() + other + ENTRY
    }
}

impl Statements {
    pub fn put(&mut self, name: Box<[u8]>, sql: Rc<Sql>, doubt: bool) {
        self.put_entry(name, sql, None, doubt);
    }

    /// A Parse of this name seems to be skipped: the name stands for what it stood for, most likely.
    pub fn doubt(&mut self, name: &[u8], skipped: Rc<Sql>) {
        match self.by_name.get(name).map(|e| e.sql.clone()) {
            Some(sql) => self.put_entry(name.into(), sql, Some(skipped), true),
            None => self.put_entry(name.into(), skipped, None, true),
        }
    }

    fn put_entry(&mut self, name: Box<[u8]>, sql: Rc<Sql>, other: Option<Rc<Sql>>, doubt: bool) {
        self.remove(&name);
        self.clock += 1;
        let entry = Entry {
            sql,
            other,
            doubt,
            used: self.clock,
        };
        self.bytes += entry.size(&name);
        self.by_name.insert(name, entry);
        if self.bytes > MOST {
            self.forget();
        }
    }

    /// The SQL, what else it may be, and whether it is in doubt.
    pub fn get(&mut self, name: &[u8]) -> Option<(Rc<Sql>, Option<Rc<Sql>>, bool)> {
        let entry = self.by_name.get_mut(name)?;
        self.clock += 1;
        entry.used = self.clock;
        Some((entry.sql.clone(), entry.other.clone(), entry.doubt))
    }

    pub fn remove(&mut self, name: &[u8]) {
        if let Some(entry) = self.by_name.remove(name) {
            self.bytes -= entry.size(name);
        }
    }

    pub fn clear(&mut self) {
        *self = Statements::default();
    }

    /// Something may have changed what the names stand for.
    pub fn doubt_all(&mut self) {
        for entry in self.by_name.values_mut() {
            entry.doubt = true;
        }
    }

    /// A quarter at once, so that it is rarely done.
    fn forget(&mut self) {
        let mut by_age: Vec<_> = self
            .by_name
            .iter()
            .map(|(n, e)| (e.used, n.clone()))
            .collect();
        by_age.sort_unstable();
        for (_, name) in by_age {
            if self.bytes <= MOST / 4 * 3 {
                break;
            }
            self.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sql(text: &str) -> Rc<Sql> {
        crate::audit::sql(text.as_bytes(), text.len())
    }

    fn known(s: &mut Statements, name: &[u8]) -> Option<(String, bool)> {
        s.get(name)
            .map(|(sql, _, doubt)| (sql.cut.json.clone(), doubt))
    }

    #[test]
    fn what_was_not_used_for_longest_is_forgotten() {
        let mut s = Statements::default();
        let name = |i: usize| format!("s{i}").into_bytes();
        for i in 0..2000 {
            s.put(name(i).into(), sql(&"x".repeat(1000)), false);
            assert!(s.get(b"s0").is_some(), "{i}");
            assert!(s.bytes <= MOST + 2000);
        }
        assert!(s.get(b"s1").is_none() && s.get(b"s1999").is_some());
        let kept: usize = s.by_name.iter().map(|(n, e)| e.size(n)).sum();
        assert_eq!(kept, s.bytes);
        s.clear();
        assert!(s.get(b"s0").is_none() && s.bytes == 0);
    }

    #[test]
    fn doubt_ends_when_it_is_prepared_anew() {
        let mut s = Statements::default();
        s.put(b"a"[..].into(), sql("1"), false);
        s.doubt_all();
        assert_eq!(known(&mut s, b"a"), Some(("\"1\"".into(), true)));
        s.put(b"a"[..].into(), sql("2"), false);
        assert_eq!(known(&mut s, b"a"), Some(("\"2\"".into(), false)));
        s.remove(b"a");
        assert_eq!((known(&mut s, b"a"), s.bytes), (None, 0));
    }

    #[test]
    fn what_seems_to_be_skipped_stands_beside() {
        let mut s = Statements::default();
        s.doubt(b"a", sql("1"));
        assert_eq!(known(&mut s, b"a"), Some(("\"1\"".into(), true)));
        s.put(b"a"[..].into(), sql("2"), false);
        for skipped in ["3", "44"] {
            s.doubt(b"a", sql(skipped));
            let (is, other, doubt) = s.get(b"a").unwrap();
            assert_eq!(is.cut.json, "\"2\"");
            assert_eq!(other.unwrap().cut.json, format!("\"{skipped}\""));
            assert!(doubt);
        }
        s.remove(b"a");
        assert_eq!(s.bytes, 0);
    }
}
