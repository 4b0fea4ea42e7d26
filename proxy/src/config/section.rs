//! A small typed reader over the spanned TOML tree: takes the keys of one table, notes what is wrong with them, and knows
//! which keys are left over.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

use super::mistake::Span;
use super::report::Report;
use super::value::{Value, shortened};

/// One table while it is read.
#[derive(Debug)]
pub(super) struct Section<'a> {
    report: &'a Report,
    /// `listeners.web`; empty for the root.
    path: String,
    /// Its header, or where it was written.
    span: Span,
    entries: BTreeMap<&'a str, Entry<'a>>,
    known: Vec<&'static str>,
}

/// A key as written, and what was given for it.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a str,
    pub(super) key: Span,
    pub(super) value: Value<'a>,
}

impl<'a> Section<'a> {
    pub(super) fn new(report: &'a Report, path: String, span: Span, table: &'a DeTable<'a>) -> Self {
        let entry = |name: &'a str, key: Span, node: &'a DeValue<'a>, span: Span| {
            let path = if path.is_empty() { shortened(name) } else { format!("{path}.{}", shortened(name)) };
            (name, Entry { name, key, value: Value { report, path, span, node } })
        };
        let entries = table.iter().map(|(key, value)| entry(key.get_ref(), key.span(), value.get_ref(), value.span()));
        let entries = entries.collect();
        Self { report, path, span, entries, known: Vec::new() }
    }

    /// A table inside this one; an empty one if it is not there or no table.
    pub(super) fn child(&mut self, key: &'static str) -> Self {
        self.take(key, |value| value.section("a table")).unwrap_or_else(|| Self {
            report: self.report,
            path: key.to_owned(),
            span: self.span.clone(),
            entries: BTreeMap::new(),
            known: Vec::new(),
        })
    }

    /// Where the value of `key` stands, if it is there.
    pub(super) fn place(&self, key: &str) -> Option<Span> {
        self.entries.get(key).map(|entry| entry.value.span.clone())
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn report(&self) -> &'a Report {
        self.report
    }

    /// `None` if the key is not there, or not as `read` wants it; then `read` has said so.
    pub(super) fn take<T>(&mut self, key: &'static str, read: impl FnOnce(&Value<'a>) -> Option<T>) -> Option<T> {
        self.entry(key).and_then(|entry| read(&entry.value))
    }

    /// As [`Self::take`], with a value for both cases of `None`.
    pub(super) fn take_or<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&Value<'a>) -> Option<T>,
    ) -> T {
        self.take(key, read).unwrap_or(default)
    }

    /// As [`Self::take`]; it is a mistake to leave the key out. `example` is a line to write.
    pub(super) fn require<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl FnOnce(&Value<'a>) -> Option<T>,
    ) -> Option<T> {
        if let Some(entry) = self.entry(key) {
            return read(&entry.value);
        }
        if !self.report.is_garbled() {
            let title = format!("`{}` has no `{key}`", self.path);
            self.report.add(self.report.error(&self.span, title).help(format!("add `{example}`")));
        }
        None
    }

    /// The key, its place, its value; for what depends on the presence of a key.
    pub(super) fn entry(&mut self, key: &'static str) -> Option<Entry<'a>> {
        self.known.push(key);
        self.entries.remove(key)
    }

    /// All that is left, for tables whose keys are names.
    pub(super) fn rest(&mut self) -> Vec<Entry<'a>> {
        std::mem::take(&mut self.entries).into_values().collect()
    }

    /// What was not taken is unknown, or comes in `later` versions.
    pub(super) fn finish(self, later: &[&'static str]) {
        for entry in self.entries.values() {
            let mistake = if later.contains(&entry.name) {
                self.report.error(&entry.key, format!("`{}` is not available in this version", entry.value.path))
            } else {
                self.unknown(entry, later)
            };
            self.report.add(mistake);
        }
    }

    fn unknown(&self, entry: &Entry<'a>, later: &[&'static str]) -> super::Mistake {
        let name = shortened(entry.name);
        let table = if self.path.is_empty() { "the file".to_owned() } else { format!("`{}`", self.path) };
        let near = nearest(entry.name, self.known.iter().chain(later).copied());
        let title = match near {
            Some(near) => format!("unknown key `{name}` in {table}; did you mean `{near}`?"),
            None => format!("unknown key `{name}` in {table}"),
        };
        let mut known = self.known.clone();
        known.sort_unstable();
        let mistake = self.report.error(&entry.key, title);
        if near.is_some() { mistake } else { mistake.help(format!("its keys are {}", known.join(", "))) }
    }
}

/// Longer words are no slips of a keyboard, and comparing them takes long.
const LONGEST_SLIP: usize = 64;

/// The candidate that was probably meant: at most a third of its letters wrong.
pub(super) fn nearest<'c>(word: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    if word.len() > LONGEST_SLIP {
        return None;
    }
    let word = word.to_lowercase();
    let distances = candidates.map(|candidate| (strsim::osa_distance(&word, candidate), candidate));
    let near = distances.filter(|(distance, candidate)| *distance <= (candidate.len() / 3).max(1));
    near.min().map(|(_, candidate)| candidate)
}
