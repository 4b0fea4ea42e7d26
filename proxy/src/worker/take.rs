//! The end of a path at which sessions come to this worker: held when offered, started when released. Whether one is ours is
//! said by the owner word of its record alone; a word of the giver, or the end of the path, is when to look.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use handoff::HandoffError;
use handoff::transfer::{Coming, Item, Taker, Verdict};
use tokio::time::Instant;

use super::order::{Line, Order};
use crate::listener::Unheld;
use crate::session::{Carried, Census};

/// For the giver to be at the other end: the keeper tells the taker first.
const OPENED: Duration = Duration::from_secs(10);

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
    let mut take = Take { taker, lines, census, held: HashMap::new(), came: 0 };
    let end = take.follow().await;
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
                Ok(Coming::Release { batch }) => {
                    let held = self.held.remove(&batch).unwrap_or_default();
                    self.came += held.len();
                    self.start(held).await;
                    Ok(())
                }
                Ok(Coming::Withdraw { batch }) => {
                    let held = self.held.remove(&batch).unwrap_or_default();
                    self.let_go(held).await;
                    Ok(())
                }
                Err(error) => Err(error),
            };
            if let Err(error) = done {
                return error;
            }
        }
    }

    /// Holds what can be held, spread over the threads, and says so.
    async fn offered(&mut self, batch: u64, items: Vec<Item>) -> Result<(), HandoffError> {
        let mut verdicts: Vec<Verdict> = Vec::with_capacity(items.len());
        let mut shares: Vec<Vec<(usize, Carried)>> = self.lines.iter().map(|_| Vec::new()).collect();
        let mut busy: Vec<usize> =
            self.lines.iter().map(|line| self.census.of_thread(line.thread).unwrap_or_default()).collect();
        for (place, item) in items.into_iter().enumerate() {
            verdicts.push(Verdict::Refused { why: "no data thread holds it".into() });
            let Some(thread) = (0..busy.len()).min_by_key(|thread| busy[*thread]) else { continue };
            match unpack(item) {
                Ok(carried) => {
                    busy[thread] += 1;
                    shares[thread].push((place, carried));
                }
                Err(error) => verdicts[place] = Verdict::Refused { why: format!("its state cannot be read: {error}") },
            }
        }
        let held = self.hold(shares, &mut verdicts).await;
        self.held.insert(batch, held);
        self.taker.taken(batch, &verdicts).await.map(drop)
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
        Err(error) => Verdict::Refused { why: error.to_string() },
    }
}

fn unpack(item: Item) -> Result<Carried, serde_json::Error> {
    let Item { id, place, state, hand, client, backend, pipes } = item;
    let state = serde_json::from_str(&state)?;
    Ok(Carried { id, place, state, hand, client, backend, pipes, writers: [None, None] })
}
