//! What happened: every step, fault and decision, kept for a while and told to those who follow.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use admin::view::EventView;
use serde_json::Value;
use tokio::sync::watch;

/// The last events of this keeper. A clone is a handle to the same.
#[derive(Debug, Clone)]
pub struct Events {
    kept: Arc<Mutex<Kept>>,
    /// The newest number.
    newest: Arc<watch::Sender<u64>>,
}

#[derive(Debug, Default)]
struct Kept {
    last: u64,
    events: VecDeque<EventView>,
}

/// An event in the making: `Happened::new("worker_lost", "...").generation(3)`.
#[derive(Debug, Clone)]
pub struct Happened(EventView);

/// Enough for a hundred upgrades; each takes about 1.3 KB of a keeper that is to stay small.
const KEPT: usize = 1024;

impl Happened {
    pub fn new(event: &str, text: impl Into<String>) -> Self {
        Self(EventView { event: event.into(), text: text.into(), ..EventView::default() })
    }

    pub fn upgrade(mut self, id: u64) -> Self {
        self.0.upgrade = Some(id);
        self
    }

    pub fn generation(mut self, id: u32) -> Self {
        self.0.generation = Some(id);
        self
    }

    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.fields.insert(name.into(), value.into());
        self
    }
}

impl Events {
    /// Goes on counting after `last`, the newest number of an earlier keeper.
    pub fn after(last: u64) -> Self {
        let kept = Arc::new(Mutex::new(Kept { last, events: VecDeque::new() }));
        Self { kept, newest: Arc::new(watch::Sender::new(last)) }
    }

    /// As [`Self::after`], with events of that keeper that may not have been read.
    pub fn restored(last: u64, events: Vec<EventView>) -> Self {
        let restored = Self::after(last);
        restored.kept.lock().unwrap_or_else(PoisonError::into_inner).events = events.into();
        restored
    }

    /// Goes on counting after `last`, if that is higher: another keeper has told its own meanwhile.
    pub fn skip_to(&self, last: u64) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.last = kept.last.max(last);
    }

    /// Keeps it, and tells those who follow. The log is the caller's.
    pub fn tell(&self, happened: Happened) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.last += 1;
        let mut event = happened.0;
        event.seq = kept.last;
        event.time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        if kept.events.len() == KEPT {
            kept.events.pop_front();
        }
        kept.events.push_back(event);
        self.newest.send_replace(kept.last);
    }

    /// The newest number.
    pub fn last(&self) -> u64 {
        *self.newest.borrow()
    }

    /// Those kept that came after this number, oldest first.
    pub fn since(&self, seq: u64) -> Vec<EventView> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.events.iter().filter(|event| event.seq > seq).cloned().collect()
    }

    /// Resolves when there is an event after this number; `None` once nobody can tell any more.
    pub async fn newer(&self, seq: u64) -> Option<u64> {
        let mut newest = self.newest.subscribe();
        newest.wait_for(|newest| *newest > seq).await.ok().map(|newest| *newest)
    }
}

impl Default for Events {
    fn default() -> Self {
        Self::after(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn those_who_follow_see_every_event_once_and_in_order() {
        let events = Events::after(7);
        assert!(events.since(0).is_empty());
        events.tell(Happened::new("worker_lost", "generation 3 died").generation(3).with("pid", 12));
        assert_eq!(events.newer(7).await, Some(8));
        events.tell(Happened::new("upgrade_step", "offer").upgrade(1));
        let seen = events.since(7);
        assert_eq!(
            seen.iter().map(|event| (event.seq, event.event.as_str())).collect::<Vec<_>>(),
            [(8, "worker_lost"), (9, "upgrade_step")]
        );
        assert_eq!(seen[0].fields["pid"], 12);
        assert!(events.since(9).is_empty());
    }

    #[test]
    fn the_oldest_give_way() {
        let events = Events::default();
        (0..KEPT + 5).for_each(|_| events.tell(Happened::new("upgrade_step", "")));
        let kept = events.since(0);
        assert_eq!((kept.len(), kept[0].seq), (KEPT, 6));
    }
}
