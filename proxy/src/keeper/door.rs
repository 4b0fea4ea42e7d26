//! What the admin server sees of the keeper: the published scene for reads, the owner loop for commands.

use std::sync::Arc;

use admin::command::{Command, Failure, Filter, Line};
use admin::door::Door;
use admin::view::{EventView, SessionRow, Status};
use arc_swap::ArcSwap;
use prometheus::Registry;
use tokio::sync::mpsc;

use crate::observe::events::Events;
use crate::observe::metrics;
use crate::observe::scene::Scene;

#[derive(Clone)]
pub(super) struct KeeperDoor {
    pub scene: Arc<ArcSwap<Scene>>,
    pub registry: Registry,
    pub happenings: Events,
    pub commands: mpsc::Sender<(Command, mpsc::Sender<Line>)>,
}

impl std::fmt::Debug for KeeperDoor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeeperDoor").finish_non_exhaustive()
    }
}

/// Steps of one operation that its caller has not read yet.
const LINES: usize = 32;

impl Door for KeeperDoor {
    fn status(&self) -> Status {
        self.scene.load().status()
    }

    fn sessions(&self, filter: &Filter) -> Vec<SessionRow> {
        self.scene.load().sessions(filter)
    }

    fn metrics(&self) -> String {
        metrics::exposition(&self.scene.load(), &self.registry)
    }

    fn ready(&self) -> Result<(), String> {
        self.scene.load().ready()
    }

    fn events(&self, since: u64) -> Vec<EventView> {
        self.happenings.since(since)
    }

    fn newest_event(&self) -> u64 {
        self.happenings.last()
    }

    async fn newer_event(&self, seq: u64) -> Option<u64> {
        self.happenings.newer(seq).await
    }

    async fn command(&self, command: Command) -> mpsc::Receiver<Line> {
        let (lines, answer) = mpsc::channel(LINES);
        if let Err(mpsc::error::SendError((_, lines))) = self.commands.send((command, lines)).await {
            let _ = lines.send(Line::Failed(Failure::conflict("proxyd is ending; nothing changed"))).await;
        }
        answer
    }
}
