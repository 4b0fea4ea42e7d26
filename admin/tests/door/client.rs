//! Client and server together, and the client alone before strangers.

use std::time::Duration;

use crate::harness::{FakeDoor, House, changed, failed, is_there, private_directory, step, within};
use admin::client::{Absence, Client, ClientError};
use admin::command::{Command, Failure, FailureKind, Filter, Line, Reply};
use admin::limits::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

#[tokio::test]
async fn what_is_asked_comes_back() {
    let house = House::with_defaults().await;
    let client = Client::new(&house.socket);
    assert_eq!(client.status().await.unwrap().version, "9.8.7");
    assert_eq!(client.metrics().await.unwrap(), "proxyd_config_version 4\n");
    assert_eq!(client.sessions(&Filter::default()).await.unwrap(), *house.door.rows.lock().unwrap());
    let some = Filter { listener: Some("l1".into()), id: vec![1, 2, 3], ..Filter::default() };
    let ids: Vec<u64> = client.sessions(&some).await.unwrap().iter().map(|row| row.id).collect();
    assert_eq!(ids, [1, 3]);
}

#[tokio::test]
async fn a_command_streams_its_steps() {
    let door = FakeDoor::new().answers([step("spawn"), step("ready"), changed()]);
    let house = House::open(door, Limits::default()).await;
    let wanted = Command::PoolSwap { listener: "l".into(), pool: "p".into(), if_version: Some(1) };
    let mut steps = Vec::new();
    let reply = Client::new(&house.socket).command(&wanted, |line| steps.push(line.clone())).await.unwrap();
    assert_eq!(steps, [step("spawn"), step("ready")]);
    assert!(matches!(reply, Reply::Changed(changed) if changed.version == 5));
    assert_eq!(*house.door.told.borrow(), [wanted]);
}

#[tokio::test]
async fn a8_failures_keep_their_kind() {
    let conflict = Failure::conflict("version 4 is in force");
    let house = House::open(FakeDoor::new().answers([failed(conflict.clone())]), Limits::default()).await;
    let client = Client::new(&house.socket);
    let error = client.command(&Command::Reload, |_| ()).await.unwrap_err();
    assert_eq!(error.exit_code(), 4);
    assert!(matches!(error, ClientError::Refused(failure) if failure == conflict));
    let unchecked = Command::PoolSwap { listener: "BAD".into(), pool: "p".into(), if_version: None };
    let error = client.command(&unchecked, |_| ()).await.unwrap_err();
    assert!(matches!(error, ClientError::Refused(failure) if failure.kind == FailureKind::Usage));
}

#[tokio::test]
async fn silence_is_bounded_between_steps_not_overall() {
    let door = FakeDoor::new().answers([step("spawn"), changed()]);
    door.release.send_replace(false);
    let house = House::open(door, Limits::default()).await;
    let client = Client::new(&house.socket).silence(Duration::from_millis(300));
    let mut steps = 0;
    let error = client.command(&Command::Reload, |_: &Line| steps += 1).await.unwrap_err();
    assert_eq!((steps, error.exit_code()), (1, 5));
    assert!(error.to_string().contains("goes on"), "{error}");
    house.door.release.send_replace(true);
    within(house.door.finished.subscribe().wait_for(|finished| *finished == 1)).await.unwrap();
}

async fn absence(client: &Client) -> Absence {
    let error = within(client.status()).await.unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().starts_with("no proxyd answers at "), "{error}");
    match error {
        ClientError::NoDaemon { why, .. } => why,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a1_no_daemon_is_told_apart_and_nothing_is_deleted() {
    let directory = private_directory();
    let at = |name: &str| directory.path().join(name);
    assert!(matches!(absence(&Client::new(at("missing"))).await, Absence::Missing));
    drop(UnixListener::bind(at("stale")).unwrap());
    let stale = absence(&Client::new(at("stale"))).await;
    assert_eq!(stale.to_string(), "stale socket");
    assert!(is_there(&at("stale")));
    std::fs::write(at("file"), "").unwrap();
    assert!(matches!(absence(&Client::new(at("file"))).await, Absence::NotASocket));
}

/// Answers the first client with `words`, then closes.
async fn stranger(listener: UnixListener, words: &str) {
    let (mut client, _) = listener.accept().await.unwrap();
    let mut request = [0; 4096];
    let _ = client.read(&mut request).await.unwrap();
    client.write_all(words.as_bytes()).await.unwrap();
}

#[tokio::test]
async fn a1_another_programs_socket_is_no_proxyd() {
    let directory = private_directory();
    for (name, words) in [
        ("banner", "220 mail.example.org ESMTP\r\n\r\n"),
        ("http", "HTTP/1.1 404 Not Found\r\nserver: Docker/27\r\ncontent-length: 2\r\n\r\n{}"),
        ("plain", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"),
    ] {
        let path = directory.path().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        let client = Client::new(&path);
        let (why, ()) = tokio::join!(absence(&client), stranger(listener, words));
        assert!(matches!(why, Absence::NotProxyd), "{name}: {why}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_a_result() {
    let directory = private_directory();
    let head = "HTTP/1.1 200 OK\r\nserver: proxyd/0\r\ncontent-length: 999\r\n\r\n";
    for (name, words, code) in [
        ("closed", String::new(), 3),
        ("half", format!("{head}{{\"line\":\"step\",\"step\":\"spawn\",\"detail\":\"\"}}\n{{\"line\""), 3),
        ("nonsense", format!("{head}{{\"line\":\"song\"}}\n"), 1),
    ] {
        let path = directory.path().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        let client = Client::new(&path);
        let (outcome, ()) = tokio::join!(client.command(&Command::Reload, |_| ()), stranger(listener, &words));
        assert_eq!(outcome.unwrap_err().exit_code(), code, "{name}");
    }
}
