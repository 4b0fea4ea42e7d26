//! Pictures of documents, as they are shown.

use super::*;
use crate::command::SessionsAtUpgrade;
use crate::view::{BackendView, ConfigView, KeeperView, UpgradeView};

fn rows() -> Vec<SessionRow> {
    let one = SessionRow {
        id: 17,
        generation: 3,
        listener: "postgres".into(),
        pool: "pg".into(),
        backend: "b".into(),
        client: "10.1.2.3:50000".into(),
        backend_address: "10.0.0.1:5432".into(),
        state: "established".into(),
        age_seconds: 3_725.0,
        idle_seconds: 0.25,
        bytes_received: 1_536,
        bytes_sent: 12,
        protection: None,
    };
    vec![one.clone(), SessionRow { id: 1_000, client: "unix".into(), ..one }]
}

fn example() -> Status {
    Status {
        version: "0.1.0".into(),
        keeper: KeeperView { pid: 1, uptime_seconds: 5.25, state: "serving".into() },
        generations: vec![
            GenerationView {
                id: 3,
                pid: 77,
                version: "0.1.0".into(),
                build: String::new(),
                sha256: String::new(),
                silent_seconds: None,
                state: "serving".into(),
                sessions: 1_120,
                oldest_session_seconds: 61.0,
                drain_seconds_left: None,
                moving_to: None,
            },
            GenerationView {
                id: 2,
                pid: 9,
                version: "0.1.0".into(),
                build: String::new(),
                sha256: String::new(),
                silent_seconds: None,
                state: "draining".into(),
                sessions: 4,
                oldest_session_seconds: 90_000.0,
                drain_seconds_left: Some(12.0),
                moving_to: Some(3),
            },
        ],
        listeners: vec![ListenerView {
            name: "postgres".into(),
            bind: vec!["0.0.0.0:5432".into(), "[::]:5432".into()],
            pool: "pg".into(),
            sessions: 1_124,
            paused: false,
            unprotected: Some(3),
        }],
        pools: vec![PoolView {
            name: "pg".into(),
            version: 4,
            backends: vec![BackendView {
                name: "a".into(),
                address: "10.0.0.1:5432".into(),
                weight: 1,
                health: "up".into(),
                admin: "enabled".into(),
                sessions: 60,
            }],
        }],
        config: ConfigView { path: "/etc/proxyd.toml".into(), version: 4, sha256: "ab".into(), pending: false },
        upgrade: None,
    }
}

fn finished(result: UpgradeResult) -> UpgradeReport {
    UpgradeReport {
        id: 5,
        result,
        from: 2,
        to: 3,
        step: "ready".into(),
        reason: "generation 3 hung".into(),
        accept_gap_ms: 0.1,
        longest_pause_ms: 0.0,
        sessions: SessionsAtUpgrade { left: 1_200, ..SessionsAtUpgrade::default() },
        version: "0.1.0".into(),
        keeper: "unchanged".into(),
        seconds: 1.25,
    }
}

#[test]
fn status_is_aligned() {
    let wanted = "\
proxyd 0.1.0, keeper pid 1 serving, up 5.2s
configuration /etc/proxyd.toml version 4

GENERATION  STATE     VERSION  PID  SESSIONS  OLDEST  DRAIN ENDS
         3  serving   0.1.0     77     1,120  1m 1s   -
         2  draining  0.1.0      9         4  1d 1h   in 12s

LISTENER  BIND                    POOL  SESSIONS  STATE
postgres  0.0.0.0:5432,[::]:5432  pg       1,124  accepting, 3 unprotected

POOL  VERSION  BACKEND  ADDRESS        WEIGHT  HEALTH  ADMIN    SESSIONS
pg          4  a        10.0.0.1:5432       1  up      enabled        60
";
    assert_eq!(status(&example(), Style::Plain), wanted);
}

#[test]
fn sessions_are_aligned_and_readable() {
    let wanted = [
        "  ID  GEN  LISTENER  POOL  BACKEND  CLIENT          STATE          AGE   IDLE  RECEIVED  SENT\n",
        "  17    3  postgres  pg    b        10.1.2.3:50000  established  1h 2m  250ms   1.5 KiB  12 B\n",
        "1000    3  postgres  pg    b        unix            established  1h 2m  250ms   1.5 KiB  12 B\n",
    ]
    .concat();
    assert_eq!(sessions(&rows(), Style::Plain), wanted);
}

#[test]
fn sessions_that_are_to_survive_show_whether_they_would() {
    let mut rows = rows();
    rows[1].protection = Some("keeper_full".into());
    let wanted = [
        "  ID  GEN  LISTENER  POOL  BACKEND  CLIENT          STATE          AGE   IDLE  RECEIVED  SENT  PROTECTION\n",
        "  17    3  postgres  pg    b        10.1.2.3:50000  established  1h 2m  250ms   1.5 KiB  12 B  -\n",
        "1000    3  postgres  pg    b        unix            established  1h 2m  250ms   1.5 KiB  12 B  keeper_full\n",
    ]
    .concat();
    assert_eq!(sessions(&rows, Style::Plain), wanted);
}

#[test]
fn a_terminal_gets_a_rule() {
    let drawn = pool_list(&example().pools, Style::Terminal);
    let lines: Vec<&str> = drawn.lines().collect();
    assert_eq!(lines.len(), 3, "{drawn}");
    assert!(lines[1].starts_with("────") && lines[1].chars().all(|c| c == '─'), "{drawn}");
}

#[test]
fn reports_are_one_line() {
    assert_eq!(
        report(&finished(UpgradeResult::Committed)),
        "upgrade 5 committed: generation 2 -> 3, version 0.1.0, in 1.2s; accept gap 0.1 ms; \
         moved 0 sessions, 1,200 left to drain; 0 closed by force\n"
    );
    assert_eq!(
        report(&finished(UpgradeResult::RolledBack)),
        "upgrade 5 rolled back at ready after 1.2s: generation 3 hung; version 0.1.0 serves; moved 0 \
         sessions, 1,200 left to drain\n"
    );
}

#[test]
fn what_moved_is_told_and_why_the_rest_did_not() {
    let why = [("connecting".to_owned(), 4), ("no_room".to_owned(), 2)].into();
    let sessions = SessionsAtUpgrade { moved: 2_220, left: 6, left_why: why, ..SessionsAtUpgrade::default() };
    let wanted = "moved 2,220 sessions (longest pause 3.1 ms), 6 left to drain: 4 connecting, 2 no room";
    assert_eq!(moved(&sessions, 3.12), wanted);
    let rolled_back = UpgradeReport { sessions, longest_pause_ms: 3.12, ..finished(UpgradeResult::RolledBack) };
    assert!(report(&rolled_back).contains(&format!("; {wanted}\n")), "{}", report(&rolled_back));
}

#[test]
fn what_survived_a_crash_and_what_would_not_is_told_where_there_is_any() {
    let sessions = SessionsAtUpgrade { moved: 4, recovered: 1_003, unprotected: 2, ..SessionsAtUpgrade::default() };
    let drawn = report(&UpgradeReport { sessions, ..finished(UpgradeResult::Committed) });
    assert!(drawn.ends_with("; 0 closed by force; 1,003 recovered; 2 unprotected\n"), "{drawn}");
    let older = serde_json::json!({"moved": 1, "left": 0, "forced": 0});
    let read: SessionsAtUpgrade = serde_json::from_value(older).unwrap();
    assert_eq!((read.moved, read.recovered, read.unprotected), (1, 0, 0), "as an older keeper writes it");
}

#[test]
fn what_became_of_the_keeper_is_a_line_of_its_own() {
    let committed = finished(UpgradeResult::Committed);
    let kept = UpgradeReport { keeper: "not upgraded: execve: no memory".into(), ..committed };
    let drawn = report(&kept);
    assert_eq!(drawn.lines().nth(1), Some("keeper not upgraded: execve: no memory"), "{drawn}");
}

#[test]
fn an_upgrade_in_hand_shows_its_step_and_since_when() {
    let upgrade = UpgradeView { id: 7, step: "probation".into(), step_seconds: 3.25, from: 2, to: 3 };
    let standby = GenerationView { state: "standby".into(), ..example().generations[1].clone() };
    let drawn = status(&Status { upgrade: Some(upgrade), generations: vec![standby], ..example() }, Style::Plain);
    assert!(drawn.contains("\nupgrade 7 is at probation for 3.2s: generation 2 -> 3\n"), "{drawn}");
    assert!(drawn.contains("         2  standby  "), "{drawn}");
}

#[test]
fn an_event_is_a_line() {
    let happened = EventView {
        seq: 9,
        time: 1_700_000_000.25,
        event: "worker_lost".into(),
        text: "generation 3 (pid 7) died\n".into(),
        generation: Some(3),
        ..EventView::default()
    };
    let wanted = "2023-11-14T22:13:20.250Z worker_lost            3 generation 3 (pid 7) died\\n\n";
    assert_eq!(event(&happened), wanted);
    for time in [f64::NAN, -1.0, f64::MAX] {
        assert!(event(&EventView { time, ..happened.clone() }).starts_with("1970-01-01T"), "{time}");
    }
}

#[test]
fn c15_text_of_others_cannot_move_the_cursor() {
    assert_eq!(clean("a\u{1b}[2Jb\nc\u{202e}d"), "a\\u{1b}[2Jb\\nc\\u{202e}d");
    let hostile = SessionRow { client: "x\u{1b}]0;y\u{7}\r".into(), ..SessionRow::default() };
    let drawn = sessions(&[hostile], Style::Terminal);
    assert!(!drawn.contains(['\u{1b}', '\u{7}', '\r']), "{drawn:?}");
}

#[test]
fn numbers_for_people() {
    for (value, wanted) in [
        (0.0, "0ms"),
        (0.9994, "999ms"),
        (0.9996, "1.0s"),
        (9.94, "9.9s"),
        (9.96, "9s"),
        (59.9, "59s"),
        (60.0, "1m 0s"),
        (3_600.0, "1h 0m"),
        (187_200.0, "2d 4h"),
        (f64::NAN, "?"),
        (-1.0, "?"),
        (f64::MAX, "213503982334601d 7h"),
    ] {
        assert_eq!(seconds(value), wanted, "{value}");
    }
    for (value, wanted) in
        [(0, "0 B"), (1_023, "1023 B"), (1_024, "1.0 KiB"), (1_048_575, "1.0 MiB"), (u64::MAX, "16.0 EiB")]
    {
        assert_eq!(bytes(value), wanted, "{value}");
    }
    for (value, wanted) in [(0, "0"), (999, "999"), (1_000, "1,000"), (12_345_678, "12,345,678")] {
        assert_eq!(whole_number(value), wanted, "{value}");
    }
}
