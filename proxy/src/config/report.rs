//! Collects the mistakes of one file while it is read and checked.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::Arc;

use super::mistake::{self, Mistake, Severity, Source, Span};

/// More errors, or more warnings, are no longer noted.
const MOST: usize = 1000;

#[derive(Debug)]
pub(super) struct Report {
    source: Arc<Source>,
    mistakes: RefCell<Vec<Mistake>>,
    errors: Cell<usize>,
    warnings: Cell<usize>,
    /// Lines whose syntax is wrong: what is read there is not what was meant.
    garbled: RefCell<BTreeSet<usize>>,
}

impl Report {
    pub(super) fn new(source: Source) -> Self {
        Self {
            source: Arc::new(source),
            mistakes: RefCell::default(),
            errors: Cell::default(),
            warnings: Cell::default(),
            garbled: RefCell::default(),
        }
    }

    pub(super) fn text(&self) -> &str {
        &self.source.text
    }

    pub(super) fn error(&self, span: &Span, title: impl Into<String>) -> Mistake {
        Mistake::new(Severity::Error, &self.source, Some(span.clone()), title.into())
    }

    pub(super) fn warning(&self, span: &Span, title: impl Into<String>) -> Mistake {
        Mistake::new(Severity::Warning, &self.source, Some(span.clone()), title.into())
    }

    /// About the file as a whole.
    pub(super) fn whole(&self, title: impl Into<String>) -> Mistake {
        Mistake::new(Severity::Error, &self.source, None, title.into())
    }

    pub(super) fn add(&self, mistake: Mistake) {
        let count = match mistake.severity() {
            Severity::Error => &self.errors,
            Severity::Warning => &self.warnings,
        };
        if count.get() >= MOST {
            return;
        }
        let line = mistake.span().map(|span| self.line(span.start));
        if line.is_none_or(|line| !self.garbled.borrow().contains(&line)) {
            count.set(count.get() + 1);
            self.mistakes.borrow_mut().push(mistake);
        }
    }

    /// Mistakes of the TOML itself; others in the same lines are no longer taken.
    pub(super) fn syntax(&self, mistakes: Vec<Mistake>) {
        let lines = mistakes.iter().filter_map(Mistake::span).map(|span| self.line(span.start)).collect();
        *self.garbled.borrow_mut() = lines;
        self.errors.set(self.errors.get() + mistakes.len());
        self.mistakes.borrow_mut().extend(mistakes);
    }

    /// Some of the file could not be read: what seems to be missing may be there.
    pub(super) fn is_garbled(&self) -> bool {
        !self.garbled.borrow().is_empty()
    }

    pub(super) fn has_errors(&self) -> bool {
        self.errors.get() > 0
    }

    /// In the order of the file.
    pub(super) fn into_mistakes(self) -> Vec<Mistake> {
        let mut mistakes = self.mistakes.into_inner();
        mistake::sort(&mut mistakes);
        mistakes
    }

    /// Where the line of `at` begins: as good as its number.
    fn line(&self, at: usize) -> usize {
        let text = self.text();
        text[..text.floor_char_boundary(at)].rfind('\n').map_or(0, |newline| newline + 1)
    }
}
