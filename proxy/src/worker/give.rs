//! The end of a path at which sessions leave this worker. It runs beside the control thread's other work: data threads stop
//! and resume sessions, here they are packed, offered, and released or taken back.
//!
//! A session stands still from its freeze to the release of its batch, so batches are small, those of sessions that are busy the
//! more so, and no more than [`AHEAD`] are on their way: while one is with the taker, another is frozen and packed. What the taker
//! does not answer in [`ANSWERED`] is taken back and goes on here; then nothing is offered until the taker has shown that it lives.

mod batch;
mod tally;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use handoff::HandoffError;
use handoff::transfer::{self, Giver, Verdict};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::order::{Line, Order, Silent, Which};
use crate::config::order::{Notice, SPARED, left};
use crate::session::{Census, clock};
use batch::Batch;
use tally::Tally;

/// A session may wait so long for the taker's answer. Far above what a living worker needs, far below a timeout of a client.
const ANSWERED: Duration = Duration::from_secs(2);

/// For the taker to be at the other end: the keeper tells it first.
const OPENED: Duration = Duration::from_secs(3);

/// Batches on their way at a time. A third would stand still longer than it takes to fill it.
const AHEAD: usize = 2;

/// Which sessions go at a time.
#[derive(Debug, Clone, Copy)]
struct Sweep {
    /// Idle for so long.
    idle: Duration,
    /// Of one batch.
    most: usize,
}

/// Those whose pause nobody notices, most likely: as many at a time as a batch can hold.
const IDLE: Sweep = Sweep { idle: Duration::from_secs(1), most: transfer::ITEMS };

/// What is left then: a session stands still for as long as its batch takes, and what a batch costs beside its sessions is as much
/// as a dozen of them.
const REST: Sweep = Sweep { idle: Duration::ZERO, most: 16 };

/// Between two looks for sessions that could not move: those that connect, and those that are left for good.
const LOOK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// Between two words on sessions that moved later: with a look between them, the keeper knows within a second.
const NEWS: Duration = Duration::from_millis(500);

/// What a giver begins with.
#[derive(Debug)]
pub(super) struct Start {
    /// The keeper's number of the path.
    pub(super) path: u64,
    pub(super) end: OwnedFd,
    pub(super) uid: u32,
    pub(super) generation: u32,
    pub(super) lines: Vec<Line>,
    pub(super) census: Arc<Census>,
    pub(super) notices: mpsc::Sender<Notice>,
    /// Ends the path early; what was not released goes on here.
    pub(super) stop: CancellationToken,
}

/// Why a path is over.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("no session is left")]
    Empty,
    #[error("the other worker has no room")]
    NoRoom,
    #[error("another path takes its place, or the worker ends")]
    Stopped,
    #[error(transparent)]
    Path(#[from] HandoffError),
    #[error(transparent)]
    Silent(#[from] Silent),
}

/// Until no session is left here, or the path ends. Afterwards every session is either the taker's or goes on here.
pub(super) async fn run(start: Start) {
    let Start { path, end, uid, generation, lines, census, notices, stop } = start;
    let tell = |notice| {
        // A keeper that is gone, or does not listen, has no use for it.
        let _ = notices.try_send(notice);
    };
    let giver = match Giver::open(end, uid, generation, Instant::now() + OPENED).await {
        Ok(giver) => giver,
        Err(error) => {
            tracing::warn!(path, %error, "no session can move: there is no worker at the other end");
            let why = if matches!(error, HandoffError::Deadline { .. }) { left::TIMEOUT } else { left::PEER_GONE };
            let left = Tally::default().left(&HashSet::new(), census.live(), Some(why));
            let who = BTreeMap::new();
            return tell(Notice::Moved { path, moved: 0, left, who, longest_pause_us: 0, over: true });
        }
    };
    let taker = giver.taker();
    let room = giver.room().map(|room| room.saturating_sub(SPARED));
    let (packed, open, tally) = (VecDeque::new(), Vec::new(), Tally::default());
    let mut give = Give { giver, lines, census, stop, room, packed, open, last: 0, tally };
    let end = match give.first_round().await {
        Ok(()) => {
            tell(give.notice(path, false).await);
            // The last word must find room, whatever was said before it.
            let has_room = || notices.capacity() > 1 && notices.capacity() >= notices.max_capacity() / 2;
            give.late_ones(path, &tell, has_room).await
        }
        Err(end) => end,
    };
    give.take_all_back().await;
    let notice = give.notice(path, true).await;
    let (moved, pause) = (give.tally.moved, Duration::from_micros(give.tally.longest_us));
    match end {
        End::Empty | End::NoRoom | End::Stopped => tracing::info!(path, taker, moved, ?pause, "sessions moved; {end}"),
        End::Path(_) | End::Silent(_) => tracing::warn!(path, taker, moved, ?pause, "sessions move no more: {end}"),
    }
    // After everything else: its end tells the taker to look at the owner words.
    drop(give);
    tell(notice);
}

struct Give {
    giver: Giver,
    lines: Vec<Line>,
    census: Arc<Census>,
    stop: CancellationToken,
    /// Descriptors that the taker has left; `None`: not known.
    room: Option<u64>,
    /// Frozen, and not offered yet.
    packed: VecDeque<Batch>,
    /// Offered, oldest first.
    open: Vec<Batch>,
    /// Number of the last batch.
    last: u64,
    tally: Tally,
}

impl Give {
    /// Everything that can move, and once more what failed.
    async fn first_round(&mut self) -> Result<(), End> {
        self.round().await?;
        while self.tally.begin_again() {
            self.round().await?;
        }
        Ok(())
    }

    /// What was connecting is moved once it is established; until no session is left, or there is no room for it: how much there
    /// is, and whether what was refused fits by then, is the next path's to ask. `tell` is told of it from time to time, as long as
    /// there is room for that.
    async fn late_ones(&mut self, path: u64, tell: impl Fn(Notice), has_room: impl Fn() -> bool) -> End {
        let (mut told, mut told_at) = (self.tally.moved, Instant::now());
        loop {
            if self.census.live() == 0 {
                return End::Empty;
            }
            if self.wants_room() {
                return End::NoRoom;
            }
            if self.tally.moved > told && told_at.elapsed() >= NEWS && has_room() {
                (told, told_at) = (self.tally.moved, Instant::now());
                tell(self.notice(path, false).await);
            }
            let pause = if self.tally.is_awaiting() || self.is_stalled() { LOOK.0 } else { LOOK.1 };
            if let Err(end) = self.wait(pause).await {
                return end;
            }
            self.tally.begin_again();
            if let Err(end) = self.round().await {
                return end;
            }
        }
    }

    /// Once over all sessions: first those that are idle, then what is left.
    async fn round(&mut self) -> Result<(), End> {
        self.sweep(IDLE).await?;
        self.sweep(REST).await
    }

    /// Over all threads, in turn: the sessions of one go on their way while another stops its own.
    async fn sweep(&mut self, sweep: Sweep) -> Result<(), End> {
        let mut threads: VecDeque<usize> = (0..self.lines.len()).collect();
        while let Some(thread) = threads.pop_front() {
            self.settle_to(AHEAD - 1).await?;
            if self.is_stalled() || self.is_full() {
                break;
            }
            if self.freeze(thread, sweep).await? {
                threads.push_back(thread);
            }
        }
        self.settle_to(0).await
    }

    /// Freezes and offers a batch of this thread's sessions; says whether there may be more that can be offered now.
    async fn freeze(&mut self, thread: usize, Sweep { most, idle }: Sweep) -> Result<bool, End> {
        let Some(line) = self.lines.get(thread) else { return Ok(false) };
        let but = self.tally.passed_over();
        let asked = line.tell(|answer| Order::Freeze { most, idle, but, answer }).await;
        let (frozen, begun_ns) = asked.answer().await?;
        if !frozen.is_full && idle.is_zero() {
            self.tally.look(thread, frozen.connecting, frozen.ending);
        }
        let mut batch = Batch::pack(thread, frozen.carried, begun_ns);
        while let Some(rest) = batch.split_off_rest() {
            self.packed.push_back(std::mem::replace(&mut batch, rest));
        }
        self.packed.extend((!batch.is_empty()).then_some(batch));
        let mut fits = true;
        while !self.packed.is_empty() {
            self.settle_to(AHEAD - 1).await?;
            let Some(batch) = self.packed.pop_front() else { break };
            if self.is_stalled() || !self.has_room_for(&batch) {
                // The same ones would be frozen next, and taken back, without end.
                fits = false;
                self.resume_but(batch, &HashSet::new()).await;
            } else {
                self.offer(batch).await?;
            }
        }
        Ok(frozen.is_full && fits)
    }

    async fn offer(&mut self, mut batch: Batch) -> Result<(), End> {
        self.last += 1;
        batch.number = self.last;
        batch.due = Instant::now() + ANSWERED;
        // Whatever happens next, its sessions are known.
        self.open.push(batch);
        let Some(batch) = self.open.last() else { return Ok(()) };
        match tokio::time::timeout_at(batch.due, self.giver.offer(batch.number, batch.items())).await {
            Ok(Ok(())) => {
                self.room = self.room.map(|room| room.saturating_sub(batch.descriptors_but(&HashSet::new())));
                Ok(())
            }
            Ok(Err(error)) if error.is_unsent() => {
                tracing::warn!(%error, "a batch of sessions could not be offered");
                let batch = self.open.pop();
                self.give_up(batch, left::REFUSED).await;
                Ok(())
            }
            Ok(Err(error)) => Err(error.into()),
            // Nobody reads at the other end.
            Err(_) => Err(HandoffError::Deadline { step: "offer", after: ANSWERED }.into()),
        }
    }

    /// Waits until no more than so many batches are on their way.
    async fn settle_to(&mut self, most: usize) -> Result<(), End> {
        while self.open.len() > most {
            let Some(due) = self.open.first().map(|batch| batch.due) else { break };
            tokio::select! {
                biased;
                answer = self.giver.next() => {
                    let (number, verdicts) = answer?;
                    self.answered(number, verdicts).await?;
                }
                () = self.stop.cancelled() => return Err(End::Stopped),
                () = sleep_until(due) => {
                    let late = self.open.remove(0);
                    self.withdraw(late).await?;
                }
            }
        }
        Ok(())
    }

    /// The words are written on the thread that has the records; then the taker is told, and only then our copies are closed.
    async fn answered(&mut self, number: u64, verdicts: Vec<Verdict>) -> Result<(), End> {
        let Some(at) = self.open.iter().position(|batch| batch.number == number) else { return Ok(()) };
        let batch = self.open.remove(at);
        let taken = batch.taken(&verdicts);
        let gone: HashSet<u64> = match self.lines.get(batch.thread) {
            Some(line) if !taken.is_empty() => line.release(taken, self.giver.taker()).await.into_iter().collect(),
            _ => HashSet::new(),
        };
        let told = if gone.is_empty() { self.giver.withdraw(number).await } else { self.giver.release(number).await };
        self.tally.went(&gone);
        if !gone.is_empty() {
            self.tally.stood_still(clock::exact_ns().saturating_sub(batch.begun_ns));
        }
        for (id, why) in batch.refused(&verdicts) {
            self.tally.failed(id, why);
        }
        self.count_room(batch.descriptors_but(&gone));
        self.resume_but(batch, &gone).await;
        Ok(told?)
    }

    /// What the taker has closed comes on top, if it does not say itself what it has left: it accepts clients meanwhile, and
    /// sessions end there. Then what is on its way comes off.
    fn count_room(&mut self, closed: u64) {
        let coming = self.open.iter().map(|batch| batch.descriptors_but(&HashSet::new())).sum::<u64>();
        self.room = match self.giver.room_left() {
            Some(left) => Some(left.saturating_sub(SPARED + coming)),
            None => self.room.map(|room| room + closed),
        };
    }

    async fn withdraw(&mut self, batch: Batch) -> Result<(), End> {
        tracing::warn!(batch = batch.number, "the other worker does not answer; its sessions go on here");
        let number = batch.number;
        let closes = batch.descriptors_but(&HashSet::new());
        self.room = self.room.map(|room| room + closes);
        // They need not wait until the taker knows: without a release it touches nothing.
        self.give_up(Some(batch), left::TIMEOUT).await;
        let told = tokio::time::timeout(ANSWERED, self.giver.withdraw(number)).await;
        Ok(told.unwrap_or(Err(HandoffError::Deadline { step: "withdraw", after: ANSWERED }))?)
    }

    /// Goes on here with a batch that did not go.
    async fn give_up(&mut self, batch: Option<Batch>, why: &'static str) {
        let Some(batch) = batch else { return };
        batch.ids().for_each(|id| self.tally.failed(id, why));
        self.resume_but(batch, &HashSet::new()).await;
    }

    async fn take_all_back(&mut self) {
        for batch in self.packed.drain(..).chain(self.open.drain(..)).collect::<Vec<_>>() {
            self.resume_but(batch, &HashSet::new()).await;
        }
    }

    /// Goes on here with what did not go. These sockets have no other place: there is no deadline.
    async fn resume_but(&mut self, batch: Batch, gone: &HashSet<u64>) {
        let (thread, begun_ns) = (batch.thread, batch.begun_ns);
        let carried = batch.into_carried_but(gone);
        if carried.is_empty() {
            return;
        }
        if let Some(line) = self.lines.get(thread) {
            line.insist(|answer| Order::Resume { carried, answer }).await;
        }
        self.tally.stood_still(clock::exact_ns().saturating_sub(begun_ns));
    }

    async fn wait(&mut self, pause: Duration) -> Result<(), End> {
        tokio::select! {
            // Nothing is open: only the end of the path is news.
            answer = self.giver.next() => answer.map(drop).map_err(Into::into),
            () = self.stop.cancelled() => Err(End::Stopped),
            () = self.census.emptied() => Ok(()),
            () = sleep(pause) => Ok(()),
        }
    }

    /// A batch was taken back and the taker has not said that it knows.
    fn is_stalled(&self) -> bool {
        self.giver.unanswered() > 0
    }

    fn is_full(&self) -> bool {
        self.room.is_some_and(|room| room < Batch::MOST_DESCRIPTORS)
    }

    fn has_room_for(&self, batch: &Batch) -> bool {
        self.room.is_none_or(|room| room >= batch.descriptors_but(&HashSet::new()))
    }

    /// There is none, or there was none for some.
    fn wants_room(&self) -> bool {
        self.is_full() || self.tally.wants_room()
    }

    async fn notice(&mut self, path: u64, over: bool) -> Notice {
        let untried = match (self.wants_room(), self.is_stalled(), over) {
            (true, ..) => Some(left::NO_ROOM),
            (false, true, _) => Some(left::TIMEOUT),
            (false, false, true) => Some(left::PEER_GONE),
            // What came after the look is for the next one.
            (false, false, false) => None,
        };
        let still = self.still_here().await;
        let left = self.tally.left(&still, self.census.live(), untried);
        let Tally { moved, longest_us: longest_pause_us, .. } = self.tally;
        Notice::Moved { path, moved, left, who: self.tally.who(), longest_pause_us, over }
    }

    /// Of those that were offered in vain.
    async fn still_here(&self) -> HashSet<u64> {
        let tried = self.tally.tried();
        let mut still = HashSet::new();
        if tried.is_empty() {
            return still;
        }
        for line in &self.lines {
            let which = Which::These(tried.clone());
            let asked = line.tell(|answer| Order::Measure { which, answer }).await;
            still.extend(asked.answer().await.unwrap_or_default().iter().map(|measured| measured.id));
        }
        still
    }
}
