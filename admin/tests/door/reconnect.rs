//! A keeper that replaces itself in the middle of an upgrade, and a probation that lasts.

use std::time::Duration;

use crate::harness::{FakeDoor, House, body, exchange, failed, post, step, within};
use admin::client::{Client, ClientError};
use admin::command::{
    Command, Failure, FailureKind, Line, Reply, SessionsAtUpgrade, Upgrade, UpgradeReport, UpgradeResult,
};
use admin::limits::Limits;

fn report(id: u64) -> Line {
    Line::Done(Reply::Upgraded(UpgradeReport {
        id,
        result: UpgradeResult::Committed,
        from: 1,
        to: 2,
        step: "finish".into(),
        reason: String::new(),
        accept_gap_ms: 0.0,
        longest_pause_ms: 0.0,
        sessions: SessionsAtUpgrade::default(),
        version: "2".into(),
        keeper: "upgraded".into(),
        seconds: 1.0,
    }))
}

const GO: Line = Line::Reconnect { upgrade: 7 };

async fn upgrade(client: &Client) -> (Result<Reply, ClientError>, Vec<Line>) {
    let mut steps = Vec::new();
    let command = Command::Upgrade(Upgrade::default());
    let reply = within(client.command(&command, |line| steps.push(line.clone()))).await;
    (reply, steps)
}

fn told_of_the_report(reply: &Result<Reply, ClientError>) -> bool {
    matches!(reply, Ok(Reply::Upgraded(report)) if report.id == 7 && report.keeper == "upgraded")
}

#[tokio::test]
async fn the_next_keeper_is_asked_for_the_report() {
    let house = House::open(FakeDoor::new().answers([step("finish"), GO]), Limits::default()).await;
    let client = Client::new(&house.socket);
    let next = async {
        let mut told = house.door.told.subscribe();
        within(told.wait_for(|told| !told.is_empty())).await.unwrap();
        let successor = FakeDoor::new();
        *successor.reports.lock().unwrap() = [vec![step("keeper"), report(7)]].into();
        house.succeeded_by(successor).await
    };
    let ((reply, steps), house) = tokio::join!(upgrade(&client), next);
    assert!(told_of_the_report(&reply), "{reply:?}");
    assert_eq!(steps, [step("finish"), step("keeper")]);
    assert_eq!(house.door.told.borrow().last(), Some(&Command::Report { id: Some(7) }));
}

/// The old keeper still answers, says so again, then breaks off without a result.
#[tokio::test]
async fn it_is_asked_until_there_is_one() {
    let door = FakeDoor::new().answers([GO]);
    *door.reports.lock().unwrap() = [vec![GO], vec![GO], vec![report(7)]].into();
    let house = House::open(door, Limits::default()).await;
    let (reply, _) = upgrade(&Client::new(&house.socket)).await;
    assert!(told_of_the_report(&reply), "{reply:?}");
    assert_eq!(house.door.told.borrow().len(), 4);
}

#[tokio::test]
async fn what_it_says_at_last_counts() {
    let door = FakeDoor::new().answers([GO]);
    let rolled_back = Failure::new(FailureKind::RolledBack, "upgrade rolled back at probation: it hung");
    *door.reports.lock().unwrap() = [vec![failed(rolled_back)]].into();
    let house = House::open(door, Limits::default()).await;
    let (reply, _) = upgrade(&Client::new(&house.socket)).await;
    assert_eq!(reply.unwrap_err().exit_code(), 6);
}

#[tokio::test]
async fn a_keeper_that_does_not_come_back_is_exit_5_with_the_id() {
    for comes_back in [false, true] {
        let house = House::open(FakeDoor::new().answers([GO]), Limits::default()).await;
        let client = Client::new(&house.socket).silence(Duration::from_millis(300));
        let end = async {
            let mut told = house.door.told.subscribe();
            within(told.wait_for(|told| !told.is_empty())).await.unwrap();
            if comes_back {
                return Some(house);
            }
            house.close().await;
            None
        };
        let ((reply, _), _house) = tokio::join!(upgrade(&client), end);
        let error = reply.unwrap_err();
        assert_eq!(error.exit_code(), 5, "{error}");
        assert!(error.to_string().contains("upgrade 7") && error.to_string().contains("--last"), "{error}");
    }
}

/// Longer than the silence that is borne between two steps.
#[tokio::test]
async fn a_probation_is_waited_for_and_no_other_step() {
    let door = FakeDoor::new().answers([step("probation"), report(7)]);
    door.release.send_replace(false);
    *door.step.lock().unwrap() = "probation".into();
    let house = House::open(door, Limits::default()).await;
    let client = Client::new(&house.socket).silence(Duration::from_millis(200));
    let release = async {
        tokio::time::sleep(Duration::from_millis(900)).await;
        house.door.release.send_replace(true);
    };
    let ((reply, _), ()) = tokio::join!(upgrade(&client), release);
    assert!(told_of_the_report(&reply), "{reply:?}");

    house.door.release.send_replace(false);
    *house.door.step.lock().unwrap() = "ready".into();
    let (reply, _) = upgrade(&client).await;
    assert_eq!(reply.unwrap_err().exit_code(), 5);
    house.door.release.send_replace(true);
}

#[tokio::test]
async fn the_answer_ends_with_the_word_to_come_back() {
    let house = House::open(FakeDoor::new().answers([step("finish"), GO]), Limits::default()).await;
    let answer = exchange(house.unix().await, &post(r#"{"verb":"upgrade"}"#)).await;
    let lines: Vec<&str> = body(&answer).lines().filter(|line| line.starts_with('{')).collect();
    assert_eq!(lines.len(), 2, "{answer}");
    assert!(lines[1].contains(r#""line":"reconnect""#), "{answer}");
}
