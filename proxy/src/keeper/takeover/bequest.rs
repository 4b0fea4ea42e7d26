//! The end of a take-over, the keeper's side: the heir gets what is left; this process stays until its workers have ended.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use admin::command::{Line, Reply, SessionsAtUpgrade, UpgradeReport, UpgradeResult};
use handoff::ledger::{Ledger, Sizes};
use handoff::manifest::Entry;

use super::super::doors::Doors;
use super::super::link::Link;
use super::super::owner::Keeper;
use super::super::state_dir::StateDir;
use super::words::{ADMIN_TCP, ADMIN_UNIX, Behest, Legacy, Response};
use crate::observe::scene::Standing;

/// The probation is over: the heir is to have everything.
#[derive(Debug)]
pub(in super::super) struct Bequest {
    heir: u32,
    link: Link,
    report: UpgradeReport,
}

/// The heir waits for the lock up to 2 s, and binds its own admin sockets if they are not ours.
const ANSWER: Duration = Duration::from_secs(5);

impl Keeper {
    /// Instead of the end of an upgrade: the loop hands over what stands around it.
    pub(in super::super) fn bequeath(&mut self) {
        let Some(serving) = self.serving_generation() else { return };
        let (heir, link) = (serving.id, serving.link.clone());
        let Some(upgrade) = &self.upgrade else { return };
        let Some(trial) = &upgrade.trial else { return };
        let (gap, left) = trial.figures();
        let report = UpgradeReport {
            accept_gap_ms: gap.as_secs_f64() * 1e3,
            sessions: SessionsAtUpgrade { left, unprotected: self.unprotected(), ..SessionsAtUpgrade::default() },
            ..self.report(upgrade, UpgradeResult::Committed, "")
        };
        self.bequest = Some(Bequest { heir, link, report });
    }

    /// Gives the heir everything. Admin is not served meanwhile. On failure all is the keeper's, and the take-over is rolled
    /// back.
    pub(in super::super) async fn hand_on(&mut self, bequest: Bequest, doors: &Doors, lock: &StateDir) -> bool {
        if self.trial().is_none() {
            // Rolled back while admin requests were being finished.
            return false;
        }
        let (state, _) = self.state();
        let given = async {
            let (unix, tcp, admin_file) = doors.sockets();
            let state = serde_json::to_string(&state)?;
            bequest.link.sockets(admin_sockets(unix, tcp)?).await.map_err(|error| error.to_string())?;
            lock.release()?;
            let legacy = Legacy { state, report: bequest.report.clone(), admin_file };
            let own = Behest::Own(Box::new(legacy));
            match bequest.link.say("all of it", &own, ANSWER).await {
                Ok(Response::Refused { why }) => Err(why.into()),
                Ok(_) => Ok(()),
                Err(error) => Err(error.to_string().into()),
            }
        };
        let given: Result<(), Box<dyn std::error::Error>> = given.await;
        let Err(error) = given else { return true };
        // Who holds the lock is the keeper: an heir that has it needs no answer of ours.
        if let Err(error) = lock.reclaim() {
            tracing::warn!(%error, "the heir has the lock, and did not say so");
            return true;
        }
        self.roll_back(&format!("generation {}: {error}", bequest.heir)).await;
        false
    }

    /// Nothing is this process' any more but the workers that drain, and of those only the deaths.
    pub(in super::super) async fn retire_as_keeper(&mut self, report: UpgradeReport) -> Result<(), io::Error> {
        let id = report.id;
        tracing::info!(
            upgrade = id,
            to = report.to,
            "another installation has taken over; this one ends with its last worker"
        );
        self.retire_standby().await;
        // The heir is given all anew.
        self.vault.clear();
        let heir = self.serving.take();
        for generation in self.generations.values() {
            generation.link.sever();
        }
        self.generations.retain(|id, _| Some(*id) != heir);
        self.reports.keep(report.clone());
        self.finish_upgrade(Line::Done(Reply::Upgraded(report)));
        // The counters are another's: what dies here is counted by the heir.
        let of_its_own = Sizes { names: 8, counters: 256, gauges: 64, blocks: 2, records: 1 };
        self.ledger = Ledger::create(of_its_own).map_err(io::Error::other)?;
        self.count_in_newest().map_err(io::Error::other)?;
        self.sockets.leave_all();
        (self.standing, self.closing, self.retired) = (Standing::ShuttingDown, true, true);
        if self.generations.is_empty() {
            self.ended = Some(Ok(()));
        }
        Ok(())
    }
}

impl Bequest {
    pub(in super::super) fn report(&self) -> UpgradeReport {
        self.report.clone()
    }
}

fn admin_sockets(unix: &OwnedFd, tcp: Option<&OwnedFd>) -> io::Result<Vec<(Entry, OwnedFd)>> {
    let all = [(ADMIN_UNIX, Some(unix)), (ADMIN_TCP, tcp)];
    let present = all.into_iter().filter_map(|(id, fd)| Some((id, fd?)));
    present.map(|(id, fd)| Ok((Entry::of(id, fd)?, fd.try_clone()?))).collect()
}
