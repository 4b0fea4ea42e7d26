//! A configuration being written for a test: sections and their lines, in TOML.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;

use super::port::Port;

/// State directory, admin address and an upgrade without probation are filled in by [`super::Proxy`], unless the test writes
/// them itself.
#[derive(Debug, Clone, Default)]
pub struct Conf {
    sections: Vec<(String, String)>,
    is_old: bool,
}

impl Conf {
    pub fn new() -> Self {
        Self::default()
    }

    /// One listener on `bind`, one pool of these backends: what most tests need.
    pub fn simple(bind: &Port, backends: &[SocketAddr]) -> Self {
        Self::new().listener("main", &bind.to_string(), "pool").pool("pool", backends)
    }

    /// Adds lines to a section; a section may be named several times.
    #[must_use]
    pub fn with(mut self, section: &str, lines: &str) -> Self {
        let place = match self.sections.iter().position(|(name, _)| name == section) {
            Some(place) => place,
            None => {
                self.sections.push((section.into(), String::new()));
                self.sections.len() - 1
            }
        };
        let text = &mut self.sections[place].1;
        text.push_str(lines);
        text.push('\n');
        self
    }

    /// Without the keys that are filled in and that the first version did not know.
    #[must_use]
    pub fn for_any_version(self) -> Self {
        Self { is_old: true, ..self }
    }

    /// At an upgrade sessions stay with the generation that has them, and drain: for tests of just that.
    #[must_use]
    pub fn staying(self) -> Self {
        self.with("upgrade", "sessions = \"drain\"")
    }

    /// `bind` as an operator writes it.
    #[must_use]
    pub fn listener(self, name: &str, bind: &str, pool: &str) -> Self {
        self.with(&format!("listeners.{name}"), &format!("bind = {bind:?}\npool = {pool:?}"))
    }

    #[must_use]
    pub fn pool(self, name: &str, backends: &[SocketAddr]) -> Self {
        let list: Vec<String> = backends.iter().map(|address| format!("\"{address}\"")).collect();
        self.with(&format!("pools.{name}"), &format!("backends = [{}]", list.join(", ")))
    }

    /// The text of the file.
    pub fn render(&self, state_dir: &Path, admin: SocketAddr) -> String {
        let whole = self
            .clone()
            .default_key("runtime", "state_dir", &format!("{state_dir:?}"))
            .default_key("runtime", "threads", "2")
            .default_key("admin", "listen", &format!("\"{admin}\""));
        let whole = if self.is_old { whole } else { whole.default_key("upgrade", "probation", "\"0s\"") };
        whole.sections.iter().fold(String::new(), |mut text, (name, lines)| {
            write!(text, "[{name}]\n{lines}\n").expect("a string takes all");
            text
        })
    }

    fn default_key(self, section: &str, key: &str, value: &str) -> Self {
        let written = self
            .sections
            .iter()
            .filter(|(name, _)| name == section)
            .flat_map(|(_, lines)| lines.lines())
            .any(|line| line.split('=').next().is_some_and(|left| left.trim() == key));
        if written { self } else { self.with(section, &format!("{key} = {value}")) }
    }
}
