//! Every route, over real sockets: who gets what.

use crate::harness::{FakeDoor, House, body, changed, exchange, get, post, rest, step, within};
use admin::limits::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn what_is_seen_is_seen_on_both_sockets() {
    let house = House::with_defaults().await;
    for (path, word) in [
        ("/healthz", "ok\n"),
        ("/readyz", "ready\n"),
        ("/metrics", "proxyd_config_version 4\n"),
        ("/", "9.8.7"),
        ("/?part=body", "9.8.7"),
        ("/?part=script", "fetch('/?part=body'"),
    ] {
        for answer in [exchange(house.unix().await, &get(path)).await, exchange(house.tcp().await, &get(path)).await] {
            assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
            assert!(answer.contains("server: proxyd/") && answer.contains("cache-control: no-store"), "{answer}");
            assert!(body(&answer).contains(word), "{path}: {answer}");
        }
    }
    let metrics = exchange(house.tcp().await, &get("/metrics")).await;
    assert!(metrics.contains("content-type: text/plain; version=0.0.4"), "{metrics}");
}

#[tokio::test]
async fn head_has_no_body() {
    let house = House::with_defaults().await;
    for path in ["/", "/metrics", "/healthz", "/readyz"] {
        let answer = exchange(house.tcp().await, &get(path).replace("GET", "HEAD")).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && body(&answer).is_empty(), "{path}: {answer}");
    }
}

#[tokio::test]
async fn readyz_says_why_not() {
    let house = House::with_defaults().await;
    *house.door.ready.lock().unwrap() = Err("draining".into());
    let answer = exchange(house.tcp().await, &get("/readyz")).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && body(&answer) == "draining\n", "{answer}");
    let healthy = exchange(house.tcp().await, &get("/healthz")).await;
    assert!(healthy.starts_with("HTTP/1.1 200 "), "{healthy}");
}

#[tokio::test]
async fn the_words_of_the_unix_socket_are_unknown_to_tcp() {
    let house = House::with_defaults().await;
    for path in ["/v1/status", "/v1/sessions", "/v1/command"] {
        let answer = exchange(house.tcp().await, &get(path)).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
    }
    let status = exchange(house.unix().await, &get("/v1/status")).await;
    assert!(status.starts_with("HTTP/1.1 200 ") && body(&status).contains(r#""version":"9.8.7""#), "{status}");
}

#[tokio::test]
async fn a5_tcp_takes_no_post_and_no_foreign_page() {
    let house = House::with_defaults().await;
    for path in ["/v1/command", "/", "/metrics", "/nowhere"] {
        let request = post(r#"{"verb":"shutdown"}"#).replace("/v1/command", path);
        let answer = exchange(house.tcp().await, &request).await;
        assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: GET,HEAD"), "{path}: {answer}");
    }
    let foreign = get("/metrics").replace("host: h", "host: h\r\norigin: http://evil");
    for answer in [exchange(house.tcp().await, &foreign).await, exchange(house.unix().await, &foreign).await] {
        assert!(answer.starts_with("HTTP/1.1 403 ") && !answer.contains("config_version"), "{answer}");
    }
    let own = exchange(house.tcp().await, &foreign.replace("http://evil", "http://h")).await;
    assert!(own.starts_with("HTTP/1.1 200 "), "{own}");
    assert!(house.door.told.borrow().is_empty(), "nothing reached the keeper");
}

#[tokio::test]
async fn wrong_methods_and_paths_name_the_right_ones() {
    let house = House::with_defaults().await;
    let answer = exchange(house.unix().await, &get("/v1/command")).await;
    assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: POST"), "{answer}");
    let answer = exchange(house.unix().await, &get("/v2")).await;
    assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("/v1/sessions"), "{answer}");
}

#[tokio::test]
async fn sessions_are_filtered_and_one_a_line() {
    let house = House::with_defaults().await;
    let answer = exchange(house.unix().await, &get("/v1/sessions?listener=l1&client=10.0.0.0/8")).await;
    assert!(answer.contains("content-type: application/x-ndjson"), "{answer}");
    assert_eq!(answer.matches(r#""listener":"l1""#).count(), 150);
    assert!(!answer.contains(r#""listener":"l0""#));
    let bad = exchange(house.unix().await, &get("/v1/sessions?colour=red")).await;
    assert!(bad.starts_with("HTTP/1.1 400 ") && bad.contains("unknown filter"), "{bad}");
}

#[tokio::test]
async fn steps_come_while_the_command_runs() {
    let door = FakeDoor::new().answers([step("spawn"), step("ready"), changed()]);
    door.release.send_replace(false);
    let house = House::open(door, Limits::default()).await;
    let mut client = house.unix().await;
    client.write_all(post(r#"{"verb":"upgrade"}"#).as_bytes()).await.unwrap();
    let mut seen = String::new();
    while !seen.contains("ready begins") {
        let mut piece = [0; 4096];
        let n = within(client.read(&mut piece)).await.unwrap();
        assert_ne!(n, 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&piece[..n]));
    }
    assert!(!seen.contains(r#""line":"done""#), "{seen}");
    house.door.release.send_replace(true);
    let end = rest(&mut client).await;
    assert!(end.contains(r#""line":"done","reply":"changed""#), "{end}");
}

#[tokio::test]
async fn a_command_that_is_given_up_is_said_to_have_failed() {
    let house = House::open(FakeDoor::new().answers([step("spawn")]), Limits::default()).await;
    let answer = exchange(house.unix().await, &post(r#"{"verb":"upgrade"}"#)).await;
    assert!(answer.contains(r#""line":"failed""#) && answer.contains("without a result"), "{answer}");
}

/// It cannot know that nobody will read its request: what it has begun to say is answered.
#[tokio::test]
async fn who_has_just_come_when_the_listener_stops_is_answered() {
    let limits = Limits { fresh: crate::harness::DEADLINE, finish: crate::harness::DEADLINE, ..Limits::default() };
    let house = House::open(FakeDoor::new(), limits).await;
    let fresh = house.tcp().await;
    let mut begun = house.tcp().await;
    begun.write_all(b"GET /heal").await.unwrap();
    // Accepted after those; it has asked once and waits, so that it is closed when the listener stops.
    let mut idle = house.tcp().await;
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: proxyd\r\n\r\n").await.unwrap();
    within(idle.read(&mut [0; 4096])).await.unwrap();
    let asking = async {
        rest(&mut idle).await;
        let answer = exchange(fresh, &get("/healthz")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
        begun.write_all(b"thz HTTP/1.1\r\nHost: proxyd\r\nConnection: close\r\n\r\n").await.unwrap();
        let answer = rest(&mut begun).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    };
    tokio::join!(house.close(), asking);
}

#[tokio::test]
async fn stop_lets_a_request_finish_and_closes_the_idle() {
    let door = FakeDoor::new().answers([step("spawn"), changed()]);
    door.release.send_replace(false);
    let house = House::open(door, Limits { finish: crate::harness::DEADLINE, ..Limits::default() }).await;
    let mut idle = house.tcp().await;
    let mut busy = house.unix().await;
    busy.write_all(post(r#"{"verb":"reload"}"#).as_bytes()).await.unwrap();
    let mut told = house.door.told.subscribe();
    within(told.wait_for(|told| told.len() == 1)).await.unwrap();
    let (release, socket) = (house.door.release.clone(), house.socket.clone());
    let closing = async {
        house.close().await;
    };
    let watching = async {
        assert_eq!(rest(&mut idle).await, "");
        release.send_replace(true);
        assert!(rest(&mut busy).await.contains(r#""line":"done""#));
    };
    tokio::join!(closing, watching);
    assert!(!crate::harness::is_there(&socket), "the socket is removed at the end");
}
