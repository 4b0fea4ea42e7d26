//! Whole command lines of `proxyctl` against a server: what is printed where, and the exit code.

use std::ffi::OsString;
use std::io;

use crate::harness::{FakeDoor, Lodge, failed, private_directory, step};
use admin::command::{
    Command, Failure, FailureKind, Killed, Line, Reply, SessionsAtUpgrade, UpgradePlan, UpgradeReport, UpgradeResult,
};
use admin::ctl;
use admin::render::Style;

pub(crate) struct Said {
    pub(crate) code: u8,
    pub(crate) out: String,
    pub(crate) err: String,
}

fn words(line: &str) -> Vec<OsString> {
    line.split(' ').map(OsString::from).collect()
}

pub(crate) fn say(line: &str) -> Said {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = ctl::run(words(line), Style::Plain, &mut out, &mut err);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code, out: text(out), err: text(err) }
}

pub(crate) fn ask(lodge: &Lodge, line: &str) -> Said {
    say(&format!("proxyctl --socket {} {line}", lodge.socket.display()))
}

pub(crate) fn report(result: UpgradeResult) -> UpgradeReport {
    UpgradeReport {
        id: 5,
        result,
        from: 2,
        to: 3,
        step: "finish".into(),
        reason: String::new(),
        accept_gap_ms: 0.1,
        longest_pause_ms: 0.0,
        sessions: SessionsAtUpgrade::default(),
        version: "0.1.0".into(),
        keeper: "unchanged".into(),
        seconds: 1.0,
    }
}

fn done(reply: Reply) -> Line {
    Line::Done(reply)
}

#[test]
fn status_is_a_picture_or_a_document() {
    let lodge = Lodge::open(FakeDoor::new());
    let said = ask(&lodge, "status");
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    assert!(said.out.starts_with("proxyd 9.8.7,") && said.out.contains("GENERATION"), "{}", said.out);
    let said = ask(&lodge, "status --json");
    let document: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(document["version"], "9.8.7");
}

#[test]
fn sessions_are_lines() {
    let lodge = Lodge::open(FakeDoor::new());
    let said = ask(&lodge, "sessions --listener l1");
    assert_eq!((said.code, said.out.lines().count()), (0, 151), "{}", said.err);
    let said = ask(&lodge, "sessions --listener l1 --json");
    assert_eq!(said.out.lines().count(), 150);
    assert!(said.out.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
}

#[test]
fn pools_are_listed_and_shown() {
    let lodge = Lodge::open(FakeDoor::new());
    assert!(ask(&lodge, "pool list").out.contains("pg"));
    let shown: serde_json::Value = serde_json::from_str(&ask(&lodge, "pool show pg --json").out).unwrap();
    assert_eq!(shown["version"], 4);
    let said = ask(&lodge, "pool show nope");
    assert_eq!((said.code, said.out.as_str()), (2, ""));
    assert_eq!(said.err, "proxyctl: no pool `nope`; there are: pg\n");
}

#[test]
fn an_upgrade_shows_its_steps_and_its_report() {
    let upgraded = done(Reply::Upgraded(report(UpgradeResult::Committed)));
    let lodge = Lodge::open(FakeDoor::new().answers([step("spawn"), step("ready"), upgraded]));
    let said = ask(&lodge, "upgrade");
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(lines[..2], ["spawn      spawn begins", "ready      ready begins"]);
    assert!(lines[2].starts_with("upgrade 5 committed: generation 2 -> 3"), "{}", said.out);
    let said = ask(&lodge, "upgrade --json");
    let document: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(document["result"], "committed");
    assert!(matches!(&lodge.door.told.borrow()[..], [Command::Upgrade(_), Command::Upgrade(_)]));
}

#[test]
fn a_failed_upgrade_gives_its_report_and_one_line() {
    for (kind, result, code) in [
        (FailureKind::Failed, UpgradeResult::Failed, 1),
        (FailureKind::RolledBack, UpgradeResult::RolledBack, 6),
        (FailureKind::Conflict, UpgradeResult::Failed, 4),
        (FailureKind::Denied, UpgradeResult::Failed, 7),
    ] {
        let mut failure = Failure::new(kind, "upgrade failed at ready: it hung; generation 2 still serving");
        failure.report = Some(Box::new(serde_json::to_value(report(result)).unwrap()));
        let lodge = Lodge::open(FakeDoor::new().answers([step("spawn"), failed(failure)]));
        let said = ask(&lodge, "upgrade --json");
        assert_eq!(said.code, code);
        assert_eq!(said.err, "proxyctl: upgrade failed at ready: it hung; generation 2 still serving\n");
        let document: serde_json::Value = serde_json::from_str(&said.out).unwrap();
        assert_eq!(document["id"], 5);
    }
}

#[test]
fn other_replies_have_their_picture() {
    let plan = UpgradePlan {
        binary: "/opt/p".into(),
        version: "2".into(),
        config: "/etc/p".into(),
        kept: vec!["0.0.0.0:1".into()],
        added: vec!["0.0.0.0:2".into()],
        removed: vec![],
    };
    let killed = Killed { dry_run: false, matched: 3, closed: 2, sessions: vec![] };
    for (reply, line, wanted) in [
        (Reply::Plan(plan), "upgrade --dry-run", "keep    0.0.0.0:1\nadd     0.0.0.0:2\n"),
        (Reply::Started { id: 9 }, "upgrade --no-wait", "upgrade 9 has begun"),
        (Reply::Killed(killed), "kill --all", "closed 2 of 3 sessions"),
        (Reply::ShuttingDown, "shutdown", "shutting down"),
    ] {
        let lodge = Lodge::open(FakeDoor::new().answers([done(reply)]));
        let said = ask(&lodge, line);
        assert_eq!(said.code, 0, "{line}: {}", said.err);
        assert!(said.out.contains(wanted), "{line}: {}", said.out);
        let json = ask(&lodge, &format!("{line} --json")).out;
        assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "{line}: {json}");
    }
}

#[test]
fn metrics_come_as_they_are() {
    let lodge = Lodge::open(FakeDoor::new());
    assert_eq!(ask(&lodge, "metrics").out, "proxyd_config_version 4\n");
    let said = ask(&lodge, "metrics --json");
    assert_eq!((said.code, said.out.as_str()), (2, ""));
}

#[test]
fn a1_no_daemon_is_exit_3() {
    let directory = private_directory();
    let said = say(&format!("proxyctl --socket {}/none status", directory.path().display()));
    assert_eq!(said.code, 3);
    assert_eq!(
        said.err,
        format!("proxyctl: no proxyd answers at {}/none (no such socket)\n", directory.path().display())
    );
}

#[test]
fn a3_wrong_words_are_exit_2_and_ask_nobody() {
    let lodge = Lodge::open(FakeDoor::new());
    for line in [
        "kill",
        "kill --all --pool p",
        "explode",
        "rollback 3",
        "upgrade --sessions keep",
        "upgrade --last --no-wait",
        "pool swap UP pg",
        "pool add pg db:1",
    ] {
        let said = ask(&lodge, line);
        assert_eq!((said.code, said.out.as_str()), (2, ""), "{line}");
        assert!(said.err.starts_with("proxyctl: ") && !said.err.contains("error: "), "{line}: {}", said.err);
    }
    assert!(lodge.door.told.borrow().is_empty());
}

#[test]
fn a_silent_upgrade_is_exit_5() {
    let door = FakeDoor::new().answers([step("spawn"), done(Reply::ShuttingDown)]);
    door.release.send_replace(false);
    let lodge = Lodge::open(door);
    let said = ask(&lodge, "upgrade --timeout 300ms");
    assert_eq!(said.code, 5, "{}", said.err);
    assert!(said.err.contains("goes on"), "{}", said.err);
    assert!(said.err.contains("upgrade 12"), "the id is named: {}", said.err);
}

#[test]
fn help_and_completions_are_answers() {
    let said = say("proxyctl --help");
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    assert!(said.out.contains("upgrade") && said.out.contains("Exit codes: 0 done"), "{}", said.out);
    for shell in ["bash", "zsh", "fish"] {
        let said = say(&format!("proxyctl completions {shell}"));
        assert!(said.code == 0 && said.out.contains("proxyctl"), "{shell}");
    }
}

struct Closed;

impl io::Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `proxyctl upgrade | head -0`: the result is still the exit code.
#[test]
fn a_reader_that_leaves_is_no_failure() {
    let lodge =
        Lodge::open(FakeDoor::new().answers([step("spawn"), done(Reply::Upgraded(report(UpgradeResult::RolledBack)))]));
    for (line, wanted) in [("sessions", 0), ("upgrade", 6)] {
        let line = format!("proxyctl --socket {} {line}", lodge.socket.display());
        let mut err = Vec::new();
        let code = ctl::run(words(&line), Style::Plain, &mut Closed, &mut err);
        assert_eq!((code, String::from_utf8(err).unwrap().as_str()), (wanted, ""));
    }
}
