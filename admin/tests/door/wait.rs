//! `proxyctl wait`, `rollback`, `upgrade --last` and `events` as whole command lines.

use crate::harness::{FakeDoor, Lodge, failed, private_directory, step};
use crate::proxyctl::{ask, report, say};
use admin::command::{Command, Failure, FailureKind, Line, Reply, Rollback, UpgradeResult};
use admin::view::{BackendView, EventView, GenerationView, KeeperView, PoolView, SessionRow, Status};

fn keeper(state: &str) -> Status {
    let old = GenerationView {
        id: 1,
        pid: 7,
        state: "draining".into(),
        sessions: 4,
        oldest_session_seconds: 65.0,
        ..GenerationView::default()
    };
    let new = GenerationView { id: 2, pid: 8, state: "serving".into(), ..GenerationView::default() };
    let backend = BackendView { name: "a".into(), ..BackendView::default() };
    Status {
        keeper: KeeperView { pid: 1, state: state.into(), ..KeeperView::default() },
        generations: vec![old, new],
        pools: vec![PoolView { name: "pg".into(), backends: vec![backend], ..PoolView::default() }],
        ..Status::default()
    }
}

fn lodge(status: Status, sessions_of: &str) -> Lodge {
    let door = FakeDoor::new();
    *door.seen.lock().unwrap() = Some(status);
    let row = SessionRow { pool: "pg".into(), backend: sessions_of.into(), ..SessionRow::default() };
    *door.rows.lock().unwrap() = vec![row];
    Lodge::open(door)
}

#[test]
fn what_is_so_is_exit_0() {
    let idle = Status { generations: vec![keeper("serving").generations[1].clone()], ..keeper("serving") };
    let lodge = lodge(idle, "b");
    for (line, said) in [
        ("wait ready", "ready, after "),
        ("wait drained", "drained, after "),
        ("wait generation-gone 1", "generation 1 gone, after "),
        ("wait backend-empty pg a", "backend a of pool pg empty, after "),
    ] {
        let answer = ask(&lodge, line);
        assert_eq!((answer.code, answer.err.as_str()), (0, ""), "{line}");
        assert!(answer.out.starts_with(said), "{line}: {}", answer.out);
        let document: serde_json::Value = serde_json::from_str(&ask(&lodge, &format!("{line} --json")).out).unwrap();
        assert!(document["seconds"].is_number(), "{document}");
    }
}

#[test]
fn what_is_not_so_in_time_is_exit_5_with_what_is_still_true() {
    let lodge = lodge(keeper("restarting"), "a");
    for (line, still) in [
        ("wait ready", "not ready after 300ms: proxyd (pid 1) is restarting"),
        ("wait drained", "generation 1 (pid 7) is draining with 4 sessions, the oldest open for 1m 5s"),
        ("wait generation-gone 2", "generation 2 (pid 8) is serving with 0 sessions"),
        ("wait backend-empty pg a", "backend a of pool pg has 1 sessions"),
    ] {
        let answer = ask(&lodge, &format!("{line} --timeout 300ms"));
        assert_eq!((answer.code, answer.out.as_str()), (5, ""), "{line}: {}", answer.err);
        assert!(answer.err.contains(still) && answer.err.lines().count() == 1, "{line}: {}", answer.err);
    }
}

/// While a shutdown is only announced, the generation still serves; it will drain.
#[test]
fn what_is_about_to_drain_has_not_drained() {
    let serving = vec![keeper("").generations[1].clone()];
    let lodge = lodge(Status { generations: serving, ..keeper("shutting-down") }, "a");
    let answer = ask(&lodge, "wait drained --timeout 300ms");
    assert_eq!(answer.code, 5, "{}", answer.out);
}

#[test]
fn unknown_names_are_exit_2_and_name_what_exists() {
    let lodge = lodge(keeper("serving"), "b");
    let answer = ask(&lodge, "wait backend-empty nope a");
    assert_eq!((answer.code, answer.err.as_str()), (2, "proxyctl: no pool `nope`; there are: pg\n"));
    let answer = ask(&lodge, "wait backend-empty pg z");
    assert_eq!((answer.code, answer.err.as_str()), (2, "proxyctl: no backend `z` in pool pg; there are: a\n"));
    // Taken out of its pool, but with a session: it drains.
    assert_eq!(ask(&lodge, "wait backend-empty pg b --timeout 200ms").code, 5);
}

#[test]
fn a_keeper_that_is_away_is_waited_for() {
    let directory = private_directory();
    let socket = directory.path().join("admin.sock");
    let answer = say(&format!("proxyctl --socket {} wait ready --timeout 300ms", socket.display()));
    assert_eq!(answer.code, 5);
    assert!(answer.err.contains("no proxyd answers at"), "{}", answer.err);

    let lodge = lodge(keeper("serving"), "a");
    let (path, link) = (socket.clone(), lodge.socket.clone());
    let waiting = std::thread::spawn(move || say(&format!("proxyctl --socket {} wait ready", path.display())));
    // Whether it looks before or after this, it must find it.
    std::os::unix::fs::symlink(link, socket).unwrap();
    assert_eq!(waiting.join().unwrap().code, 0);
}

#[test]
fn what_drains_is_gone_with_a_keeper_that_was_ending() {
    let lodge = lodge(keeper("shutting-down"), "a");
    let line = format!("proxyctl --socket {} wait drained", lodge.socket.display());
    let waiting = std::thread::spawn(move || say(&line));
    let mut asked = lodge.door.asked.subscribe();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { asked.wait_for(|asked| *asked > 0).await.unwrap() });
    drop(lodge);
    assert_eq!(waiting.join().unwrap().code, 0);
}

#[test]
fn rolled_back_is_exit_6_unless_it_was_asked_for() {
    let rolled_back = Line::Done(Reply::Upgraded(report(UpgradeResult::RolledBack)));
    let lodge = Lodge::open(FakeDoor::new().answers([step("probation"), rolled_back]));
    let answer = ask(&lodge, "rollback --probation 2s");
    assert_eq!(answer.code, 0, "{}", answer.err);
    assert!(answer.out.contains("probation  probation begins\n"), "{}", answer.out);
    assert_eq!(ask(&lodge, "upgrade --last").code, 6);
    assert_eq!(ask(&lodge, "upgrade --sessions drain --probation 1m30s").code, 6);
    let told = lodge.door.told.borrow().clone();
    assert_eq!(told[0], Command::Rollback(Rollback { no_wait: false, probation: Some(2.0) }));
    assert_eq!(told[1], Command::Report { id: None });
    assert!(matches!(&told[2], Command::Upgrade(upgrade) if upgrade.probation == Some(90.0)), "{told:?}");
    *lodge.door.script.lock().unwrap() = vec![failed(Failure::new(FailureKind::Failed, "no upgrade has run yet"))];
    let answer = ask(&lodge, "upgrade --last");
    assert_eq!((answer.code, answer.err.as_str()), (1, "proxyctl: no upgrade has run yet\n"));
}

#[test]
fn events_are_lines_for_people_or_programs() {
    let lodge = Lodge::open(FakeDoor::new());
    lodge.door.happens(1..=3, 1);
    let answer = ask(&lodge, "events --since 1");
    assert_eq!((answer.code, answer.err.as_str()), (0, ""));
    assert_eq!(answer.out.lines().next(), Some("1970-01-01T00:00:00.000Z test                   - event 2"));
    let seen: Vec<u64> = ask(&lodge, "events --json")
        .out
        .lines()
        .map(|line| serde_json::from_str::<EventView>(line).unwrap().seq)
        .collect();
    assert_eq!(seen, [1, 2, 3]);
}
