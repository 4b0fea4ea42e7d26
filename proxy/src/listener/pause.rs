//! A listener that does not accept for now: said in the ledger for as long as it lasts.

use std::rc::Rc;
use std::time::Duration;

use crate::observe::names;
use crate::observe::reason::Paused;
use crate::session::ListenerBook;

/// After a failure for want of descriptors: long enough to cost nothing, short against a client's timeout.
const WITHOUT_DESCRIPTORS: Duration = Duration::from_millis(100);

/// At a limit: another thread or generation may make room, and can't tell us.
const AT_LIMIT: (u64, u64) = (15, 25);

/// Raised in the gauges until dropped.
#[derive(Debug)]
pub(super) struct Pause {
    listener: Rc<ListenerBook>,
    pub(super) why: Paused,
}

impl Pause {
    pub(super) fn begin(listener: &Rc<ListenerBook>, why: Paused) -> Self {
        listener.gauges.raise(names::listener::paused(why));
        Self { listener: Rc::clone(listener), why }
    }

    /// Time to the next try. Uneven, lest two threads that step back from the last free place do so in step for ever.
    pub(super) fn time(&self) -> Duration {
        match self.why {
            Paused::Descriptors => WITHOUT_DESCRIPTORS,
            Paused::ListenerLimit | Paused::SessionLimit => {
                Duration::from_millis(fastrand::u64(AT_LIMIT.0..=AT_LIMIT.1))
            }
        }
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        self.listener.gauges.lower(names::listener::paused(self.why));
    }
}
