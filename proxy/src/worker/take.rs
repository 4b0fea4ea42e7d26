//! The end of a path at which sessions come to this worker: held when offered, started when released. Whether one is ours is
//! said by the owner word of its record alone; a word of the giver, or the end of the path, is when to look.

use std::collections::{BTreeSet, HashMap};
use std::error::Error;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use handoff::HandoffError;
use handoff::transfer::{Coming, Item, Taker, Verdict};
use rustix::io::Errno;
use tokio::time::Instant;

use super::order::{Line, Order};
use crate::config::order::left;
use crate::listener::Unheld;
use crate::session::{Carried, Census};

/// For the giver to be at the other end: the keeper tells the taker first.
const OPENED: Duration = Duration::from_secs(10);

const NO_THREAD: &str = "no data thread holds it";

/// What a taker begins with.
#[derive(Debug)]
pub(super) struct Start {
    /// The keeper's number of the path.
    pub(super) path: u64,
    pub(super) end: OwnedFd,
    pub(super) uid: u32,
    pub(super) generation: u32,
    pub(super) lines: Vec<Line>,
    pub(super) census: Arc<Census>,
}

/// Until the giver ends the path. It may stand still between its words for as long as it likes: what is held is its until then.
pub(super) async fn run(start: Start) {
    let Start { path, end, uid, generation, lines, census } = start;
    let taker = match Taker::open(end, uid, generation, Instant::now() + OPENED).await {
        Ok(taker) => taker,
        Err(error) => return tracing::warn!(path, %error, "no session comes: there is no worker at the other end"),
    };
    let giver = taker.giver();
    let (counting, held) = (HashMap::new(), HashMap::new());
    let mut take = Take { taker, lines, census, counting, held, came: 0 };
    let end = take.follow().await;
    take.hear_out().await;
    take.settle_all().await;
    let came = take.came;
    if matches!(end, HandoffError::Gone { .. }) {
        tracing::info!(path, giver, came, "sessions came, and the path is over");
    } else {
        tracing::warn!(path, giver, came, "no more sessions come: {end}");
    }
}

struct Take {
    taker: Taker,
    lines: Vec<Line>,
    census: Arc<Census>,
    /// Places of the lines to threads that count in a ledger segment.
    counting: HashMap<u32, Vec<usize>>,
    /// Sessions of each open batch: the thread that holds it, and its id.
    held: HashMap<u64, Vec<(usize, u64)>>,
    /// Sessions that were released.
    came: usize,
}

impl Take {
    async fn follow(&mut self) -> HandoffError {
        loop {
            let done = match self.taker.next().await {
                Ok(Coming::Offered { batch, items }) => self.offered(batch, items).await,
                Ok(word) => {
                    self.decided(word).await;
                    Ok(())
                }
                Err(error) => Err(error),
            };
            if let Err(error) = done {
                return error;
            }
        }
    }

    /// After an error of this end, which the giver was told. It may read an answer before that, and give what was taken: to let go
    /// of it would leave it to nobody. So the path stays until all that is held is decided; there is no deadline, as a giver that
    /// is stopped may wake at any time, and one that is dead has ended the path.
    async fn hear_out(&mut self) {
        while self.held.values().any(|held| !held.is_empty()) {
            let Some(word) = self.taker.hear_out().await else { return };
            self.decided(word).await;
        }
    }

    async fn decided(&mut self, word: Coming) {
        match word {
            Coming::Release { batch } => {
                let held = self.held.remove(&batch).unwrap_or_default();
                self.came += held.len();
                self.start(held).await;
            }
            Coming::Withdraw { batch } => {
                let held = self.held.remove(&batch).unwrap_or_default();
                self.let_go(held).await;
            }
            // Nothing is taken any more.
            Coming::Offered { .. } => {}
        }
    }

    /// Holds what can be held, spread over the threads that can count it, and says so.
    async fn offered(&mut self, batch: u64, items: Vec<Item>) -> Result<(), HandoffError> {
        let mut verdicts: Vec<Verdict> = Vec::with_capacity(items.len());
        let mut shares: Vec<Vec<(usize, Carried)>> = self.lines.iter().map(|_| Vec::new()).collect();
        let mut counting = HashMap::new();
        for segment in items.iter().map(|item| item.place.segment).collect::<BTreeSet<_>>() {
            counting.insert(segment, self.counting_in(segment).await);
        }
        let mut busy: Vec<usize> =
            self.lines.iter().map(|line| self.census.of_thread(line.thread).unwrap_or_default()).collect();
        for (place, item) in items.into_iter().enumerate() {
            let thread = least_busy(&counting, &busy, item.place.segment);
            match thread.and_then(|thread| Ok((thread, unpack(item)?))) {
                Ok((thread, carried)) => {
                    busy[thread] += 1;
                    shares[thread].push((place, carried));
                    verdicts.push(Verdict::Refused { why: NO_THREAD.into() });
                }
                Err(why) => verdicts.push(Verdict::Refused { why }),
            }
        }
        let held = self.hold(shares, &mut verdicts).await;
        self.held.insert(batch, held);
        self.taker.taken(batch, &verdicts).await.map(drop)
    }

    /// Those that can count sessions of a segment: an earlier one may not have blocks for all threads. One after the other,
    /// as blocks are left for later generations. `Err`: none, and why.
    async fn counting_in(&mut self, segment: u32) -> Result<Vec<usize>, String> {
        if let Some(known) = self.counting.get(&segment) {
            return Ok(known.clone());
        }
        let (mut counting, mut why) = (Vec::new(), NO_THREAD.to_owned());
        for (place, line) in self.lines.iter().enumerate() {
            match line.tell(|answer| Order::CountIn { segment, answer }).await.answer().await {
                Ok(Ok(())) => counting.push(place),
                Ok(Err(error)) => why = error.to_string(),
                Err(error) => why = error.to_string(),
            }
        }
        if counting.is_empty() {
            return Err(why);
        }
        self.counting.insert(segment, counting.clone());
        Ok(counting)
    }

    /// All threads at once; each notes what it holds.
    async fn hold(&self, shares: Vec<Vec<(usize, Carried)>>, verdicts: &mut [Verdict]) -> Vec<(usize, u64)> {
        let mut asked = Vec::new();
        for (line, share) in self.lines.iter().zip(shares).filter(|(_, share)| !share.is_empty()) {
            let (places, carried): (Vec<usize>, Vec<Carried>) = share.into_iter().unzip();
            let ids: Vec<u64> = carried.iter().map(|carried| carried.id).collect();
            let answer = line.tell(|answer| Order::Hold { carried, answer }).await;
            asked.push((line, places, ids, answer));
        }
        let mut held = Vec::new();
        for (line, places, ids, answer) in asked {
            let Ok(answers) = answer.answer().await else {
                // It may yet do what it was told; then it must not keep it.
                line.leave_word(|answer| Order::LetGo { ids, answer }).await;
                continue;
            };
            for ((place, id), answer) in places.into_iter().zip(ids).zip(answers) {
                if answer.is_ok() {
                    held.push((line.thread, id));
                }
                verdicts[place] = verdict(line, answer);
            }
        }
        held
    }

    async fn settle_all(&mut self) {
        for (_, held) in std::mem::take(&mut self.held) {
            self.start(held).await;
        }
    }

    /// Each thread looks at the owner words of what it holds.
    async fn start(&self, held: Vec<(usize, u64)>) {
        for (line, ids) in self.by_line(&held) {
            line.leave_word(|answer| Order::Start { ids, answer }).await;
        }
    }

    async fn let_go(&self, held: Vec<(usize, u64)>) {
        for (line, ids) in self.by_line(&held) {
            line.leave_word(|answer| Order::LetGo { ids, answer }).await;
        }
    }

    fn by_line<'a>(&'a self, held: &[(usize, u64)]) -> Vec<(&'a Line, Vec<u64>)> {
        let ids_of =
            |line: &Line| held.iter().filter(|(thread, _)| *thread == line.thread).map(|(_, id)| *id).collect();
        let shares = self.lines.iter().map(|line| (line, ids_of(line)));
        shares.filter(|(_, ids): &(_, Vec<u64>)| !ids.is_empty()).collect()
    }
}

fn verdict(line: &Line, answer: Result<(), Unheld>) -> Verdict {
    match answer {
        // There are fewer threads than a u16 counts.
        Ok(()) => Verdict::Taken { thread: u16::try_from(line.thread).unwrap_or(u16::MAX) },
        Err(error) if is_want_of_descriptors(&error) => Verdict::Refused { why: left::NO_ROOM.into() },
        Err(error) => Verdict::Refused { why: error.to_string() },
    }
}

/// That passes, and is not the session's fault.
fn is_want_of_descriptors(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source())
        .filter_map(|cause| Errno::from_io_error(cause.downcast_ref()?))
        .any(|errno| matches!(errno, Errno::MFILE | Errno::NFILE))
}

/// Of the threads that can count sessions of this segment.
fn least_busy(
    counting: &HashMap<u32, Result<Vec<usize>, String>>,
    busy: &[usize],
    segment: u32,
) -> Result<usize, String> {
    let Some(threads) = counting.get(&segment) else { return Err(NO_THREAD.into()) };
    let threads = threads.as_ref().map_err(String::clone)?;
    threads.iter().copied().min_by_key(|thread| busy[*thread]).ok_or_else(|| NO_THREAD.into())
}

fn unpack(item: Item) -> Result<Carried, String> {
    let Item { id, place, state, hand, client, backend, pipes } = item;
    let state = serde_json::from_str(&state).map_err(|error| format!("its state cannot be read: {error}"))?;
    Ok(Carried { id, place, state, hand, client, backend, pipes, writers: [None, None] })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::session::{NotHeld, Unfit};

    #[test]
    fn want_of_descriptors_is_told_from_what_does_not_pass() {
        let told = |unfit: Unfit| {
            let line = Line::new(0).0;
            match verdict(&line, Err(Unheld::NotHeld(NotHeld::Unfit(unfit)))) {
                Verdict::Refused { why } => why,
                Verdict::Taken { .. } => panic!("it was not"),
            }
        };
        for errno in [Errno::MFILE, Errno::NFILE] {
            assert_eq!(told(Unfit::NoWriter(errno.into())), left::NO_ROOM);
            assert_eq!(told(Unfit::Socket(io::Error::from(errno))), left::NO_ROOM);
        }
        let lasting = [Unfit::NoWriter(Errno::NOENT.into()), Unfit::NoWay, Unfit::Bytes { said: 1, found: 0 }];
        for unfit in lasting {
            let text = unfit.to_string();
            assert_eq!(told(unfit), text);
        }
    }
}
