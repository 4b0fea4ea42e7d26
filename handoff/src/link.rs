//! One end of the conversation: the channel, and the order of words that is enforced on it.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::channel::{Channel, ChannelError};
use crate::codec::{self, Word};
use crate::error::HandoffError;
use crate::message::{Budget, Message};
use crate::sequence::{Action, Event, OutOfTurn, Predecessor, Successor};

/// A role's state machine; see [`crate::sequence`].
pub(crate) trait Role: Clone + Default {
    /// What both roles of this conversation say.
    type Word: Word;
    /// What is due after a word.
    type Action;
    fn on(self, event: Event<'_, Self::Word>) -> Result<(Self, Self::Action), OutOfTurn>;
    fn state(&self) -> &'static str;
}

impl Role for Predecessor {
    type Word = Message;
    type Action = Action;
    fn on(self, event: Event<'_>) -> Result<(Self, Action), OutOfTurn> {
        self.on(event)
    }
    fn state(&self) -> &'static str {
        self.state()
    }
}

impl Role for Successor {
    type Word = Message;
    type Action = Action;
    fn on(self, event: Event<'_>) -> Result<(Self, Action), OutOfTurn> {
        self.on(event)
    }
    fn state(&self) -> &'static str {
        self.state()
    }
}

/// Its role moves only with a record that was really sent or received, so every call may be dropped and made again.
#[derive(Debug)]
pub(crate) struct Link<R: Role> {
    channel: Channel<R::Word>,
    pub(crate) role: R,
    /// What the errors name until the hand-over is done; then they name the role's state.
    handshake: Option<&'static str>,
}

impl<R: Role> Link<R> {
    pub(crate) fn new(channel: Channel<R::Word>) -> Self {
        Self { channel, role: R::default(), handshake: Some("hello") }
    }

    /// A conversation that is live already.
    pub(crate) fn resumed(channel: Channel<R::Word>, role: R) -> Self {
        Self { channel, role, handshake: None }
    }

    pub(crate) fn channel(&self) -> &Channel<R::Word> {
        &self.channel
    }

    pub(crate) fn into_channel(self) -> Channel<R::Word> {
        self.channel
    }

    pub(crate) fn step(&self) -> &'static str {
        self.handshake.unwrap_or_else(|| self.role.state())
    }

    pub(crate) fn begin(&mut self, step: &'static str) {
        self.handshake = Some(step);
    }

    /// Runs a part of the hand-over. If it fails, the other side is told why, without waiting for it.
    pub(crate) async fn within<T>(
        &mut self,
        deadline: Instant,
        part: impl AsyncFnOnce(&mut Self) -> Result<T, HandoffError>,
    ) -> Result<T, HandoffError> {
        let begun = Instant::now();
        let result = match timeout_at(deadline, part(self)).await {
            Ok(result) => result,
            Err(_) => Err(HandoffError::Deadline { step: self.step(), after: begun.elapsed() }),
        };
        if let Err(error) = &result {
            self.refuse(error);
        }
        result
    }

    /// From here on errors name the state of the role.
    pub(crate) fn live(&mut self) {
        self.handshake = None;
    }

    /// Sends if it is the word's turn; else nothing has happened.
    pub(crate) async fn send(&mut self, message: &R::Word, fds: &[BorrowedFd<'_>]) -> Result<R::Action, HandoffError> {
        let (next, action) = self.turn(Event::Out(message))?;
        if let Err(error) = self.channel.send(message, fds).await {
            return Err(self.explained(error));
        }
        self.role = next;
        Ok(action)
    }

    /// [`Self::send`], but a peer that does not read is given up after [`PATIENCE`].
    pub(crate) async fn send_soon(&mut self, message: &R::Word, fds: &[BorrowedFd<'_>]) -> Result<(), HandoffError> {
        let sent = timeout_at(Instant::now() + PATIENCE, self.send(message, fds)).await;
        sent.unwrap_or_else(|_| Err(HandoffError::Deadline { step: self.step(), after: PATIENCE })).map(drop)
    }

    /// The next word, if it is its turn.
    pub(crate) async fn recv(&mut self) -> Result<(R::Word, Vec<OwnedFd>, R::Action), HandoffError> {
        let received = self.channel.recv().await;
        let (message, fds) = received.map_err(|error| HandoffError::channel(self.step(), error))?;
        if let Some(cause) = message.refused() {
            return Err(self.refused(cause));
        }
        let (next, action) = self.turn(Event::In(&message))?;
        self.role = next;
        Ok((message, fds, action))
    }

    /// A word that the role lets pass and the caller has no use for.
    pub(crate) fn unexpected(&self, message: &R::Word) -> HandoffError {
        let rule = "another word is awaited";
        let source = OutOfTurn { state: self.role.state(), got: message.name(), direction: "received", rule };
        HandoffError::OutOfTurn { step: self.step(), source }
    }

    /// Tells the other side why this one stops, if there is anything to tell and room to tell it.
    pub(crate) fn refuse(&self, error: &HandoffError) {
        if error.is_ours_to_tell() {
            let cause = codec::printable(&error.to_string());
            // Nothing depends on it: the end of file that follows says the same without the reason.
            drop(self.channel.try_send(&R::Word::refusal(cause)));
        }
    }

    fn turn(&self, event: Event<'_, R::Word>) -> Result<(R, R::Action), HandoffError> {
        let step = self.step();
        self.role.clone().on(event).map_err(|source| HandoffError::OutOfTurn { step, source })
    }

    /// A peer that went away may have said why; its words are still in our queue.
    fn explained(&self, error: ChannelError) -> HandoffError {
        if matches!(error, ChannelError::Gone) {
            while let Ok(Some((message, _))) = self.channel.try_recv() {
                if let Some(cause) = message.refused() {
                    return self.refused(cause);
                }
            }
        }
        HandoffError::channel(self.step(), error)
    }

    fn refused(&self, cause: &str) -> HandoffError {
        HandoffError::Refused { step: self.step(), cause: codec::printable(cause) }
    }
}

/// This process' limit of open files and how many are open; `None` without `/proc`.
pub(crate) fn budget() -> Option<Budget> {
    budget_at_once().or_else(|| {
        let listed = std::fs::read_dir("/proc/self/fd").ok()?.count() as u64;
        // The listing itself is one of them.
        Some(Budget { limit: crate::channel::limit(), open: listed.saturating_sub(1) })
    })
}

/// As [`budget`], never with a listing, which takes milliseconds where thousands are open; `None` before Linux 6.2.
pub(crate) fn budget_at_once() -> Option<Budget> {
    let open = std::fs::metadata("/proc/self/fd").ok()?.len();
    (open > 0).then(|| Budget { limit: crate::channel::limit(), open })
}

/// A peer in service reads its channel all the time; heartbeats are given up after 2 s, so 5 s is a stalled process.
const PATIENCE: Duration = Duration::from_secs(5);
