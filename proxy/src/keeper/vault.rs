//! What workers have deposited: duplicates of the sockets and pipes of their sessions, by the id of the session. A task for
//! each worker hears its deposits and withdrawals; when the worker dies, what it had still said is heard first.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::{Rc, Weak};

use handoff::ledger::{Ledger, Place};
use handoff::os::Legacy;
use handoff::vault::{self, Belongings, Custodian, Owed, VaultError, Word};
use serde::{Deserialize, Serialize};
use tokio_util::task::AbortOnDropHandle;

use super::estate::number;
use super::generation::Generation;
use super::link::Link;
use super::owner::Keeper;

/// A clone is a handle to the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Vault(Rc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    held: RefCell<HashMap<u64, Vaulted>>,
    /// With whoever gives them to a worker.
    lent: RefCell<HashMap<u64, Lent>>,
    /// That sessions began under: each once for all of them.
    terms: RefCell<HashSet<Rc<str>>>,
    /// Threads that have crashed, by generation; none if one did that is no data thread.
    crashed: RefCell<BTreeMap<u32, Vec<u16>>>,
    /// By generation.
    channels: RefCell<BTreeMap<u32, Channel>>,
    /// Sessions for which there are descriptors.
    most: Cell<usize>,
}

/// One session's.
#[derive(Debug)]
struct Vaulted {
    /// Of its record.
    place: Place,
    belongings: Belongings,
    terms: Option<Rc<str>>,
}

/// What is left of it here.
#[derive(Debug)]
struct Lent {
    place: Place,
    terms: Option<Rc<str>>,
}

#[derive(Debug)]
struct Channel {
    custodian: Rc<Custodian>,
    _hears: AbortOnDropHandle<()>,
}

/// More than listeners have between two changes; beyond it, what no session has any more is forgotten.
const TERMS: usize = 256;

/// Words that are heard in a row before others have their turn.
const IN_A_ROW: usize = 64;

/// Descriptors the keeper keeps for itself, beside its listening sockets (twice: a new generation gets duplicates) and
/// segments: admin connections, children and their pipes, paths.
const OWN: u64 = 256;

impl Keeper {
    /// A worker that can leave its sessions with us is given the means to.
    pub(super) fn open_vault(&mut self, id: u32, link: &Link) {
        self.measure_vault();
        self.try_to_open(id, link, true);
    }

    /// Workers whose channel could not be opened, or has ended, are given another one.
    pub(super) fn look_after_vaults(&mut self) {
        self.measure_vault();
        let is_unheard = |one: &&Generation| !one.is_heirs() && !one.link.has_ended() && !self.vault.hears(one.id);
        let unheard = self.generations.values().filter(is_unheard).map(|one| (one.id, one.link.clone()));
        let unheard: Vec<(u32, Link)> = unheard.collect();
        unheard.iter().for_each(|(id, link)| self.try_to_open(*id, link, false));
    }

    fn try_to_open(&mut self, id: u32, link: &Link, is_first: bool) {
        if !link.knows_paths() {
            return;
        }
        let opened = vault::pair().and_then(|(ours, theirs)| Ok((Custodian::new(ours)?, theirs)));
        match opened {
            Ok((custodian, theirs)) => {
                self.vault.attend(id, custodian);
                let link = link.clone();
                self.tasks.spawn_local(async move {
                    link.vault(theirs).await.unwrap_or_else(|error| say_unopened(id, &error, is_first));
                });
            }
            Err(error) => say_unopened(id, &error, is_first),
        }
    }

    /// What the limit of descriptors leaves.
    pub(super) fn measure_vault(&self) {
        let taken = 2 * self.sockets.held().count() + self.ledger.segments().len();
        let left = handoff::channel::limit().saturating_sub(OWN).saturating_sub(taken as u64);
        self.vault.0.most.set(usize::try_from(left / 4).unwrap_or(usize::MAX));
    }
}

/// It is tried again at every tick, and told once.
fn say_unopened(generation: u32, error: &dyn std::error::Error, is_first: bool) {
    if is_first {
        tracing::warn!(generation, %error, "its sessions would not survive a crash; tried again every 500 ms");
    } else {
        tracing::debug!(generation, %error, "its sessions would still not survive a crash");
    }
}

impl Vault {
    /// Hears a worker from now on; a channel that it had before is no more.
    pub(super) fn attend(&self, generation: u32, custodian: Custodian) {
        let custodian = Rc::new(custodian);
        let hearing = hear(Rc::downgrade(&self.0), generation, Rc::clone(&custodian));
        let hears = AbortOnDropHandle::new(tokio::task::spawn_local(hearing));
        self.0.channels.borrow_mut().insert(generation, Channel { custodian, _hears: hears });
    }

    /// A worker is dead: hears what it had still said. Gives the threads that brought it down; `None`: it has not said.
    pub(super) fn drain(&self, generation: u32) -> Option<Vec<u16>> {
        // What the worker before has deposited of its sessions may still be unread.
        for (giver, channel) in self.0.channels.borrow().iter().filter(|(giver, _)| **giver != generation) {
            while let Ok(Some(word)) = channel.custodian.try_next() {
                self.0.take(*giver, word, &channel.custodian);
            }
            // Whoever hears it may wait for its next word, and it for this answer. What it does not take now follows its next word.
            let _ = channel.custodian.settle();
        }
        let channel = self.0.channels.borrow_mut().remove(&generation);
        if let Some(Channel { custodian, .. }) = channel {
            while let Ok(Some(word)) = custodian.try_next() {
                self.0.take(generation, word, &custodian);
            }
        }
        self.0.crashed.borrow_mut().remove(&generation)
    }

    /// Sessions that are held, and those that are lent.
    pub(super) fn places(&self) -> Vec<(u64, Place)> {
        let held = self.0.held.borrow();
        let held = held.iter().map(|(id, vaulted)| (*id, vaulted.place));
        held.chain(self.0.lent.borrow().iter().map(|(id, lent)| (*id, lent.place))).collect()
    }

    /// As if a worker had deposited it.
    #[cfg(test)]
    pub(super) fn put(&self, id: u64, place: Place, belongings: Belongings) {
        self.0.held.borrow_mut().insert(id, Vaulted { place, belongings, terms: None });
    }

    /// Looks at what is held of a session, and at the terms it was left with.
    pub(super) fn with<T>(&self, id: u64, look: impl FnOnce(&Belongings, Option<&str>) -> T) -> Option<T> {
        self.0.held.borrow().get(&id).map(|vaulted| look(&vaulted.belongings, vaulted.terms.as_deref()))
    }

    /// Takes it out, for good.
    pub(super) fn take_out(&self, id: u64) -> Option<Belongings> {
        self.0.held.borrow_mut().remove(&id).map(|vaulted| vaulted.belongings)
    }

    /// Takes it out for a while.
    pub(super) fn lend(&self, id: u64) -> Option<(Place, Belongings)> {
        let Vaulted { place, belongings, terms } = self.0.held.borrow_mut().remove(&id)?;
        self.0.lent.borrow_mut().insert(id, Lent { place, terms });
        Some((place, belongings))
    }

    pub(super) fn give_back(&self, id: u64, belongings: Belongings) {
        if let Some(Lent { place, terms }) = self.0.lent.borrow_mut().remove(&id) {
            self.0.held.borrow_mut().insert(id, Vaulted { place, belongings, terms });
        }
    }

    /// Closes what belongs to sessions that are no more: their worker could not say so.
    pub(super) fn sweep(&self, ledger: &Ledger) {
        self.0.held.borrow_mut().retain(|id, vaulted| ledger.whereabouts(vaulted.place, *id).is_some());
    }

    /// Another keeper is the one to hold them.
    pub(super) fn clear(&self) {
        self.0.channels.take();
        self.0.held.take();
    }
}

impl Shared {
    fn take(&self, generation: u32, word: Word, custodian: &Custodian) {
        match word {
            Word::Deposit(deposit, belongings) => {
                let mut held = self.held.borrow_mut();
                let is_known = held.contains_key(&deposit.id);
                if !is_known && held.len() + self.lent.borrow().len() >= self.most.get() {
                    // Closed before the worker hears of it.
                    drop(belongings);
                    return custodian.refuse(&deposit);
                }
                let terms = deposit.terms.map(|terms| self.once(&terms));
                held.insert(deposit.id, Vaulted { place: deposit.place, belongings, terms });
                custodian.keep();
            }
            Word::Crashed { thread } => self.crashed.borrow_mut().entry(generation).or_default().extend(thread),
            Word::Spilled(deposit) => {
                // Nor what the worker before has left of it: it goes on as any other, and its bytes are elsewhere then.
                self.held.borrow_mut().remove(&deposit.id);
                custodian.refuse(&deposit);
            }
            Word::Withdraw { id, place } => {
                let mut held = self.held.borrow_mut();
                if held.get(&id).is_some_and(|vaulted| vaulted.place == place) {
                    held.remove(&id);
                }
            }
        }
    }

    fn once(&self, terms: &str) -> Rc<str> {
        let mut all = self.terms.borrow_mut();
        if let Some(known) = all.get(terms) {
            return Rc::clone(known);
        }
        if all.len() >= TERMS {
            all.retain(|terms| Rc::strong_count(terms) > 1);
        }
        let terms: Rc<str> = terms.into();
        all.insert(Rc::clone(&terms));
        terms
    }
}

/// Until the channel ends. What is held stays: whether its sessions live is not said by that.
async fn hear(shared: Weak<Shared>, generation: u32, custodian: Rc<Custodian>) {
    let error = loop {
        if let Err(error) = hear_some(&shared, generation, &custodian).await {
            break error;
        }
        tokio::task::yield_now().await;
    };
    match error {
        VaultError::Gone => tracing::debug!(generation, "nothing more is deposited"),
        error => tracing::warn!(generation, %error, "nothing more is deposited"),
    }
    let Some(shared) = shared.upgrade() else { return };
    let mut channels = shared.channels.borrow_mut();
    if channels.get(&generation).is_some_and(|channel| Rc::ptr_eq(&channel.custodian, &custodian)) {
        // Together with the end of this task.
        channels.remove(&generation);
    }
}

async fn hear_some(shared: &Weak<Shared>, generation: u32, custodian: &Custodian) -> Result<(), VaultError> {
    // A worker that is dead hears nothing more; what it had said is all still to be read.
    let is_settled = custodian.settle().unwrap_or(true);
    let word = tokio::select! {
        word = custodian.next() => word?,
        writable = custodian.writable(), if !is_settled => return Ok(writable?),
    };
    let Some(shared) = shared.upgrade() else { return Err(VaultError::Gone) };
    shared.take(generation, word, custodian);
    for _ in 1..IN_A_ROW {
        let Some(word) = custodian.try_next()? else { break };
        shared.take(generation, word, custodian);
    }
    Ok(())
}

/// A vault that another image of the keeper is to go on with: everything by the number of its descriptor.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct VaultNumbers {
    channels: Vec<ChannelNumber>,
    held: Vec<VaultedNumber>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ChannelNumber {
    generation: u32,
    number: i32,
    owed: Owed,
}

#[derive(Debug, Serialize, Deserialize)]
struct VaultedNumber {
    id: u64,
    place: Place,
    /// Client, backend, the pipe of the client's bytes, that of the backend's.
    numbers: [i32; 4],
    /// `None`: of an older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    terms: Option<Rc<str>>,
}

impl Vault {
    /// For another image of this process; and the descriptors of the channels, to be kept open until then.
    ///
    /// # Errors
    /// No descriptor is free.
    pub(super) fn leave(&self) -> io::Result<(VaultNumbers, Vec<OwnedFd>)> {
        let (mut channels, mut ends) = (Vec::new(), Vec::new());
        for (generation, channel) in self.0.channels.borrow().iter() {
            let (end, owed) = channel.custodian.leave()?;
            channels.push(ChannelNumber { generation: *generation, number: number(&end), owed });
            ends.push(end);
        }
        let held = self.0.held.borrow();
        let held = held.iter().map(|(id, Vaulted { place, belongings, terms })| {
            let Belongings { client, backend, pipes: [up, down] } = belongings;
            let numbers = [client, backend, up, down].map(number);
            VaultedNumber { id: *id, place: *place, numbers, terms: terms.clone() }
        });
        Ok((VaultNumbers { channels, held: held.collect() }, ends))
    }

    /// Calls `with` with every descriptor that is held.
    pub(super) fn lend_all<T>(&self, with: impl FnOnce(Vec<BorrowedFd<'_>>) -> T) -> T {
        use std::os::fd::AsFd;
        let held = self.0.held.borrow();
        let fds = held.values().flat_map(|Vaulted { belongings, .. }| {
            let Belongings { client, backend, pipes: [up, down] } = belongings;
            [client, backend, up, down].map(AsFd::as_fd)
        });
        with(fds.collect())
    }

    /// Whether this worker is heard.
    pub(super) fn hears(&self, generation: u32) -> bool {
        self.0.channels.borrow().contains_key(&generation)
    }

    /// Goes on with what an earlier image has left.
    pub(super) fn resume(&self, mut inherited: InheritedVault) {
        for vaulted in inherited.held.values_mut() {
            vaulted.terms = vaulted.terms.take().map(|terms| self.0.once(&terms));
        }
        self.0.held.replace(inherited.held);
        for (generation, end, owed) in inherited.channels {
            match Custodian::resume(end, owed) {
                Ok(custodian) => self.attend(generation, custodian),
                Err(error) => tracing::warn!(generation, %error, "nothing more can be deposited"),
            }
        }
    }
}

/// What an earlier image has left, before it is gone on with.
#[derive(Debug)]
pub(super) struct InheritedVault {
    held: HashMap<u64, Vaulted>,
    channels: Vec<(u32, OwnedFd, Owed)>,
}

impl InheritedVault {
    /// Takes everything that is named.
    ///
    /// # Errors
    /// A descriptor is not there.
    pub(super) fn take(legacy: &mut Legacy, numbers: &VaultNumbers) -> io::Result<Self> {
        let mut held = HashMap::new();
        for VaultedNumber { id, place, numbers: [client, backend, up, down], terms } in &numbers.held {
            let mut take = |number: &i32| legacy.take(*number);
            let pipes = [take(up)?, take(down)?];
            let belongings = Belongings { client: take(client)?, backend: take(backend)?, pipes };
            held.insert(*id, Vaulted { place: *place, belongings, terms: terms.clone() });
        }
        let channels = numbers.channels.iter();
        let channels = channels.map(|one| Ok((one.generation, legacy.take(one.number)?, one.owed.clone())));
        Ok(Self { held, channels: channels.collect::<io::Result<_>>()? })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use handoff::vault::{Deposit, Depositor};

    use super::*;

    fn belongings() -> Belongings {
        let (client, backend) = UnixStream::pair().unwrap();
        let pipe = || rustix::pipe::pipe().unwrap().0;
        Belongings { client: client.into(), backend: backend.into(), pipes: [pipe(), pipe()] }
    }

    fn channel(vault: &Vault, generation: u32) -> Depositor {
        let (ours, theirs) = vault::pair().unwrap();
        vault.attend(generation, Custodian::new(ours).unwrap());
        Depositor::new(theirs).unwrap()
    }

    #[tokio::test]
    async fn of_what_is_refused_nothing_is_held() {
        let vault = Vault::default();
        let custodian = Custodian::new(vault::pair().unwrap().0).unwrap();
        let deposit = Deposit { id: 7, place: Place { segment: 0, index: 3 }, thread: 0, terms: None };
        vault.put(7, deposit.place, belongings());
        // Again, by the worker it has gone to, and no descriptor is free.
        vault.0.take(2, Word::Spilled(deposit), &custodian);
        assert!(vault.places().is_empty());
    }

    /// A session went from one worker to the next, which dies before we have read anything.
    #[tokio::test]
    async fn at_a_death_the_others_are_heard_too() {
        let run = async {
            let vault = Vault::default();
            vault.0.most.set(10);
            let (before, _dead) = (channel(&vault, 1), channel(&vault, 2));
            let Belongings { client, backend, pipes: [up, down] } = belongings();
            let deposit = Deposit { id: 7, place: Place { segment: 0, index: 3 }, thread: 0, terms: None };
            before.deposit(&deposit, [client.as_fd(), backend.as_fd(), up.as_fd(), down.as_fd()]).unwrap();
            assert!(vault.places().is_empty());
            assert_eq!(vault.drain(2), None);
            assert_eq!(vault.places(), [(7, deposit.place)]);
            assert!(vault.hears(1) && !vault.hears(2));
        };
        tokio::task::LocalSet::new().run_until(run).await;
    }
}
