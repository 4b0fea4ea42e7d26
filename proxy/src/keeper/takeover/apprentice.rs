//! The heir on trial: a keeper that follows another one's words, and passes them to its worker. If the other one is gone,
//! the lock says whether it lives: then this one withdraws, else all is its own.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use handoff::manifest::Entry;
use handoff::message::Pulse;
use handoff::successor::{Order as Word, Reply, Successor};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::super::event::Event;
use super::super::generation::{Deadline, State};
use super::super::link::{Link, PathEnd};
use super::super::owner::Keeper;
use super::super::run::RunError;
use super::super::spawn::Ready;
use super::super::upgrade::{LOST, SILENCE, retirement};
use super::words::{Behest, Legacy, Response};
use crate::config::order::{Answer, Order};

/// What the other keeper said, or why it says no more.
#[derive(Debug)]
pub(in super::super) enum Told {
    Word(Box<Word>),
    Gone(String),
}

#[derive(Debug)]
enum Saying {
    Polling(u64),
    Stopped(u64),
    Answer(u64, Vec<u8>),
    Heartbeat(Pulse),
}

#[derive(Debug)]
pub(in super::super) struct Apprentice {
    line: mpsc::Sender<Saying>,
    /// The order to begin, until it is answered.
    order: Option<u64>,
    /// READY, not polling: its generation, and the segments it was given.
    ready: Option<(u32, Link, usize)>,
    /// Was told to poll.
    pub is_committed: bool,
    /// Why this will not become the keeper.
    why: Option<String>,
    /// The admin sockets, before all is ours.
    pub given: Vec<(Entry, OwnedFd)>,
    pub from: PathBuf,
    pub door: PathBuf,
    task: AbortOnDropHandle<()>,
}

/// For the other keeper to tell its worker to drain, and to let go of it.
const FAREWELL: Duration = Duration::from_secs(10);
/// Words that wait; the other side awaits an answer to each.
const QUEUE: usize = 64;

impl Apprentice {
    pub(in super::super) fn new(
        successor: Successor,
        order: u64,
        from: PathBuf,
        door: PathBuf,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let (line, sayings) = mpsc::channel(QUEUE);
        let task = tokio::task::spawn_local(async move {
            let Err(error) = converse(successor, sayings, &events).await else { return };
            // The loop may have ended, which is the end of this as well.
            let _ = events.send(Event::Told(Told::Gone(error.to_string()))).await;
        });
        let (order, task) = (Some(order), AbortOnDropHandle::new(task));
        let (ready, is_committed, why, given) = (None, false, None, Vec::new());
        Self { line, order, ready, is_committed, why, given, from, door, task }
    }

    fn say(&self, saying: Saying) {
        // A full line is one whose other end does not read: it will be seen as silent.
        let _ = self.line.try_send(saying);
    }

    fn answer(&self, id: u64, answer: &impl Serialize) {
        self.say(Saying::Answer(id, serde_json::to_vec(answer).unwrap_or_default()));
    }

    /// Waits until all that was said is on its way.
    pub(super) async fn last_words(&self, id: u64, answer: &Response) {
        self.answer(id, answer);
        let _ = tokio::time::timeout(Duration::from_secs(1), async {
            while self.line.capacity() < QUEUE {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

async fn converse(
    mut successor: Successor,
    mut sayings: mpsc::Receiver<Saying>,
    events: &mpsc::Sender<Event>,
) -> Result<(), handoff::HandoffError> {
    loop {
        tokio::select! {
            word = successor.next() => {
                if events.send(Event::Told(Told::Word(Box::new(word?)))).await.is_err() {
                    return Ok(());
                }
            }
            saying = sayings.recv() => match saying {
                Some(Saying::Polling(first_poll_ns)) => successor.send(Reply::Polling { first_poll_ns }).await?,
                Some(Saying::Stopped(last_poll_ns)) => successor.send(Reply::Stopped { last_poll_ns }).await?,
                Some(Saying::Answer(id, body)) => successor.send(Reply::Answer { id, body: &body }).await?,
                Some(Saying::Heartbeat(pulse)) => successor.send(Reply::Heartbeat(pulse)).await?,
                None => return Ok(()),
            },
        }
    }
}

impl Keeper {
    /// The heir's worker is READY, and waits until the other keeper commits.
    pub(in super::super) fn ready_on_trial(&mut self, ready: Ready) {
        let given = ready.segments;
        let ready = self.enlist(ready, State::Starting);
        let Some(apprentice) = &mut self.apprentice else { return };
        apprentice.ready = Some(ready);
        let Some(order) = apprentice.order.take() else { return };
        apprentice.answer(order, &Response::Done);
        tracing::debug!(segments = given, "the heir's worker is READY");
    }

    /// It will not become the keeper. The other one is told if it waits for an answer, and ends the conversation.
    pub(in super::super) fn fail_on_trial(&mut self, why: String) {
        let Some(apprentice) = &mut self.apprentice else { return };
        if let Some(order) = apprentice.order.take() {
            apprentice.answer(order, &Response::Refused { why: why.clone() });
            apprentice.why = Some(why);
        } else {
            self.end_on_trial(why);
        }
    }

    fn end_on_trial(&mut self, why: String) {
        let Some(apprentice) = &self.apprentice else { return };
        let why = apprentice.why.clone().unwrap_or(why);
        self.ended = Some(Err(RunError::TakeOver { door: apprentice.door.clone(), why }));
    }

    pub(in super::super) async fn told(&mut self, told: Told) {
        match told {
            Told::Word(word) => self.heed(*word).await,
            Told::Gone(why) => self.forsaken(why),
        }
    }

    async fn heed(&mut self, word: Word) {
        match word {
            Word::Commit => self.commit_on_trial().await,
            Word::Stop => {
                let stopped = match self.serving_generation() {
                    Some(serving) => serving.link.clone().stop().await,
                    None => return,
                };
                match (stopped, &self.apprentice) {
                    (Ok(last_poll), Some(apprentice)) => apprentice.say(Saying::Stopped(last_poll)),
                    (Err(error), _) => tracing::error!(%error, "the worker does not stop"),
                    _ => {}
                }
            }
            Word::Order { id, body } => self.order_on_trial(id, &body),
            Word::Segment { fd, .. } => self.grow_on_trial(fd).await,
            Word::Sockets(given) => {
                if let Some(apprentice) = &mut self.apprentice {
                    apprentice.given.extend(given);
                }
            }
            Word::Path { id, role, other, end } => self.path_on_trial(PathEnd { id, role, other, end }),
            // Meant for a worker, which has one of this keeper.
            Word::Door(_) | Word::Vault(_) => {}
        }
    }

    async fn commit_on_trial(&mut self) {
        let Some((generation, link, segments)) = self.apprentice.as_mut().and_then(|one| one.ready.take()) else {
            return;
        };
        match self.begin(&link, segments).await {
            Ok(first_poll) => {
                if let Some(generation) = self.generations.get_mut(&generation) {
                    generation.state = State::Serving;
                }
                self.serve(generation);
                if let Some(apprentice) = &mut self.apprentice {
                    apprentice.is_committed = true;
                    apprentice.say(Saying::Polling(first_poll));
                }
            }
            Err(error) => self.end_on_trial(format!("its worker does not serve: {error}")),
        }
    }

    fn order_on_trial(&mut self, id: u64, body: &[u8]) {
        if let Ok(behest) = serde_json::from_slice::<Behest>(body) {
            return match behest {
                Behest::Own(legacy) if !self.closing => self.begin_to_inherit(id, *legacy),
                _ => self.answer_on_trial(id, &Response::Refused { why: "not now".into() }),
            };
        }
        match serde_json::from_slice::<Order>(body) {
            Ok(order @ (Order::Drain { .. } | Order::Finish)) => {
                if matches!(order, Order::Finish) {
                    // Rolled back: it ends with its worker.
                    (self.closing, self.serving) = (true, None);
                    self.sockets.leave_all();
                }
                self.pass_on(id, order);
            }
            Ok(order @ (Order::Probe { .. } | Order::Close { .. })) => self.pass_on(id, order),
            // This keeper tells its worker what is in force here.
            Ok(Order::Keep { .. }) => self.answer_on_trial(id, &Answer::Done),
            Ok(_) => self.answer_on_trial(id, &Answer::Refused { why: "not during a take-over".into() }),
            Err(error) => {
                self.answer_on_trial(id, &Answer::Refused { why: format!("the order cannot be read: {error}") })
            }
        }
    }

    fn begin_to_inherit(&mut self, id: u64, legacy: Legacy) {
        self.inheritance = Some(super::Inheritance { order: Some(id), legacy: Some(legacy) });
    }

    fn answer_on_trial(&self, id: u64, answer: &impl Serialize) {
        if let Some(apprentice) = &self.apprentice {
            apprentice.answer(id, answer);
        }
    }

    /// To the worker, beside the loop.
    fn pass_on(&mut self, id: u64, order: Order) {
        let Some(link) = self.generations.values().next().map(|one| one.link.clone()) else { return };
        let Some(line) = self.apprentice.as_ref().map(|one| one.line.clone()) else { return };
        self.tasks.spawn_local(async move {
            let answer = link.order("the other keeper's order", &order).await;
            let answer = answer.unwrap_or_else(|error| Answer::Refused { why: error.to_string() });
            let _ = line.send(Saying::Answer(id, serde_json::to_vec(&answer).unwrap_or_default())).await;
        });
    }

    /// Sessions of a worker of the other keeper that died come to ours, which serves. Beside the loop.
    fn path_on_trial(&mut self, end: PathEnd) {
        let Some(link) = self.serving_generation().map(|serving| serving.link.clone()) else { return };
        self.tasks.spawn_local(async move {
            if let Err(error) = link.path(end).await {
                tracing::warn!(%error, "sessions of the other keeper do not come");
            }
        });
    }

    async fn grow_on_trial(&mut self, fd: OwnedFd) {
        let added = self.ledger.add(fd).and_then(|segment| {
            self.count_in_newest()?;
            Ok(segment)
        });
        let segment = match added {
            Ok(segment) => segment,
            Err(error) => return self.end_on_trial(format!("a segment of the ledger is not usable: {error}")),
        };
        let Some(serving) = self.serving_generation() else { return };
        let link = serving.link.clone();
        let sent = match segment.descriptor().try_clone_to_owned() {
            Ok(fd) => link.segment(segment.index(), fd).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = sent {
            tracing::warn!(%error, "the worker did not take a new ledger segment");
        }
    }

    /// That the loop and the worker live.
    pub(in super::super) fn beat_on_trial(&self, now: tokio::time::Instant) {
        let (Some(apprentice), Some(serving)) = (&self.apprentice, self.serving_generation()) else { return };
        if self.watch.silence(&serving.link.heard(), now) < SILENCE {
            let searches = serving.link.heard().searches();
            let pulse = Pulse { sessions: 0, connects: Some(searches.begun), failures: Some(searches.failed) };
            apprentice.say(Saying::Heartbeat(pulse));
        }
    }

    /// The other keeper is gone, or has ended the conversation.
    fn forsaken(&mut self, why: String) {
        match &self.apprentice {
            Some(_) if self.closing => {}
            Some(apprentice) if apprentice.is_committed && apprentice.why.is_none() => {
                tracing::warn!(why, "the keeper before is not heard any more");
                self.inheritance = Some(super::Inheritance { order: None, legacy: None });
            }
            Some(_) => self.end_on_trial(why),
            None => {}
        }
    }

    /// Takes no new sessions any more, ends with those it has, and is no keeper.
    pub(in super::super) async fn withdraw(&mut self, why: String) {
        tracing::error!("{why}; what was accepted here drains");
        let drain = self.config().drain;
        if let Some(apprentice) = &mut self.apprentice {
            apprentice.why = Some(why);
            // End of file tells the other keeper, if it lives, before anything else.
            apprentice.hang_up();
        }
        self.closing = true;
        self.sockets.leave_all();
        let Some(id) = self.serving.take() else { return self.end_on_trial(String::new()) };
        let Some(generation) = self.generations.get_mut(&id) else { return };
        generation.state = State::Failed;
        generation.deadline = Some(Deadline::after(drain.timeout.unwrap_or(LOST)));
        let link = generation.link.clone();
        if let Err(error) = link.stop().await {
            tracing::warn!(generation = id, %error, "the worker did not confirm that it stopped");
        }
        self.tasks.spawn_local(retirement(
            link,
            id,
            crate::config::Drain { timeout: Some(drain.timeout.unwrap_or(LOST)), ..drain },
        ));
    }

    /// The worker of an heir on trial has ended.
    pub(in super::super) fn exited_on_trial(&mut self, text: &str) {
        let why = if self.closing { "rolled back by the keeper that serves".into() } else { text.to_owned() };
        self.end_on_trial(why);
    }
}

impl Apprentice {
    /// Until the other keeper has let go of its workers, and says no more.
    pub(super) async fn farewell(mut self) {
        if tokio::time::timeout(FAREWELL, &mut self.task).await.is_err() {
            tracing::warn!("the keeper before does not end the conversation");
        }
    }

    fn hang_up(&mut self) {
        self.task.abort();
    }
}
