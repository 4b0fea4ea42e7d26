//! Which admin socket is meant when none is named.

use std::path::{Path, PathBuf};

/// A socket to ask, and what to tell the operator about the choice.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) note: Option<String>,
}

/// Where to look, the likeliest first: the user's own service, the system's, the demo's.
pub(super) fn places() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let own = variable("XDG_RUNTIME_DIR").map(|runtime| runtime.join("proxyd"));
    let temporary = variable("TMPDIR").unwrap_or_else(|| PathBuf::from("/tmp"));
    let demo = temporary.join(format!("proxyd-demo-{}", rustix::process::geteuid().as_raw()));
    let directories = own.into_iter().chain([PathBuf::from("/run/proxyd"), demo]);
    directories.map(|directory| directory.join("admin.sock")).collect()
}

/// The first that exists; else where it looked.
pub(super) fn socket(places: &[PathBuf]) -> Result<Found, Vec<String>> {
    let exists = |path: &&PathBuf| std::fs::symlink_metadata(path).is_ok();
    let mut there = places.iter().filter(exists);
    let Some(path) = there.next() else {
        return Err(places.iter().map(|path| shown(path)).collect());
    };
    let others: Vec<String> = there.map(|path| shown(path)).collect();
    let note = (!others.is_empty()).then(|| {
        format!("using {}, not {}; `--socket` or PROXYCTL_SOCKET names another", shown(path), others.join(", "))
    });
    Ok(Found { path: path.clone(), note })
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_exists_is_used_and_others_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let places: Vec<PathBuf> = ["a", "b", "c"].iter().map(|name| directory.path().join(name)).collect();
        assert_eq!(socket(&places).unwrap_err().len(), 3);
        std::fs::write(&places[2], "").unwrap();
        assert_eq!(socket(&places).unwrap(), Found { path: places[2].clone(), note: None });
        std::fs::write(&places[1], "").unwrap();
        let found = socket(&places).unwrap();
        assert_eq!(found.path, places[1]);
        let note = found.note.unwrap();
        assert!(note.contains(&shown(&places[1])) && note.contains(&shown(&places[2])), "{note}");
    }
}
