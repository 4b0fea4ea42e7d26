//! A session that is to outlive its process (`survive_crash`): the keeper holds duplicates of both sockets and of the pipes
//! through which all its bytes go. Without that it is served all the same, and its record says why it would not survive.

use super::pipe::Pipe;
use super::relaying::Relaying;
use super::{KeptTerms, Phase, Session, custody};
use crate::config::ForcedClose;
use crate::observe::reason::{Protection, Reason, Unprotected};

impl Session {
    /// Its backend is connected, and no byte has moved.
    pub(super) fn protect(&self, relaying: &mut Relaying) {
        if !self.terms.survive_crash {
            return;
        }
        if custody::of_thread().is_full() {
            return self.meter.protect(Protection::No(Unprotected::KeeperFull));
        }
        let Some(pipes) = Pipe::own_pair() else {
            return self.meter.protect(Protection::No(Unprotected::NoPipe));
        };
        relaying.splice_only(pipes);
        self.deposit(relaying);
    }

    /// Another keeper, or none, holds nothing of it.
    pub(super) fn lose_protection(&self) {
        if self.meter.protection() == Some(Protection::Deposited) {
            self.meter.protect(Protection::No(Unprotected::KeeperAway));
        }
    }

    /// Deposits it if that was not possible before. `false`: it still is not.
    pub(super) fn catch_up(&self) -> bool {
        let phase = self.phase.borrow();
        let Phase::Relaying(relaying) = &*phase else { return true };
        match self.meter.protection() {
            Some(Protection::No(_)) => !custody::of_thread().is_full() && self.deposit(relaying),
            // If the keeper is full, it says so of what it does not hold already.
            Some(Protection::Deposited) if self.is_unsure.get() => self.deposit(relaying),
            _ => true,
        }
    }

    /// It goes on here, from another worker or after a rest, in which nobody has looked after it. What another worker has
    /// deposited is deposited again: if the keeper refuses it, it says so to whom nothing can be done about it any more.
    pub(super) fn came_back(&self) {
        let only_splices =
            matches!(&*self.phase.borrow(), Phase::Relaying(relaying) if relaying.belongings().is_some());
        if only_splices && self.meter.protection().is_none() {
            // Its process died between depositing it and writing so.
            self.meter.protect(Protection::Deposited);
        }
        match self.meter.protection() {
            Some(Protection::No(_)) => custody::of_thread().await_room(),
            // What is not told at once is told later.
            Some(Protection::Deposited) => {
                self.catch_up();
            }
            None => {}
        }
    }

    /// The keeper did not keep it. It goes on as any other.
    pub(super) fn turned_away(&self) {
        custody::of_thread().found_full();
        self.meter.protect(Protection::No(Unprotected::KeeperFull));
        if let Phase::Relaying(relaying) = &mut *self.phase.borrow_mut() {
            relaying.splice_freely();
        }
    }

    /// Says its end to its peers. Where others hold its sockets, whoever finds these after a crash must find why it ended,
    /// and end it so.
    pub(super) fn close(&self, relaying: Relaying, how: ForcedClose, reason: Reason) {
        if !relaying.is_shared() {
            relaying.close(how);
            return self.over(reason);
        }
        self.over(reason);
        relaying.close(how);
        if let (Some(Protection::Deposited), Some(place)) = (self.meter.protection(), self.meter.place()) {
            custody::of_thread().withdraw(self.meter.id(), place);
        }
    }

    /// `false`: not now.
    fn deposit(&self, relaying: &Relaying) -> bool {
        let (Some(place), Some(belongings)) = (self.meter.place(), relaying.belongings()) else { return true };
        let terms = KeptTerms { timeouts: self.terms.timeouts, tcp: self.terms.tcp };
        let protection = custody::of_thread().deposit(self.meter.id(), place, &terms, belongings);
        let is_again = self.meter.protection() == Some(Protection::Deposited);
        if is_again && protection == Protection::No(Unprotected::KeeperStalled) {
            // What the worker before has deposited is held, most likely.
            return false;
        }
        self.meter.protect(protection);
        self.is_unsure.set(false);
        protection == Protection::Deposited
    }
}
