//! The way of a data thread to the keeper's custody: what it deposits, and what it could not tell the keeper yet.

use std::cell::{Cell, RefCell};
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use handoff::ledger::Place;
use handoff::vault::{Deposit, Depositor, NotDeposited};
use tokio::sync::Notify;
use tokio::time::sleep;

use super::{KeptTerms, clock};
use crate::observe::reason::{Protection, Unprotected};

/// Of one data thread.
#[derive(Debug, Default)]
pub(super) struct Custody {
    thread: Cell<u16>,
    /// `None`: there is no keeper, or none that holds anything.
    depositor: RefCell<Option<Arc<Depositor>>>,
    /// Sessions that have ended, of which the keeper is still to be told.
    late: RefCell<Vec<(u64, Place)>>,
    /// A session waits to be deposited.
    is_awaited: Cell<bool>,
    /// Until then the keeper is not asked for room, milliseconds.
    full_until_ms: Cell<u64>,
    begins: Notify,
}

/// After the keeper had no room, so long none is asked for: some sessions have ended by then.
const FULL: Duration = Duration::from_secs(1);

/// Between two tries to tell the keeper what it did not take: far below the second in which a session's end is due there.
const AGAIN: Duration = Duration::from_millis(20);

thread_local! {
    static OF_THREAD: Rc<Custody> = Rc::default();
}

pub(super) fn of_thread() -> Rc<Custody> {
    OF_THREAD.with(Rc::clone)
}

impl Custody {
    /// Another keeper's, or none: what was left to be said to the one before concerns nobody any more.
    pub(super) fn turn_to(&self, thread: u16, depositor: Option<Arc<Depositor>>) {
        self.thread.set(thread);
        self.depositor.replace(depositor);
        self.late.take();
        self.full_until_ms.set(0);
    }

    /// Leaves duplicates of all that a session is made of with the keeper.
    pub(super) fn deposit(
        &self,
        id: u64,
        place: Place,
        terms: &KeptTerms,
        belongings: [BorrowedFd<'_>; 4],
    ) -> Protection {
        let deposit = Deposit { id, place, thread: self.thread.get(), terms: terms.write() };
        let depositor = self.depositor.borrow();
        let Some(depositor) = &*depositor else { return Protection::No(Unprotected::KeeperAway) };
        match depositor.deposit(&deposit, belongings) {
            Ok(()) => Protection::Deposited,
            Err(NotDeposited::Stalled) => {
                self.await_room();
                Protection::No(Unprotected::KeeperStalled)
            }
            Err(NotDeposited::Away) => Protection::No(Unprotected::KeeperAway),
        }
    }

    /// The session has ended; the keeper hears of it now, or as soon as it listens.
    pub(super) fn withdraw(&self, id: u64, place: Place) {
        if !self.tell_end(id, place) {
            self.late.borrow_mut().push((id, place));
            self.begins.notify_one();
        }
    }

    /// The keeper has said that it has no room.
    pub(super) fn found_full(&self) {
        self.full_until_ms.set(clock::coarse_ms() + clock::ms(FULL));
    }

    pub(super) fn is_full(&self) -> bool {
        clock::coarse_ms() < self.full_until_ms.get()
    }

    /// There is a session to be deposited later.
    pub(super) fn await_room(&self) {
        self.is_awaited.set(true);
        self.begins.notify_one();
    }

    /// Tells the keeper what it did not take at once, for as long as the thread lives. `deposit` deposits what waits for it,
    /// and says whether all is deposited.
    pub(super) async fn keep_up(&self, deposit: impl Fn() -> bool) {
        loop {
            if self.is_idle() {
                self.begins.notified().await;
            }
            // Without a keeper there is nothing to wait for: the next one is told to all.
            if self.is_awaited.take() && self.depositor.borrow().is_some() && !deposit() {
                self.is_awaited.set(true);
            }
            let late = self.late.take();
            let still = late.into_iter().filter(|(id, place)| !self.tell_end(*id, *place));
            let still: Vec<_> = still.collect();
            self.late.borrow_mut().extend(still);
            if !self.is_idle() {
                sleep(AGAIN).await;
            }
        }
    }

    fn is_idle(&self) -> bool {
        !self.is_awaited.get() && self.late.borrow().is_empty()
    }

    /// `false`: not now.
    fn tell_end(&self, id: u64, place: Place) -> bool {
        let depositor = self.depositor.borrow();
        let told = depositor.as_ref().map(|depositor| depositor.withdraw(id, place));
        // A keeper that is gone has nothing any more.
        !matches!(told, Some(Err(NotDeposited::Stalled)))
    }
}
