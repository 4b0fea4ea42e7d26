//! One value of the file, and how it is read as what its key wants. Each reader notes what is wrong and gives `None`.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::DeValue;

use super::duration;
use super::mistake::{Mistake, Span};
use super::report::Report;
use super::section::{Section, nearest};

#[derive(Debug)]
pub(super) struct Value<'a> {
    pub(super) report: &'a Report,
    /// `listeners.web.bind`.
    pub(super) path: String,
    pub(super) span: Span,
    pub(super) node: &'a DeValue<'a>,
}

impl<'a> Value<'a> {
    /// A mistake here: `what` follows the key.
    pub(super) fn wrong(&self, what: &str) -> Mistake {
        self.report.error(&self.span, format!("`{}` {what}", self.path))
    }

    /// Notes the mistake; for `return value.refuse(..)`.
    pub(super) fn refuse<T>(&self, mistake: Mistake) -> Option<T> {
        self.report.add(mistake);
        None
    }

    fn wrong_type<T>(&self, expected: &str) -> Option<T> {
        let kind = self.node.type_str();
        let article = if kind.starts_with(['a', 'i']) { "an" } else { "a" };
        self.refuse(self.wrong(&format!("is {article} {kind}")).expected(format!("expected {expected}")))
    }

    pub(super) fn text(&self, expected: &str) -> Option<&'a str> {
        self.node.as_str().or_else(|| self.wrong_type(expected))
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        self.node.as_bool().or_else(|| self.wrong_type("true or false"))
    }

    pub(super) fn integer(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        let Some(integer) = self.node.as_integer() else { return self.wrong_type(&expected) };
        let number = i128::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number = number.and_then(|number| u64::try_from(number).ok());
        number.filter(|number| range.contains(number)).or_else(|| {
            let what = format!("is {}, which is out of range", shortened(&integer.to_string()));
            self.refuse(self.wrong(&what).expected(format!("expected {expected}")))
        })
    }

    /// As [`Self::integer`], for what is kept in 32 bits.
    pub(super) fn integer32(&self, range: RangeInclusive<u32>) -> Option<u32> {
        let number = self.integer(u64::from(*range.start())..=u64::from(*range.end()))?;
        u32::try_from(number).ok()
    }

    /// As [`Self::integer`], for counts.
    pub(super) fn count(&self, range: RangeInclusive<u64>) -> Option<usize> {
        usize::try_from(self.integer(range)?).ok()
    }

    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        self.duration_as_told(&range, "")
    }

    /// `Some(None)` is "off".
    pub(super) fn duration_or_off(&self, range: RangeInclusive<Duration>) -> Option<Option<Duration>> {
        if self.is_off() { Some(None) } else { self.duration_as_told(&range, ", or \"off\"").map(Some) }
    }

    pub(super) fn is_off(&self) -> bool {
        self.node.as_str() == Some("off")
    }

    fn duration_as_told(&self, range: &RangeInclusive<Duration>, or: &str) -> Option<Duration> {
        let (least, most) = (duration::show(*range.start()), duration::show(*range.end()));
        let expected = format!("{}, from \"{least}\" to \"{most}\"{or}", duration::FORM);
        let (text, written) = match self.node {
            DeValue::String(text) => (text.as_ref(), format!("\"{}\"", shortened(text))),
            DeValue::Integer(number) => (number.as_str(), shortened(&number.to_string())),
            _ => return self.wrong_type(&expected),
        };
        duration::parse(text, range).map_or_else(
            |fault| self.refuse(self.wrong(&format!("{fault}: {written}")).expected(format!("expected {expected}"))),
            Some,
        )
    }

    /// One of a few words; `later` are those of later versions.
    pub(super) fn word<T: Copy>(&self, words: &[(&'static str, T)], later: &[&'static str]) -> Option<T> {
        let names: Vec<&'static str> = words.iter().map(|(name, _)| *name).collect();
        let expected = format!("\"{}\"", names.join("\", \""));
        let expected = if names.len() > 1 { format!("one of {expected}") } else { expected };
        let text = self.text(&expected)?;
        if let Some((_, value)) = words.iter().find(|(name, _)| *name == text) {
            return Some(*value);
        }
        let expected = format!("expected {expected}");
        if later.contains(&text) {
            let what = format!("= \"{text}\" is not available in this version");
            return self.refuse(self.wrong(&what).expected(expected));
        }
        let mistake = self.wrong(&format!("does not know \"{}\"", shortened(text))).expected(expected);
        self.refuse(match nearest(text, names.iter().copied()) {
            Some(near) => mistake.help(format!("did you mean \"{near}\"?")),
            None => mistake,
        })
    }

    /// The elements of a list; a single value is a list of one.
    pub(super) fn one_or_many(&self) -> Vec<Self> {
        match self.node {
            DeValue::Array(_) => self.list("").unwrap_or_default(),
            node => vec![Value { report: self.report, path: self.path.clone(), span: self.span.clone(), node }],
        }
    }

    pub(super) fn list(&self, expected: &str) -> Option<Vec<Self>> {
        let Some(array) = self.node.as_array() else { return self.wrong_type(expected) };
        let element = |item: &'a toml::Spanned<DeValue<'a>>| Value {
            report: self.report,
            path: self.path.clone(),
            span: item.span(),
            node: item.get_ref(),
        };
        Some(array.iter().map(element).collect())
    }

    pub(super) fn section(&self, expected: &str) -> Option<Section<'a>> {
        let Some(table) = self.node.as_table() else { return self.wrong_type(expected) };
        Some(Section::new(self.report, self.path.clone(), self.span.clone(), table))
    }
}

/// What is quoted of a text in one line.
const QUOTED: usize = 80;

pub(super) fn shortened(text: &str) -> String {
    if text.chars().nth(QUOTED).is_none() {
        return text.to_owned();
    }
    text.chars().take(QUOTED).chain("...".chars()).collect()
}
