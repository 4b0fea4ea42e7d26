//! What the HTTP side needs from the keeper, and nothing more.

use tokio::sync::mpsc;

use crate::command::{Command, Filter, Line};
use crate::view::{EventView, SessionRow, Status};

/// What stands behind the door. Reads never wait for the owner loop.
///
/// A clone is a handle: cheap, and the same keeper behind it.
pub trait Door: Clone + Send + Sync + 'static {
    fn status(&self) -> Status;

    fn sessions(&self, filter: &Filter) -> Vec<SessionRow>;

    /// Prometheus text, version 0.0.4.
    fn metrics(&self) -> String;

    /// `Err` says why not: starting, draining, shutting down.
    fn ready(&self) -> Result<(), String>;

    /// Those events still kept that came after this number, oldest first.
    fn events(&self, since: u64) -> Vec<EventView>;

    /// The number of the newest event; 0 before the first.
    fn newest_event(&self) -> u64;

    /// Resolves to the newest number once it is above this one; `None` if there will be no more events.
    fn newer_event(&self, seq: u64) -> impl Future<Output = Option<u64>> + Send;

    /// Starts a command. Lines come on the channel, the last is [`Line::Done`], [`Line::Failed`] or
    /// [`Line::Reconnect`].
    ///
    /// Dropping the receiver does not cancel the command. The receiver is read as fast as the client reads, so a
    /// sender that must not wait (the owner loop) leaves room for every line it will send, or uses `try_send`.
    fn command(&self, command: Command) -> impl Future<Output = mpsc::Receiver<Line>> + Send;
}
