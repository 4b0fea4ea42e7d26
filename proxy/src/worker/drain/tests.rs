//! Who is closed when.

use super::*;
use crate::session::Unsent;

fn candidate(id: u64, idle_ms: u64, to_client: i64, to_backend: i64) -> Candidate {
    Candidate {
        line: 0,
        measured: Measured { id, opened_ms: 0, idle_ms, unsent: Unsent { to_client, to_backend } },
        put_back: false,
    }
}

fn ids(candidates: &[Candidate]) -> Vec<u64> {
    candidates.iter().map(|it| it.measured.id).collect()
}

#[test]
fn longest_idle_first_then_fewest_unsent_and_the_unknown_last() {
    let candidates = [
        candidate(1, 5, 0, 0),
        candidate(2, 900, 70, 1),
        candidate(3, 900, -1, 0),
        candidate(4, 800, 0, 0),
        candidate(5, 1, 0, 3),
    ];
    let mut queue: Queue = candidates.into_iter().collect();
    assert_eq!(ids(&queue.take(9)), [4, 1, 5, 2, 3]);
}

#[test]
fn what_got_busier_waits_once() {
    let mut queue: Queue = [candidate(1, 900, 0, 0), candidate(2, 500, 0, 0)].into_iter().collect();
    assert_eq!(ids(&queue.take(1)), [1]);
    let busy = candidate(1, 1, 10, 0);
    assert!(queue.put_back_busier(vec![busy]).is_empty());
    assert_eq!(ids(&queue.take(1)), [2]);
    let again = queue.take(1);
    assert_eq!(ids(&again), [1]);
    queue.0.insert(Queued(candidate(3, 1, 0, 0)));
    assert_eq!(ids(&queue.put_back_busier(again)), [1]);
}

#[test]
fn closes_are_spread_evenly_and_end_with_the_window() {
    let start = Instant::now();
    let window = Window { start, spread: Duration::from_secs(5) };
    assert_eq!(window.due(120, start), 0);
    assert_eq!(window.due(120, start + Duration::from_millis(2_500)), 60);
    assert_eq!(window.due(120, start + Duration::from_secs(5)), 120);
    assert_eq!(window.time_of(60, 120), start + Duration::from_millis(2_500));
    let at_once = Window { start, spread: Duration::ZERO };
    assert_eq!(at_once.due(7, start), 7);
}
