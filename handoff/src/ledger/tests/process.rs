//! The ledger between processes: a worker is killed where it stands, and nothing that it counted is lost.

use std::process::{Child, Command, Stdio};

use super::*;

/// Set for the child only.
const ROLE: &str = "PROXYD_TEST_LEDGER_WORKER";
const SESSIONS: usize = 40;

struct Worker(Child);

impl Worker {
    /// This test binary once more, which runs [`worker`] only, with the segment as its standard input.
    fn start(ledger: &Ledger, generation: u32) -> Self {
        let fd = ledger.descriptor(0).unwrap().try_clone_to_owned().unwrap();
        let worker = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "ledger::tests::process::worker"])
            .env(ROLE, generation.to_string())
            .stdin(Stdio::from(fd))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(worker)
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may be dead already, and a failing test says enough.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Without its role it is not the child, and there is nothing to test.
#[test]
fn worker() {
    use std::os::fd::AsFd;
    let Ok(generation) = std::env::var(ROLE) else { return };
    let segment = Arc::new(Segment::open(std::io::stdin().as_fd().try_clone_to_owned().unwrap()).unwrap());
    let writer = Writer::lease(Arc::clone(&segment), generation.parse().unwrap(), 5).unwrap();
    let front = segment.find(1, "front").unwrap();
    let (counters, gauges) = (writer.counters(front), writer.gauges(front));
    let mut records = Vec::new();
    for n in 0..SESSIONS {
        counters.add(0, 1);
        gauges.raise(0);
        let client = format!("10.0.0.1:{}", n + 1);
        let record = writer.claim(&opening(&segment, &client)).unwrap();
        record.established(segment.find(3, "b1").unwrap(), address("10.0.0.2:80"));
        record.received(n as u64);
        records.push(record);
    }
    records.iter().take(10).for_each(|record| record.closed(1));
    // Until it is killed; or its parent is gone without having done so.
    let end = Instant::now() + DEADLINE;
    while Instant::now() < end {
        counters.add(1, 1);
    }
}

#[test]
fn a_killed_worker_leaves_its_counts_and_its_sessions() {
    let ledger = ledger(SMALL);
    for generation in 1..=3 {
        let worker = Worker::start(&ledger, generation);
        let closed = || sessions(ledger.segments()).iter().filter(|session| session.phase == Phase::Closed).count();
        until("the worker serves its sessions", || closed() == 10 && total(&ledger, 1, "front").counters[1] > 0);
        assert_eq!(total(&ledger, 1, "front").gauges[0], SESSIONS as u64);
        assert_eq!(sessions(ledger.segments()).len(), SESSIONS);
        worker.kill();

        let before = total(&ledger, 1, "front").counters;
        assert_eq!(before[0], SESSIONS as u64 * u64::from(generation));
        let mut buried = bury_all(&ledger, generation);
        buried.sort_by_key(|session| session.received);
        let told: Vec<_> = buried.iter().map(|session| session.received).collect();
        assert_eq!(told, (10..SESSIONS as u64).collect::<Vec<_>>(), "all but those that were closed");
        assert!(buried.iter().all(|session| session.generation == generation && session.thread == 5));
        assert!(buried.iter().all(|session| session.backend == "b1" && session.listener == "front"));
        let after = total(&ledger, 1, "front");
        assert_eq!((after.counters, after.gauges[0]), (before, 0));
        assert!(sessions(ledger.segments()).is_empty());
    }
    assert_eq!(last(&ledger).used().len(), 1, "one block served all three");
}

#[test]
fn a_worker_killed_at_any_moment_blocks_nothing() {
    let ledger = ledger(SMALL);
    for generation in 1..=10 {
        let worker = Worker::start(&ledger, generation);
        let wanted = generation as usize * 3;
        until("the worker is at work", || sessions(ledger.segments()).len() >= wanted);
        worker.kill();
        assert!(bury_all(&ledger, generation).len() <= SESSIONS);
        assert_eq!(sessions(ledger.segments()).len(), 0);
    }
    let writer = writer(&ledger, 11, 0);
    let segment = last(&ledger);
    let records: Vec<_> = std::iter::from_fn(|| writer.claim(&opening(&segment, "10.0.0.1:1"))).collect();
    assert_eq!(records.len(), 64, "every record is free again");
}
