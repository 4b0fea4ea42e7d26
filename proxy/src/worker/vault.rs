//! What data threads deposit with the keeper, and what it answers. They deposit by themselves; here they are told by what
//! channel, and what was refused.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use handoff::vault::{Depositor, Refused};
use tokio::task::JoinSet;

use super::order::{Line, Order};
use super::plane::Plane;

/// The channel to the keeper's custody, if there is one.
#[derive(Debug, Default)]
pub(super) struct Vault {
    /// One task at most: it hears the answers.
    hears: JoinSet<()>,
}

impl Vault {
    /// A channel in the place of the one before.
    pub(super) async fn open(&mut self, plane: &Plane, end: OwnedFd) {
        self.hears.shutdown().await;
        match Depositor::new(end) {
            Ok(depositor) => {
                if let Err(error) = depositor.confess() {
                    tracing::warn!(%error, "should this worker crash, the keeper will not know by which session");
                }
                let depositor = Arc::new(depositor);
                let lines = plane.lines().to_vec();
                deposit_with(&lines, Some(&depositor)).await;
                self.hears.spawn(hear(depositor, lines));
            }
            Err(error) => {
                tracing::warn!(%error, "nothing can be left with the keeper: sessions would not survive a crash");
                deposit_with(plane.lines(), None).await;
            }
        }
    }
}

/// Until the channel ends.
async fn hear(depositor: Arc<Depositor>, lines: Vec<Line>) {
    let error = loop {
        match depositor.refused().await {
            Ok(Refused { id, thread }) => {
                if let Some(line) = lines.get(usize::from(thread)) {
                    line.leave_word(|answer| Order::TurnAway { id, answer }).await;
                }
            }
            Err(error) => break error,
        }
    };
    tracing::warn!(%error, "the keeper holds no sessions any more: until another does, they would not survive a crash");
    deposit_with(&lines, None).await;
}

async fn deposit_with(lines: &[Line], depositor: Option<&Arc<Depositor>>) {
    for line in lines {
        let depositor = depositor.map(Arc::clone);
        line.leave_word(|answer| Order::DepositWith { depositor, answer }).await;
    }
}
