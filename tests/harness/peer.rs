//! Other programs that tests and benches use if they are installed.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// Where Debian puts what is not on every `PATH`.
const PLACES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/usr/local/bin", "/usr/local/sbin"];
/// Debian keeps a directory for each major version.
const POSTGRES: &str = "/usr/lib/postgresql";

/// The program, or `None` after saying that this test is skipped.
///
/// # Panics
/// If it is not installed and `PROXYD_REQUIRE_PEERS` is 1, as it is in CI: there, nothing is skipped.
pub fn peer(name: &str) -> Option<PathBuf> {
    let found = find(name);
    if found.is_none() {
        let required = env::var("PROXYD_REQUIRE_PEERS").is_ok_and(|value| value == "1");
        assert!(!required, "{name} is not installed, and PROXYD_REQUIRE_PEERS=1 says that it must be");
        println!("skipped: {name} is not installed");
    }
    found
}

pub fn find(name: &str) -> Option<PathBuf> {
    let on_path = env::var_os("PATH").map(|path| env::split_paths(&path).collect::<Vec<_>>()).unwrap_or_default();
    let places = on_path.into_iter().chain(PLACES.map(PathBuf::from)).chain(postgres());
    places.map(|place| place.join(name)).find(|file| file.is_file())
}

/// The newest version first.
fn postgres() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(POSTGRES) else { return Vec::new() };
    let mut versions: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    versions.sort_by_key(|path| std::cmp::Reverse(version(path)));
    versions.into_iter().map(|path| path.join("bin")).collect()
}

fn version(path: &Path) -> u32 {
    path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok()).unwrap_or(0)
}
