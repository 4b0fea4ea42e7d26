//! Where answers go: tables on a terminal, plain columns in a pipe, JSON when asked. A reader that leaves early ends
//! the output, not the program.

use std::io::{self, Write};

use serde::Serialize;

use crate::command::Failure;
use crate::render::{Style, clean};

/// The two output streams of one run.
pub(super) struct Out<'a> {
    pub(super) json: bool,
    style: Style,
    /// The reader of stdout has left.
    unread: bool,
    stdout: &'a mut dyn Write,
    stderr: &'a mut dyn Write,
}

impl<'a> Out<'a> {
    pub(super) fn new(style: Style, stdout: &'a mut dyn Write, stderr: &'a mut dyn Write) -> Self {
        Self { json: false, style, unread: false, stdout, stderr }
    }

    /// One document, or its picture.
    pub(super) fn show(&mut self, document: &impl Serialize, picture: impl FnOnce(Style) -> String) -> io::Result<()> {
        if self.json { self.document(document) } else { self.text(&picture(self.style)) }
    }

    /// One object a line, or their picture.
    pub(super) fn rows<T: Serialize>(&mut self, rows: &[T], picture: impl FnOnce(Style) -> String) -> io::Result<()> {
        if !self.json {
            return self.text(&picture(self.style));
        }
        let mut text = String::new();
        for row in rows {
            text.push_str(&serde_json::to_string(row)?);
            text.push('\n');
        }
        self.text(&text)
    }

    /// Only with `--json`.
    pub(super) fn document(&mut self, document: &impl Serialize) -> io::Result<()> {
        if !self.json {
            return Ok(());
        }
        self.text(&(serde_json::to_string(document)? + "\n"))
    }

    /// Progress, for people; `--json` gives the result only.
    pub(super) fn step(&mut self, step: &str, detail: &str) {
        if !self.json {
            // The operation goes on whether or not it can be watched; its result is the exit code.
            let _ = self.text(&format!("{:<10} {}\n", clean(step), clean(detail)));
        }
    }

    pub(super) fn text(&mut self, text: &str) -> io::Result<()> {
        match self.stdout.write_all(text.as_bytes()).and_then(|()| self.stdout.flush()) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                self.unread = true;
                Ok(())
            }
            written => written,
        }
    }

    /// Whether nobody reads stdout any more: what has no end of its own ends then.
    pub(super) fn is_unread(&self) -> bool {
        self.unread
    }

    pub(super) fn refuse_json(&self, why: &str) -> Result<(), Failure> {
        if self.json { Err(Failure::usage(format!("--json does not apply: {why}"))) } else { Ok(()) }
    }

    /// A line for the operator on stderr. A list of mistakes keeps its lines.
    pub(super) fn complain(&mut self, text: &str) {
        let lines: Vec<_> = text.lines().map(clean).collect();
        // With stderr gone there is nobody left to tell.
        let _ = writeln!(self.stderr, "proxyctl: {}", lines.join("\n"));
    }
}
