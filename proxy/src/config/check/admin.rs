//! Who could reach the admin socket and the metrics.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::super::draft::Draft;
use super::super::mistake::{Mistake, Span};
use super::super::read::LONGEST_SOCKET_PATH;
use super::super::report::Report;
use super::super::surroundings::{Found, Kind, Surroundings};

/// The longest name of a socket that the keeper makes in its state directory, with the slash.
const LONGEST_NAME: usize = "/worker-4294967295.sock".len();

/// Writable by everyone.
const OTHERS_WRITE: u32 = 0o002;
/// In such a directory everyone may write, but remove only what is his.
const STICKY: u32 = 0o1000;

/// The state directory and the admin socket: nobody else may put something in their place.
pub(super) fn paths(draft: &Draft, report: &Report, around: &Surroundings) {
    state_dir(draft, report, around);
    let path = &draft.config.admin.socket;
    let directory = path.parent().filter(|directory| *directory != draft.config.runtime.state_dir);
    let of_directory = directory.and_then(|directory| parent_fault(directory, around));
    let of_socket = (around.found)(path).and_then(|found| socket_fault(found, around.uid));
    // The default lies in the state directory.
    let place = draft.places.admin_socket.as_ref().or(draft.places.state_dir.as_ref());
    for fault in of_directory.into_iter().chain(of_socket) {
        report.add(at(place, format!("`admin.socket` = \"{}\": {fault}", path.display()), report));
    }
}

fn state_dir(draft: &Draft, report: &Report, around: &Surroundings) {
    let (path, place) = (&draft.config.runtime.state_dir, draft.places.state_dir.as_ref());
    let (length, most) = (path.as_os_str().as_bytes().len(), LONGEST_SOCKET_PATH - LONGEST_NAME);
    if length > most {
        let title = format!("`runtime.state_dir` is {length} bytes long, too long for the sockets in it");
        report.add(at(place, title, report).help(format!("name a directory of at most {most} bytes")));
    }
    if let Some(fault) = (around.found)(path).and_then(|found| directory_fault(found, around.uid)) {
        report.add(at(place, format!("`runtime.state_dir` = \"{}\": it {fault}", path.display()), report));
    }
}

/// At `place`, or about the file if the value is a default that was not written.
fn at(place: Option<&Span>, title: String, report: &Report) -> Mistake {
    match place {
        Some(place) => report.error(place, title),
        None => report.whole(title),
    }
}

fn parent_fault(directory: &Path, around: &Surroundings) -> Option<String> {
    let found = (around.found)(directory)?;
    let open = || (found.mode & OTHERS_WRITE != 0).then(|| "can be written by everyone".to_owned());
    let fault = directory_fault(found, around.uid).or_else(open)?;
    Some(format!("its directory {fault}"))
}

fn directory_fault(found: Found, uid: u32) -> Option<String> {
    match found {
        Found { kind: Kind::Socket | Kind::Other, .. } => Some("is not a directory".to_owned()),
        Found { uid: owner, .. } if owner != uid && owner != 0 => Some(foreign(owner, uid)),
        // One of our own is made private at start; one with the sticky bit is meant to be shared, like /tmp.
        Found { uid: owner, mode, .. } if mode & OTHERS_WRITE != 0 && (owner != uid || mode & STICKY != 0) => {
            Some("can be written by everyone".to_owned())
        }
        _ => None,
    }
}

fn socket_fault(found: Found, uid: u32) -> Option<String> {
    match found {
        Found { kind: Kind::Directory | Kind::Other, .. } => Some("it exists and is not a socket".to_owned()),
        Found { uid: owner, .. } if owner != uid && owner != 0 => Some(format!("it {}", foreign(owner, uid))),
        _ => None,
    }
}

fn foreign(owner: u32, uid: u32) -> String {
    format!("belongs to user {owner}; proxyd runs as user {uid}")
}

/// Metrics name the services behind the proxy: not for everyone unless told.
pub(super) fn listen(draft: &Draft, report: &Report) {
    let admin = &draft.config.admin;
    let Some((address, place)) = admin.listen.zip(draft.places.admin_listen.as_ref()) else { return };
    if !address.ip().is_loopback() && !admin.expose {
        let mistake = report.error(place, format!("`admin.listen` = \"{address}\" can be reached from other machines"));
        report.add(mistake.expected("expected a loopback address").help("or say `expose = true` in `[admin]`"));
    }
}
