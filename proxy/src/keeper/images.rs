//! The programs that workers of an earlier keeper run, as they run them: what lies at their paths may be another one by now.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::attach::Attached;
use super::pinned::Pinned;
use super::state::{BinaryState, KeeperState};

/// Each with its sum.
#[derive(Debug)]
pub(super) struct Images(Vec<(String, OwnedFd)>);

impl Images {
    pub(super) fn of(workers: &[Attached]) -> Self {
        let mut images = Vec::new();
        for worker in workers {
            match open(worker.pid).and_then(|image| Ok((Pinned::sum_of(&image)?, image))) {
                Ok(known) => images.push(known),
                Err(error) => tracing::warn!(generation = worker.generation, %error, "its binary cannot be read"),
            }
        }
        Self(images)
    }

    pub(super) fn at(&self, state: &KeeperState, place: usize, own: &Rc<Pinned>) -> Rc<Pinned> {
        state.binaries.get(place).map_or_else(|| own.clone(), |binary| self.pinned(binary, own))
    }

    /// For a rollback: exactly this one or none.
    pub(super) fn same(&self, state: &KeeperState, place: usize, own: &Rc<Pinned>) -> Option<Rc<Pinned>> {
        let binary = state.binaries.get(place)?;
        let same = self.exactly(binary, own);
        if same.is_none() {
            tracing::warn!(path = %binary.path.display(), sha256 = binary.sha256, "the binary before this one is nowhere to be had any more: there is nothing to roll back to");
        }
        same
    }

    /// From a process that runs it, else this keeper's own or what lies at its path, if that is the same.
    fn exactly(&self, binary: &BinaryState, own: &Rc<Pinned>) -> Option<Rc<Pinned>> {
        let run = self.0.iter().find(|(sha256, _)| *sha256 == binary.sha256);
        if let Some(image) = run.and_then(|(_, image)| image.try_clone().ok()) {
            return Some(Rc::new(binary.pinned(image)));
        }
        if own.sha256 == binary.sha256 {
            return Some(own.clone());
        }
        let found = Pinned::of(&binary.path).ok().filter(|found| found.sha256 == binary.sha256)?;
        Some(Rc::new(found.known_as(binary.version.clone(), binary.build.clone())))
    }

    /// For a worker that has to start: another one is better than none.
    fn pinned(&self, binary: &BinaryState, own: &Rc<Pinned>) -> Rc<Pinned> {
        if let Some(same) = self.exactly(binary, own) {
            return same;
        }
        let path = &binary.path;
        tracing::warn!(path = %path.display(), sha256 = binary.sha256, "no worker runs the pinned binary any more; what lies at its path is taken");
        Pinned::of(path).map(Rc::new).unwrap_or_else(|error| {
            tracing::error!(%error, "not usable either; this keeper's own binary is taken instead");
            own.clone()
        })
    }
}

fn open(pid: u32) -> io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/{pid}/exe"))?.into())
}
