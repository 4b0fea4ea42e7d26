//! The proxyd under test without its debug information: each generation pins a copy of its binary in memory, and a test with
//! thirty generations should not need gigabytes for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use super::peer::find;
use super::proxy::PROXYD;

/// The same program, stripped; the program itself where there is no `strip`.
pub fn slim() -> &'static Path {
    static SLIM: OnceLock<PathBuf> = OnceLock::new();
    SLIM.get_or_init(|| find("strip").and_then(|strip| stripped(&strip)).unwrap_or_else(|| PROXYD.into()))
}

/// Kept beside the build; made anew when the build is newer. Another test program may do the same at the same time: each
/// makes its own and renames it, so that nobody executes a file that is being written.
fn stripped(strip: &Path) -> Option<PathBuf> {
    // The directory is the same for all profiles.
    let profile = Path::new(PROXYD).parent()?.file_name()?.to_str()?;
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("proxyd-slim-{profile}"));
    let modified = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    if modified(&kept) > modified(Path::new(PROXYD)) {
        return Some(kept);
    }
    let mine = kept.with_extension(std::process::id().to_string());
    let done = Command::new(strip).arg("-o").arg(&mine).arg(PROXYD).status().is_ok_and(|status| status.success());
    (done && fs::rename(&mine, &kept).is_ok()).then_some(kept)
}

/// A copy that can be executed at once: written by another process, because a descriptor open for writing, inherited for a
/// moment by whatever another test starts, would make it "text file busy".
pub fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-p").arg(from).arg(to).status().expect("cp can be executed");
    assert!(done.success(), "cp {} {}: {done}", from.display(), to.display());
}

/// Programs that differ in nothing but their bytes: to upgrade from one to another is to upgrade the keeper too.
#[derive(Debug)]
pub struct Twins(pub TempDir);

impl Twins {
    pub fn new() -> Self {
        let place = tempfile::tempdir().expect("a temporary directory");
        for name in ["a", "b"] {
            let path = place.path().join(name);
            copy(slim(), &path);
            // What follows the sections of an ELF file is not looked at.
            let append = ["-c", r#"printf "$1" >> "$2""#, "sh", name];
            let done = Command::new("sh").args(append).arg(&path).status().expect("sh can be executed");
            assert!(done.success(), "{}: {done}", path.display());
        }
        Self(place)
    }

    /// `a` or `b`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Default for Twins {
    fn default() -> Self {
        Self::new()
    }
}

/// Which of the twins a process runs: the last byte of its image.
pub fn twin_of(pid: u32) -> char {
    let image = fs::read(format!("/proc/{pid}/exe")).expect("the process lives");
    image.last().copied().map_or(' ', char::from)
}
