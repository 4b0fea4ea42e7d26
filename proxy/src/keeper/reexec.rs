//! The keeper becomes the new version: `execve` in place, after an upgrade to another binary. Same process, same
//! descriptors; until the call itself everything can be taken back, and is, if it fails.

use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;
use std::time::Duration;

use admin::command::{Line, Reply, UpgradeReport};
use handoff::sequence::Rest;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::doors::Doors;
use super::estate::{Estate, Inheritable, LinkNumber, Numbers, SocketNumber, number};
use super::event::Event;
use super::link::{Link, LinkError};
use super::owner::{Ended, Keeper};
use super::pinned::Pinned;
use super::preflight::{self, Passport};
use super::state::KeeperState;
use super::state_dir::StateDir;
use crate::observe::events::Happened;
use crate::observe::scene::Standing;

/// The replacement that is under way: the report of its upgrade, as it will be told if it succeeds.
#[derive(Debug)]
pub(super) struct Replacement {
    report: UpgradeReport,
    /// It can go on with what workers have deposited.
    knows_vaults: bool,
}

/// For answers of workers that are still awaited.
const QUIET: Duration = Duration::from_secs(2);
/// For one turn of the runtime, and a worker's last steps.
const TURN: Duration = Duration::from_millis(1);
/// Events that are carried over; a client that follows reads them as they come.
const EVENTS: usize = 256;

impl Keeper {
    /// The end of an upgrade that was committed: told, unless the keeper has to become the new version first.
    pub(super) fn conclude(&mut self, report: UpgradeReport) {
        if self.pinned.sha256 == self.runs {
            return self.concluded(report);
        }
        if !self.replaceable {
            return self
                .not_replaced(report, "it holds more than a keeper does (the demo's backends); restart it for that");
        }
        if let Err(why) = self.may_be_replaced() {
            return self.not_replaced(report, why);
        }
        let Some(upgrade) = &mut self.upgrade else { return };
        let id = upgrade.id;
        upgrade.vetting = Some(report);
        let (state, _) = self.state();
        let (links, pinned, reaper) = (self.links(), self.pinned.clone(), self.reaper.clone());
        self.later(async move { Event::Vetted { upgrade: id, vetted: vet(id, state, links, &pinned, &reaper).await } });
    }

    /// A shutdown does not wait for the answer of the new binary.
    pub(super) fn stop_vetting(&mut self) {
        if let Some(report) = self.upgrade.as_mut().and_then(|upgrade| upgrade.vetting.take()) {
            self.not_replaced(report, "proxyd is shutting down");
        }
    }

    /// The new binary has said whether it can go on from here.
    pub(super) fn vetted(&mut self, id: u64, vetted: Result<Passport, String>) {
        let asked = self.upgrade.as_mut().filter(|upgrade| upgrade.id == id);
        let Some(mut report) = asked.and_then(|upgrade| upgrade.vetting.take()) else { return };
        let vetted = vetted.and_then(|passport| self.may_be_replaced().map(|()| passport).map_err(str::to_owned));
        let passport = match vetted {
            Ok(passport) => passport,
            Err(why) => return self.not_replaced(report, &why),
        };
        report.keeper = "upgraded".into();
        tracing::info!(upgrade = report.id, sha256 = self.pinned.sha256, "the keeper becomes the new version");
        self.reports.keep(report.clone());
        self.finish_upgrade(Line::Reconnect { upgrade: report.id });
        self.replacement = Some(Replacement { report, knows_vaults: passport.knows_vaults() });
    }

    /// The upgrade after which this keeper is being replaced.
    pub(super) fn replacing(&self) -> Option<u64> {
        self.replacement.as_ref().map(|replacement| replacement.report.id)
    }

    /// The keeper stays what it is; the upgrade stays committed.
    fn not_replaced(&mut self, mut report: UpgradeReport, why: &str) {
        tracing::warn!(upgrade = report.id, why, "the keeper stays at its version; the upgrade is committed");
        self.happenings.tell(Happened::new("keeper_not_upgraded", why).upgrade(report.id));
        report.keeper = format!("not upgraded: {why}");
        self.concluded(report);
    }

    fn concluded(&mut self, report: UpgradeReport) {
        self.reports.keep(report.clone());
        self.finish_upgrade(Line::Done(Reply::Upgraded(report)));
    }

    fn links(&self) -> Vec<(u32, Link)> {
        self.generations.values().map(|generation| (generation.id, generation.link.clone())).collect()
    }

    /// Why this is not the moment.
    fn may_be_replaced(&self) -> Result<(), &'static str> {
        match self.standing {
            Standing::ShuttingDown => Err("proxyd is shutting down"),
            _ if self.is_recovering() => Err("sessions of a worker that died are on their way to another"),
            _ if !self.ghosts.is_empty() => Err("a worker of a take-over that was rolled back still drains"),
            _ if self.serving.is_none() => Err("a worker has died meanwhile and is being restarted"),
            _ => Ok(()),
        }
    }

    /// Everything that is needed to go on, and the descriptors it names that are not held elsewhere.
    fn estate(&self, rests: Rests, doors: &Doors, lock: &StateDir, lines: u64) -> io::Result<Legacy> {
        let (state, binaries) = self.state();
        let knows_vaults = self.replacement.as_ref().is_some_and(|replacement| replacement.knows_vaults);
        // Of one that does not know it, nothing may be left open for it.
        let (vault, vault_ends) = knows_vaults.then(|| self.vault.leave()).transpose()?.unzip();
        let (admin, metrics, admin_file) = doors.sockets();
        let socket = |(entry, fd, file): (&handoff::manifest::Entry, &OwnedFd, Option<&super::sockets::SocketFile>)| {
            SocketNumber { entry: entry.clone(), number: number(fd), file: file.cloned() }
        };
        let numbers = Numbers {
            lock: number(&lock.lock()),
            admin: number(admin),
            admin_file,
            metrics: metrics.map(number),
            sockets: self.sockets.held().map(socket).collect(),
            segments: self.ledger.segments().iter().map(|segment| number(&segment.descriptor())).collect(),
            binaries: binaries.iter().map(|binary| number(&binary.image())).collect(),
            links: link_numbers(&rests),
            vault,
        };
        let events = self.happenings.since(state.last_event.saturating_sub(EVENTS as u64));
        let channels = rests.into_iter().map(|(_, fd, _)| fd).chain(vault_ends.into_iter().flatten()).collect();
        Ok(Legacy { estate: Estate { state, numbers, events, log_lines_dropped: lines }, channels, binaries })
    }
}

/// An estate, and what must be kept open for it beside what the keeper holds.
struct Legacy {
    estate: Estate,
    channels: Vec<OwnedFd>,
    binaries: Vec<Rc<Pinned>>,
}

type Rests = Vec<(u32, OwnedFd, Rest)>;

/// Waits until no worker owes an answer. One that is gone by then is not among them.
async fn rests(links: Vec<(u32, Link)>) -> Result<Rests, String> {
    let all = async {
        let mut rests = Vec::new();
        for (generation, link) in links {
            match link.rest().await {
                Ok((fd, rest)) => rests.push((generation, fd, rest)),
                Err(LinkError::Gone) => {}
                Err(error) => return Err(format!("generation {generation}: {error}")),
            }
        }
        Ok(rests)
    };
    timeout(QUIET, all).await.unwrap_or_else(|_| Err(format!("a worker owes an answer for {} s", QUIET.as_secs())))
}

fn link_numbers(rests: &Rests) -> Vec<LinkNumber> {
    let link = |(generation, fd, rest): &(u32, OwnedFd, Rest)| LinkNumber {
        generation: *generation,
        number: number(fd),
        rest: *rest,
    };
    rests.iter().map(link).collect()
}

/// Shows the new binary what it would have to go on from.
async fn vet(
    upgrade: u64,
    state: KeeperState,
    links: Vec<(u32, Link)>,
    pinned: &Pinned,
    reaper: &super::reaper::Reaper,
) -> Result<Passport, String> {
    tracing::debug!(upgrade, "the new binary is shown the keeper's state");
    let links = link_numbers(&rests(links).await?);
    // The other numbers are of no interest to one that only looks.
    let numbers = Numbers {
        lock: 0,
        admin: 0,
        admin_file: (0, 0),
        metrics: None,
        sockets: Vec::new(),
        segments: Vec::new(),
        binaries: Vec::new(),
        links,
        vault: None,
    };
    let estate = Estate { state, numbers, events: Vec::new(), log_lines_dropped: 0 };
    let sealed = estate.sealed().map_err(|error| error.to_string())?;
    preflight::can_go_on(pinned, sealed, reaper).await
}

/// Replaces this process' image. Returns only if that failed, or if it ended meanwhile: then everything is as before.
pub(super) async fn replace(
    keeper: &mut Keeper,
    inbox: &mut mpsc::Receiver<Event>,
    doors: &mut Doors,
    lock: &StateDir,
    lines: u64,
) -> Option<Ended> {
    // The loop goes on meanwhile: what was asked is answered.
    if let Some(ended) = keeper.run_until(inbox, doors.close()).await {
        return Some(ended);
    }
    let failed = attempt(keeper, inbox, doors, lock, lines).await;
    if let Err(error) = doors.open() {
        tracing::error!(%error, "the admin socket cannot be served");
    }
    match failed {
        Ok(ended) => ended,
        Err(why) => {
            if let Some(Replacement { report, .. }) = keeper.replacement.take() {
                keeper.not_replaced(report, &why);
            }
            None
        }
    }
}

async fn attempt(
    keeper: &mut Keeper,
    inbox: &mut mpsc::Receiver<Event>,
    doors: &Doors,
    lock: &StateDir,
    lines: u64,
) -> Result<Option<Ended>, String> {
    let deadline = Instant::now() + QUIET;
    let (_masked, rests) = loop {
        let masked = Masked::now().map_err(|error| error.to_string())?;
        // A signal that was caught just before wakes the runtime once, and is then an event like any other.
        if let Some(ended) = keeper.run_until(inbox, tokio::time::sleep(TURN)).await {
            return Ok(Some(ended));
        }
        keeper.may_be_replaced()?;
        let rests = rests(keeper.links()).await?;
        if rests.len() == keeper.generations.len() {
            break (masked, rests);
        }
        // A worker that has closed its channel is about to end, which a signal will say.
        if Instant::now() > deadline {
            return Err("a worker has closed its channel and does not end".into());
        }
        drop(masked);
        if let Some(ended) = keeper.run_until(inbox, tokio::time::sleep(TURN)).await {
            return Ok(Some(ended));
        }
    };
    let estate = keeper.estate(rests, doors, lock, lines).map_err(|error| error.to_string())?;
    let Legacy { estate, channels, binaries } = estate;
    let sealed = estate.sealed().map_err(|error| error.to_string())?;
    let mut kept = vec![lock.lock(), sealed.as_fd()];
    kept.extend(doors.descriptors());
    kept.extend(keeper.sockets.held().map(|(_, fd, _)| fd.as_fd()));
    kept.extend(keeper.ledger.segments().iter().map(|segment| segment.descriptor()));
    kept.extend(binaries.iter().map(|binary| binary.image()));
    kept.extend(channels.iter().map(AsFd::as_fd));
    let takes_vault = estate.numbers.vault.is_some();
    let failed = keeper.vault.lend_all(|held| {
        let held = held.into_iter().filter(|_| takes_vault);
        let _inheritable = Inheritable::make(kept.into_iter().chain(held).collect())?;
        execute(&keeper.pinned, &sealed)
    });
    match failed {
        Ok(never) => match never {},
        Err(error) => Err(format!("execve: {error}")),
    }
}

fn execute(pinned: &Pinned, estate: &OwnedFd) -> io::Result<Infallible> {
    let text = |text: String| CString::new(text).map_err(io::Error::other);
    let image = text(format!("/proc/self/fd/{}", pinned.image().as_raw_fd()))?;
    let arguments = [text("proxyd".into())?, text("--resume".into())?, text(estate.as_raw_fd().to_string())?];
    // What a service manager handed over was taken when this process began.
    let environment = std::env::vars_os()
        .filter(|(name, _)| !["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"].iter().any(|gone| name == gone));
    let pairs = environment.map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()));
    let environment: Vec<CString> = pairs.collect::<Result<_, _>>().map_err(io::Error::other)?;
    Ok(nix::unistd::execve(&image, &arguments, &environment)?)
}

/// The signals that mean something to a keeper are held back, until it is dropped; they stay pending over `execve`.
#[derive(Debug)]
pub(super) struct Masked(SigSet);

impl Masked {
    pub(super) fn now() -> io::Result<Self> {
        Ok(Self(ours().thread_swap_mask(SigmaskHow::SIG_BLOCK)?))
    }
}

impl Drop for Masked {
    fn drop(&mut self) {
        // A mask that was valid is valid.
        let _ = self.0.thread_set_mask();
    }
}

/// Lets signals in, once there is somebody who hears them: an image that was begun by another began with them held back.
pub(super) fn unmask() -> io::Result<()> {
    Ok(ours().thread_unblock()?)
}

/// For threads beside the keeper's own: a signal that one of them caught could be lost at `execve`.
pub(super) fn mask() {
    // SIG_BLOCK of a valid set does not fail.
    let _ = ours().thread_block();
}

fn ours() -> SigSet {
    let signals = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGCHLD];
    signals.into_iter().collect()
}
