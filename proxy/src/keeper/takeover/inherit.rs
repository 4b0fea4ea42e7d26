//! The heir becomes the keeper: lock, admin sockets, doors, and the workers that drain.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use admin::command::UpgradeReport;
use admin::socket;
use handoff::manifest::Entry;
use handoff::sequence::Polls;
use tokio::time::{Instant, sleep};

use super::super::attach::{self, Attached};
use super::super::door::KeeperDoor;
use super::super::doors::Doors;
use super::super::event::Event;
use super::super::generation::Deadline;
use super::super::owner::Keeper;
use super::super::reaper::Exit;
use super::super::restart::plan_of;
use super::super::run::RunError;
use super::super::state::KeeperState;
use super::super::state_dir::{StateDir, StateDirError};
use super::Apprentice;
use super::words::{ADMIN_TCP, ADMIN_UNIX, Legacy, Response};
use crate::config::Config;
use crate::config::order::Order;
use crate::observe::events::Happened;

/// All is to be ours: told so, or because the other keeper died.
#[derive(Debug)]
pub(in super::super) struct Inheritance {
    pub(super) order: Option<u64>,
    pub(super) legacy: Option<Legacy>,
}

/// Workers of the keeper before that have answered, and those that live without answering.
#[derive(Debug)]
pub(in super::super) struct Survivors {
    attached: Vec<Attached>,
    silent: BTreeSet<u32>,
    state: KeeperState,
}

/// For the other keeper to let go of its lock, or to be dead.
const LETTING_GO: Duration = Duration::from_secs(2);
const TURN: Duration = Duration::from_millis(10);

/// What an heir stands on once it is the keeper.
type Stand = (StateDir, Doors);

impl Inheritance {
    /// On failure the heir stays what it is; the other keeper, if it waits for an answer, is told why.
    pub(in super::super) async fn take(self, keeper: &mut Keeper, door: &KeeperDoor) -> Option<Stand> {
        let Self { order, legacy } = self;
        let stand = stand(keeper, door, legacy.as_ref()).await;
        match (stand, order) {
            (Ok(stand), order) => {
                keeper.inherit(order, legacy).await;
                Some(stand)
            }
            (Err(error), Some(order)) => {
                keeper.refuse_inheritance(order, error.to_string()).await;
                None
            }
            (Err(error), None) => {
                keeper.withdraw(format!("the keeper before ended the take-over: {error}")).await;
                None
            }
        }
    }
}

async fn stand(keeper: &Keeper, door: &KeeperDoor, legacy: Option<&Legacy>) -> Result<Stand, RunError> {
    let Some(apprentice) = &keeper.apprentice else { return Err(std::io::Error::other("no take-over").into()) };
    let own = &keeper.config().runtime.state_dir;
    if legacy.is_none() && apprentice.from != *own {
        // Its lock says whether the other keeper lives.
        drop(claim(&apprentice.from).await?);
    }
    let claimed = claim(own).await?;
    Ok((claimed, doors(keeper.config(), apprentice, legacy, door)?))
}

async fn claim(state_dir: &Path) -> Result<StateDir, StateDirError> {
    let deadline = Instant::now() + LETTING_GO;
    loop {
        match StateDir::claim(state_dir) {
            Err(StateDirError::InUse { .. }) if Instant::now() < deadline => sleep(TURN).await,
            claimed => return claimed,
        }
    }
}

/// Those that were handed over, where they are those of our configuration; else new ones.
fn doors(
    config: &Config,
    apprentice: &Apprentice,
    legacy: Option<&Legacy>,
    door: &KeeperDoor,
) -> Result<Doors, RunError> {
    let admin = &config.admin;
    let given = |id: &str| -> Option<(&Entry, OwnedFd)> {
        let (entry, fd) = apprentice.given.iter().find(|(entry, _)| entry.id == id)?;
        Some((entry, fd.try_clone().ok()?))
    };
    // By its file: it was bound under another name before it got this one.
    let unix = legacy.zip(given(ADMIN_UNIX)).and_then(|(legacy, (_, fd))| {
        let file = socket::adopt_path(&admin.socket, legacy.admin_file)?;
        Some((fd, file))
    });
    let same = |entry: &Entry| admin.listen.is_some_and(|address| entry.address == address.to_string());
    let tcp = given(ADMIN_TCP).filter(|(entry, _)| same(entry)).map(|(_, fd)| fd);
    Doors::bind_rest(admin, unix, tcp, door.clone())
}

impl Keeper {
    async fn refuse_inheritance(&mut self, order: u64, why: String) {
        tracing::error!(why, "cannot take over");
        if let Some(apprentice) = &self.apprentice {
            apprentice.last_words(order, &Response::Refused { why }).await;
        }
    }

    /// From here on this is the keeper.
    async fn inherit(&mut self, order: Option<u64>, legacy: Option<Legacy>) {
        let Some(apprentice) = self.apprentice.take() else { return };
        let state = legacy.as_ref().and_then(|legacy| KeeperState::parse(legacy.state.as_bytes()).ok());
        let state = state.or_else(|| self.before.take().map(|state| *state));
        if let Some(order) = order {
            apprentice.last_words(order, &Response::Done).await;
        }
        let report = legacy.map(|legacy| legacy.report);
        if let Some(state) = state {
            self.go_on_from(&state, report);
            self.find_survivors(apprentice, state);
        }
        self.lead_worker().await;
        self.note();
    }

    fn go_on_from(&mut self, state: &KeeperState, report: Option<UpgradeReport>) {
        self.happenings.skip_to(state.last_event);
        self.last_upgrade = state.last_upgrade;
        self.reports = state.reports.iter().cloned().collect();
        self.sockets.own_files(&state.socket_files);
        let surplus = self.sockets.surplus(self.config());
        self.sockets.close(&surplus);
        self.sockets.refresh(self.config());
        self.tally.upgraded("committed");
        let generation = self.serving.unwrap_or(0);
        let text = match &report {
            Some(report) => format!(
                "taken over; generation {} serves, {} sessions are left with generation {}",
                report.to, report.sessions.left, report.from
            ),
            None => {
                format!("taken over: the keeper before died on probation of generation {generation}, which goes on")
            }
        };
        tracing::info!(upgrade = self.last_upgrade, generation, "{text}");
        self.happenings.tell(Happened::new("taken_over", text).upgrade(self.last_upgrade).generation(generation));
        if let Some(report) = report {
            self.reports.keep(report);
        }
    }

    /// The worker follows this keeper, and no trial ends it any more.
    async fn lead_worker(&mut self) {
        let Some(serving) = self.serving_generation() else { return };
        let (id, link) = (serving.id, serving.link.clone());
        let plan = Box::new(plan_of(self.config(), self.config_version, &self.pools));
        if let Err(error) = link.order("the plan", &Order::Apply { plan }).await {
            tracing::error!(generation = id, %error, "the worker would still end with this keeper");
        }
        self.open_door(id, &link);
        // All that came to it on trial was left with the keeper before.
        self.open_vault(id, &link);
    }

    /// Beside the loop: the workers of the keeper before answer when it has let go of them.
    fn find_survivors(&mut self, apprentice: Apprentice, state: KeeperState) {
        let own = self.serving;
        let from: PathBuf = apprentice.from.clone();
        self.later(async move {
            apprentice.farewell().await;
            let (attached, silent) = attach::find_but(&from, own).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "the workers of the keeper before cannot be looked for");
                (Vec::new(), state.generations.iter().map(|one| one.id).collect())
            });
            Event::Survived(Box::new(Survivors { attached, silent, state }))
        });
    }

    pub(in super::super) async fn survived(&mut self, survivors: Survivors) {
        let Survivors { attached, silent, state } = survivors;
        let here: BTreeSet<u32> = attached.iter().map(|one| one.generation).chain(silent).chain(self.serving).collect();
        for gone in
            self.ledger.owners().into_iter().filter(|id| *id != 0 && !here.contains(id) && *id <= state.last_generation)
        {
            self.bury_lost(gone, Exit::Unknown);
        }
        for worker in attached {
            let (id, finishing, polls) = (worker.generation, worker.finishing, worker.rest.polls);
            if let Err(error) = self.take_on_worker(worker, &state) {
                tracing::warn!(generation = id, %error, "a worker that drains is not watched");
                continue;
            }
            let (drain, moves) = (self.config().drain, self.moves());
            let Some(generation) = self.generations.get_mut(&id) else { continue };
            generation.deadline = generation.deadline.or_else(|| drain.timeout.map(Deadline::after));
            match polls {
                // It drains already; what can move does so before.
                _ if finishing => generation.stays |= !moves,
                Polls::Now => self.stop_and_part(id, drain, moves),
                _ => self.part(id, drain, moves).await,
            }
        }
        self.move_all().await;
    }
}
