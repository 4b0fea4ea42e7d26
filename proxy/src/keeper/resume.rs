//! A keeper that goes on where another one was: the same process under a new image, or a new process after its death.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use handoff::channel::{Channel, ChannelError, Peer};
use handoff::ledger::Ledger;
use handoff::predecessor::Predecessor;
use handoff::sequence::Rest;
use tokio::sync::mpsc;

use super::backoff::Backoff;
use super::estate::Estate;
use super::event::Event;
use super::generation::{Generation, Parting};
use super::link::Link;
use super::moving::PATIENCE;
use super::next::Loaded;
use super::owner::{Keeper, Parts};
use super::pinned::Pinned;
use super::reaper::{Child, Reaper, is_gone};
use super::run::RunError;
use super::sockets::Sockets;
use super::state::{GenerationState, KeeperState, PreviousState, instant_of};
use super::upgrade::Previous;
use super::vault::InheritedVault;
use crate::observe::events::{Events, Happened};
use crate::observe::scene::Standing;

/// Descriptors of an estate, in its order.
#[derive(Debug)]
pub(super) struct Held {
    pub sockets: Vec<OwnedFd>,
    pub segments: Vec<OwnedFd>,
    pub binaries: Vec<OwnedFd>,
    pub links: Vec<OwnedFd>,
    pub vault: Option<InheritedVault>,
}

impl Keeper {
    /// After `execve`: everything is as it was, but for the program.
    pub(super) fn resume(
        estate: &Estate,
        loaded: Loaded,
        held: Held,
        events: mpsc::Sender<Event>,
    ) -> Result<Self, RunError> {
        let (state, numbers) = (&estate.state, &estate.numbers);
        let _ = nix::sys::prctl::set_name(c"proxyd");
        let mut sockets = Sockets::default();
        for (socket, fd) in numbers.sockets.iter().zip(held.sockets) {
            sockets.take_over(socket.entry.clone(), fd, socket.file.clone())?;
        }
        let binaries: Vec<Rc<Pinned>> =
            (state.binaries.iter().zip(held.binaries)).map(|(binary, image)| Rc::new(binary.pinned(image))).collect();
        let missing = |what: String| std::io::Error::other(format!("{what} was not handed over"));
        let pinned = binaries.get(state.pinned).cloned().ok_or_else(|| missing("the pinned binary".into()))?;
        let mut keeper = Self::new(Parts {
            loaded,
            pinned,
            pools: state.pools.clone(),
            sockets,
            ledger: Ledger::open(held.segments)?,
            events,
            reaper: Reaper::default(),
            started: instant_of(state.started_ms).into_std(),
            replaceable: true,
            greeting: None,
            is_heir: false,
        })?;
        keeper.happenings = Events::restored(state.last_event, estate.events.clone());
        keeper.recall(state);
        let previous = state.previous.as_ref();
        keeper.previous = previous.and_then(|before| before.previous(binaries.get(before.binary)?.clone()));
        if let Some(vault) = held.vault {
            keeper.measure_vault();
            keeper.vault.resume(vault);
        }
        for (link, fd) in numbers.links.iter().zip(held.links) {
            let found = state.generations.iter().find(|generation| generation.id == link.generation);
            let known = found.ok_or_else(|| missing(format!("generation {}", link.generation)))?;
            let channel = channel(fd, known.pid)?;
            match (known.pid != 0).then(|| keeper.reaper.watch_again(known.pid)).transpose() {
                Ok(child) => keeper.readmit(known, child, channel, link.rest),
                Err(error) if is_gone(&error) => keeper.close_door(known.id),
                Err(error) => return Err(error.into()),
            }
        }
        keeper.bury_absent(state);
        keeper.standing = if keeper.serving.is_some() { Standing::Serving } else { Standing::Restarting };
        tracing::info!(version = crate::version::VERSION, sha256 = keeper.runs, "the keeper runs its new version");
        keeper
            .happenings
            .tell(Happened::new("keeper_upgraded", format!("the keeper runs version {}", crate::version::VERSION)));
        Ok(keeper)
    }

    /// What a record says beside processes and descriptors.
    pub(super) fn recall(&mut self, state: &KeeperState) {
        self.serial = state.serial;
        self.config_version = state.config.version;
        self.last_generation = state.last_generation;
        self.last_upgrade = state.last_upgrade;
        self.serving = state.serving;
        self.stillborn.clone_from(&state.stillborn);
        self.backoff = Backoff::after(state.failures);
        self.reports = state.reports.iter().cloned().collect();
        self.drains.clone_from(&state.drains);
    }

    /// A worker that lives, in this PID namespace (`child`) or another, goes on to be watched and spoken to.
    pub(super) fn readmit(&mut self, known: &GenerationState, child: Option<Child>, channel: Channel, rest: Rest) {
        let link = Link::start(Predecessor::resume(channel, rest));
        let child = child.unwrap_or_else(|| Child::remote(0, &link));
        let generation = Generation {
            id: known.id,
            state: known.state,
            version: known.version.clone(),
            build: known.build.clone(),
            sha256: known.sha256.clone(),
            process: child.process.clone(),
            link: link.clone(),
            silent: false,
            since: instant_of(known.since_ms),
            deadline: known.deadline(),
            stays: known.stays,
            left: known.left,
            parting: known.parting.map(|drain| Parting::within(PATIENCE, drain)),
            is_stopping: false,
        };
        self.generations.insert(known.id, generation);
        if !self.vault.hears(known.id) {
            self.open_vault(known.id, &link);
        }
        self.watch(known.id, child, &link);
    }
}

impl PreviousState {
    /// `None`: its configuration is not accepted any more, and there is nothing to go back to.
    pub(super) fn previous(&self, pinned: Rc<Pinned>) -> Option<Previous> {
        let loaded =
            self.config.loaded().inspect_err(|error| tracing::warn!("no rollback to what was before: {error}"));
        Some(Previous { pinned, loaded: loaded.ok()? })
    }
}

fn channel(fd: OwnedFd, pid: u32) -> Result<Channel, std::io::Error> {
    let uid = nix::unistd::geteuid().as_raw();
    let channel = match pid {
        0 => Channel::with_foreigner(fd, uid),
        pid => Channel::new(fd, Peer { pid: Some(pid), uid }),
    };
    channel.map_err(|error: ChannelError| std::io::Error::other(error))
}
