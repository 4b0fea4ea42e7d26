//! From a file to its text, from the text to a checked [`Config`].

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;
use toml::Spanned;
use toml::de::DeTable;

use super::draft::Draft;
use super::mistake::{Mistake, Mistakes, Source};
use super::report::Report;
use super::section::Section;
use super::surroundings::Surroundings;
use super::{Config, check, read};

/// A configuration that can be used, and what is odd about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    pub config: Config,
    pub warnings: Vec<Mistake>,
}

/// Far more than the largest configuration; a file beyond is the wrong file.
const LARGEST: u64 = 16 << 20;

/// Reads and checks `file`; gives its bytes too, which are kept as what is in force.
pub fn load(file: &Path) -> Result<(Vec<u8>, Parsed), Mistakes> {
    let of_file = |title| Mistakes::new(vec![Mistake::of_file(file, title)]);
    let text = bytes(file).map_err(of_file)?;
    let parsed = parse(file, &text)?;
    Ok((text, parsed))
}

/// Checks `text` against this machine; `file` is only a name for it.
pub fn parse(file: &Path, text: &[u8]) -> Result<Parsed, Mistakes> {
    parse_in(file, text, &Surroundings::real())
}

/// As [`parse`], on a machine described by `around`; a pure function but for what `around` does.
pub fn parse_in(file: &Path, text: &[u8], around: &Surroundings) -> Result<Parsed, Mistakes> {
    let report = Report::new(Source { file: file.to_owned(), text: String::new() }.filled(text)?);
    let config = config(&report, around);
    let failed = report.has_errors();
    let mistakes = report.into_mistakes();
    if failed { Err(Mistakes::new(mistakes)) } else { Ok(Parsed { config, warnings: mistakes }) }
}

/// Meaningful only if no error was noted.
fn config(report: &Report, around: &Surroundings) -> Config {
    let (table, faults) = table(report.text());
    report.syntax(faults.iter().map(|fault| syntax(report, fault)).collect());
    let root = Section::new(report, String::new(), 0..0, table.get_ref());
    let mut draft: Draft = read::file(root, around);
    // With a part of the file unread, what seems to be missing may only be unread.
    if !report.is_garbled() {
        check::all(&mut draft, report, around);
    }
    draft.config
}

/// Beyond this size only the first error of syntax is told: in the worst case every second byte is one, and each is kept.
const ALL_FAULTS_TOLD: usize = 1 << 20;

/// What could be read, and why the rest could not.
fn table(text: &str) -> (Spanned<DeTable<'_>>, Vec<toml::de::Error>) {
    match DeTable::parse(text) {
        Ok(table) => (table, Vec::new()),
        Err(_) if text.len() <= ALL_FAULTS_TOLD => DeTable::parse_recoverable(text),
        Err(fault) => (Spanned::new(0..0, DeTable::new()), vec![fault]),
    }
}

fn syntax(report: &Report, fault: &toml::de::Error) -> Mistake {
    let span = fault.span().unwrap_or_default();
    report.error(&span, format!("this is not TOML: {}", fault.message()))
}

impl Source {
    /// With `text`, without a byte order mark. CRLF is left to TOML, which knows it.
    fn filled(mut self, text: &[u8]) -> Result<Self, Mistakes> {
        let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text);
        if let Some(at) = text.iter().position(|byte| *byte == 0) {
            let title = format!("this is a binary file: there is a zero at byte {at}");
            return Err(Mistakes::new(vec![Mistake::of_file(&self.file, title)]));
        }
        match str::from_utf8(text) {
            Ok(text) => {
                text.clone_into(&mut self.text);
                Ok(self)
            }
            Err(fault) => Err(self.not_utf8(text, fault.valid_up_to())),
        }
    }

    /// Shows the line with a mark in place of what is not UTF-8.
    fn not_utf8(mut self, text: &[u8], at: usize) -> Mistakes {
        self.text = String::from_utf8_lossy(text).into_owned();
        let title = format!("this is not UTF-8: the byte 0x{:02x}", text.get(at).copied().unwrap_or_default());
        let report = Report::new(self);
        let mark = at..at + char::REPLACEMENT_CHARACTER.len_utf8();
        Mistakes::new(vec![report.error(&mark, title).expected("expected a text file in UTF-8")])
    }
}

fn bytes(file: &Path) -> Result<Vec<u8>, String> {
    let cannot = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        _ => format!("cannot be read: {error}"),
    };
    let open = open(file).map_err(cannot)?;
    let metadata = open.metadata().map_err(cannot)?;
    if metadata.is_dir() {
        return Err("this is a directory, not a file".to_owned());
    }
    if !metadata.is_file() {
        return Err("this is not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    open.take(LARGEST + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > LARGEST {
        return Err(format!("this file is larger than {} MiB", LARGEST >> 20));
    }
    Ok(bytes)
}

/// Without waiting: opening a pipe that nobody writes to would take for ever.
fn open(file: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(file)
}
