//! What is wrong with a configuration, where, and what was expected: one [`Mistake`] each, told together.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use annotate_snippets::{Annotation, AnnotationKind, Element, Level, Origin, Renderer, Snippet};

/// A file as it was read, for showing its lines.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) file: PathBuf,
    pub(super) text: String,
}

/// Bytes of the text.
pub(super) type Span = Range<usize>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can, but probably does not do what was meant.
    Warning,
}

/// One thing that is wrong in a configuration file.
#[derive(Clone, PartialEq, Eq)]
pub struct Mistake {
    severity: Severity,
    title: String,
    source: Arc<Source>,
    /// `None`: the file as a whole.
    span: Option<Span>,
    expected: Option<String>,
    other: Option<(Span, String)>,
    help: Option<String>,
}

impl Mistake {
    pub(super) fn new(severity: Severity, source: &Arc<Source>, span: Option<Span>, title: String) -> Self {
        Self { severity, title, source: Arc::clone(source), span, expected: None, other: None, help: None }
    }

    /// Of a file of which no line can be shown.
    pub(super) fn of_file(file: &Path, title: String) -> Self {
        let source = Arc::new(Source { file: file.to_owned(), text: String::new() });
        Self::new(Severity::Error, &source, None, title)
    }

    /// Said under the underlined text.
    pub(super) fn expected(mut self, text: impl Into<String>) -> Self {
        self.expected = Some(text.into());
        self
    }

    /// A second place that has to do with it.
    pub(super) fn and(mut self, span: Span, text: impl Into<String>) -> Self {
        self.other = Some((span, text.into()));
        self
    }

    /// What to do about it.
    pub(super) fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }

    pub fn severity(&self) -> Severity {
        self.severity
    }

    /// What is wrong, in one line.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// Line and column, from 1, columns in characters; `None` if it concerns the file as a whole.
    pub fn position(&self) -> Option<(usize, usize)> {
        let start = self.span.as_ref()?.start;
        let before = self.source.before(start);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Some((line, column))
    }

    /// With the line it stands in and the place underlined; ends without a newline.
    pub fn render(&self, color: bool) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let group = level.primary_title(escaped(&self.title)).elements(self.elements());
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        renderer.render(&[group])
    }

    fn elements(&self) -> Vec<Element<'_>> {
        let file = self.source.file.to_string_lossy().into_owned();
        let mut elements = Vec::new();
        match &self.span {
            Some(span) => {
                elements.push(self.source.quote(file, span, AnnotationKind::Primary, self.expected.as_deref()))
            }
            None => elements.push(Origin::path(file).into()),
        }
        if let Some((span, text)) = &self.other {
            let file = self.source.file.to_string_lossy().into_owned();
            elements.push(self.source.quote(file, span, AnnotationKind::Context, Some(text)));
        }
        if let Some(help) = &self.help {
            elements.push(Level::HELP.message(escaped(help)).into());
        }
        elements
    }

    pub(super) fn span(&self) -> Option<&Span> {
        self.span.as_ref()
    }
}

/// Without the text of the file, which may be long and is shown by [`Mistake::render`].
impl fmt::Debug for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mistake").field("title", &self.title).field("span", &self.span).finish_non_exhaustive()
    }
}

/// In one line, for a log or a reply: `FILE:LINE:COLUMN: what is wrong (what was expected)`.
impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source.file.display())?;
        if let Some((line, column)) = self.position() {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", escaped(&self.title))?;
        match self.expected.as_ref().or(self.help.as_ref()) {
            Some(text) => write!(f, " ({})", escaped(text)),
            None => Ok(()),
        }
    }
}

/// All mistakes of a file that cannot be used: at least one [`Severity::Error`], in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    pub(super) fn new(mut mistakes: Vec<Mistake>) -> Self {
        sort(&mut mistakes);
        Self(mistakes)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.0.iter()
    }

    /// For an operator; ends with a newline.
    pub fn render(&self, color: bool) -> String {
        render(&self.0, color)
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Mistakes {}

/// Of a file made to annoy, nobody reads more.
const SHOWN: usize = 100;

/// Mistakes one below the other, an empty line between them; empty for none, else ends with a newline.
pub fn render(mistakes: &[Mistake], color: bool) -> String {
    let mut blocks: Vec<String> = mistakes.iter().take(SHOWN).map(|mistake| mistake.render(color)).collect();
    if mistakes.len() > SHOWN {
        blocks.push(format!("... and {} more", mistakes.len() - SHOWN));
    }
    blocks.iter().map(|block| format!("{}\n", block.trim_end())).collect::<Vec<_>>().join("\n")
}

pub(super) fn sort(mistakes: &mut [Mistake]) {
    mistakes.sort_by_key(|mistake| mistake.span().map(|span| span.start));
}

impl Source {
    fn before(&self, at: usize) -> &str {
        &self.text[..self.text.floor_char_boundary(at)]
    }

    /// The line of `span`, with what of `span` lies in it underlined.
    fn quote<'a>(&'a self, file: String, span: &Span, kind: AnnotationKind, label: Option<&str>) -> Element<'a> {
        let before = self.before(span.start);
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = self.text[start..].lines().next().unwrap_or_default();
        let from = (before.len() - start).min(line.len());
        let to = line.floor_char_boundary(span.end.saturating_sub(start).max(from));
        let annotation: Annotation<'a> = kind.span(from..to.max(from)).label(label.map(escaped));
        let number = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        Snippet::source(line).path(file).line_start(number).annotation(annotation).into()
    }
}

/// Titles quote what was written, which may be anything: control characters do not reach a terminal.
fn escaped(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}
