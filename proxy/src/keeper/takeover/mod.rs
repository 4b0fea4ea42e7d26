//! Another installation takes over: its keeper (the heir) knocks at `state_dir/handoff.sock`. For the keeper that serves it is
//! an upgrade whose new generation is not a child: same lock, steps, probation and rollback. At its end the heir gets the
//! admin sockets, the lock of `state_dir` and the workers that drain; the keeper that was stays until they have ended.

use std::path::{Path, PathBuf};

mod apprentice;
mod bequest;
mod entrance;
mod heir;
mod inherit;
mod offer;
mod words;

pub(super) use apprentice::{Apprentice, Told};
pub(super) use bequest::Bequest;
pub(super) use entrance::Entrance;
pub(super) use heir::Heir;
pub(super) use inherit::{Inheritance, Survivors};
pub(super) use offer::Offered;

/// Where another installation knocks.
fn entrance_of(state_dir: &Path) -> PathBuf {
    state_dir.join("handoff.sock")
}
