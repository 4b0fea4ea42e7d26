//! Binaries that misbehave: small C programs, because the file of an upgrade must be an ELF executable. Compiled with the
//! C compiler that Rust links with.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::peer::peer;
use super::slim::slim;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/harness/impostor.c");

/// A program called `name` in `directory` that is proxyd except for `how`: see `impostor.c`.
/// `None` after saying so where there is no C compiler.
pub fn impostor(directory: &Path, name: &str, how: &str) -> Option<PathBuf> {
    let program = directory.join(name);
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let done = Command::new(peer("cc")?)
        .arg(format!("-DHOW={}", quoted(how)))
        .arg(format!("-DREAL={}", quoted(&slim().to_string_lossy())))
        .args(["-w", "-o"])
        .arg(&program)
        .arg(SOURCE)
        .status()
        .expect("the compiler can be executed");
    assert!(done.success(), "impostor.c does not compile: {done}");
    Some(program)
}
