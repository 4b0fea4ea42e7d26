//! Bad input and bad manners of admin clients: each gets its clear answer, and the daemon stays fine.

use std::time::Duration;

use crate::harness::{FakeDoor, House, body, changed, exchange, get, post, rest, step, within};
use admin::limits::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

/// Short enough to wait for, long enough for a loaded machine to answer an honest request within.
fn short() -> Limits {
    let brief = Duration::from_millis(500);
    Limits { request: brief, idle: brief, stall: brief, ..Limits::default() }
}

#[tokio::test]
async fn a3_wrong_words_are_answered_with_what_exists() {
    let house = House::with_defaults().await;
    for (words, known) in [(r#"{"verb":"explode"}"#, "pool-swap"), (r#"{"verb":"pool-swap"}"#, "listener")] {
        let answer = exchange(house.unix().await, &post(words)).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && body(&answer).contains(known), "{answer}");
    }
    assert!(house.door.told.borrow().is_empty());
    house.assert_serves().await;
}

#[tokio::test]
async fn a4_garbage_bodies_are_refused() {
    let house = House::with_defaults().await;
    let deep = "[".repeat(60_000);
    for words in ["", "{", "\u{0}\u{1}", "[[[[", r#"{"verb":"reload"}{"verb":"reload"}"#, &deep] {
        let answer = exchange(house.unix().await, &post(words)).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains(r#""kind":"usage""#), "{answer}");
    }
    let mut client = house.unix().await;
    let head = "POST /v1/command HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: 4\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(&[b'"', 0xff, 0xfe, b'"']).await.unwrap();
    assert!(rest(&mut client).await.starts_with("HTTP/1.1 400 "));
    assert!(house.door.told.borrow().is_empty());
    house.assert_serves().await;
}

#[tokio::test]
async fn a4_what_is_no_http_is_refused() {
    let house = House::with_defaults().await;
    for garbage in ["reload\n", "\u{16}\u{3}\u{1}\r\n\r\n", "GET\r\n\r\n", "{\"verb\":\"reload\"}\r\n\r\n"] {
        let answer = exchange(house.unix().await, garbage).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{garbage:?}: {answer}");
    }
    house.assert_serves().await;
}

#[tokio::test]
async fn a4_long_bodies_end_at_64_kib() {
    let house = House::with_defaults().await;
    // Announced: refused without reading. A client that does not stop is cut.
    let announced = "POST /v1/command HTTP/1.1\r\nhost: h\r\ncontent-length: 104857600\r\n\r\n";
    assert!(exchange(house.unix().await, announced).await.starts_with("HTTP/1.1 413 "));
    // In chunks, 100 MB in all.
    let mut client = house.unix().await;
    client.write_all(b"POST /v1/command HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    let mut sent = 0;
    while sent < 100_000_000 && within(client.write_all(chunk.as_bytes())).await.is_ok() {
        sent += chunk.len();
    }
    assert!(sent < 10_000_000, "{sent} bytes were taken");
    house.assert_serves().await;
    // Just below the limit is read, and refused only as words.
    let fits = format!("{}{{}}", " ".repeat(64 * 1024 - 2));
    assert!(exchange(house.unix().await, &post(&fits)).await.starts_with("HTTP/1.1 400 "));
    let above = format!("{}{{}}", " ".repeat(64 * 1024 - 1));
    assert!(exchange(house.unix().await, &post(&above)).await.starts_with("HTTP/1.1 413 "));
}

#[tokio::test]
async fn a4_a_line_of_100_mb_is_cut() {
    let house = House::with_defaults().await;
    let mut client = house.unix().await;
    let piece = vec![b'A'; 64 * 1024];
    let mut sent = 0;
    while sent < 100_000_000 && within(client.write_all(&piece)).await.is_ok() {
        sent += piece.len();
    }
    assert!(sent < 10_000_000, "{sent} bytes were taken");
    house.assert_serves().await;
}

#[tokio::test]
async fn a4_nothing_and_half_a_head_end_at_the_deadline() {
    let house = House::open(FakeDoor::new(), short()).await;
    for start in ["", "GET /met", "GET /metrics HTTP/1.1\r\nhost: h\r\n"] {
        let began = Instant::now();
        let mut client = house.unix().await;
        client.write_all(start.as_bytes()).await.unwrap();
        assert_eq!(rest(&mut client).await, "", "{start:?}");
        assert!(began.elapsed() >= short().request, "{start:?} was cut early");
    }
    house.assert_serves().await;
}

/// Bytes that come one at a time do not prolong the deadline of the whole.
#[tokio::test]
async fn a4_a_drip_of_bytes_ends_at_the_deadline() {
    let house = House::open(FakeDoor::new(), short()).await;
    for head in ["GET /metrics HTTP/1.1\r\nx: ", "POST /v1/command HTTP/1.1\r\nhost: h\r\ncontent-length: 9999\r\n\r\n"]
    {
        let (mut read, mut write) = house.unix().await.into_split();
        write.write_all(head.as_bytes()).await.unwrap();
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        let drip = async {
            while write.write_all(b"x").await.is_ok() {
                tick.tick().await;
            }
        };
        let (answer, ()) = within(async { tokio::join!(rest(&mut read), drip) }).await;
        let wanted = if head.starts_with("POST") { "HTTP/1.1 408 " } else { "" };
        assert!(answer.starts_with(wanted), "{answer}");
    }
    assert!(house.door.told.borrow().is_empty());
    house.assert_serves().await;
}

#[tokio::test]
async fn a4_a_thousand_pipelined_requests_are_answered_in_turn() {
    let house = House::with_defaults().await;
    let (mut read, mut write) = house.tcp().await.into_split();
    let request = "GET /healthz HTTP/1.1\r\nhost: h\r\n\r\n";
    let ask = async {
        write.write_all(request.repeat(999).as_bytes()).await.unwrap();
        write.write_all(get("/healthz").as_bytes()).await.unwrap();
    };
    let (answers, ()) = within(async { tokio::join!(rest(&mut read), ask) }).await;
    assert_eq!(answers.matches("HTTP/1.1 200 ").count(), 1_000);
    house.assert_serves().await;
}

#[tokio::test]
async fn a6_a_client_that_vanishes_does_not_cancel() {
    let door = FakeDoor::new().answers([step("spawn"), step("offer"), step("ready"), changed()]);
    door.release.send_replace(false);
    let house = House::open(door, Limits::default()).await;
    let mut client = house.unix().await;
    client.write_all(post(r#"{"verb":"upgrade"}"#).as_bytes()).await.unwrap();
    within(house.door.told.subscribe().wait_for(|told| told.len() == 1)).await.unwrap();
    drop(client);
    house.door.release.send_replace(true);
    within(house.door.finished.subscribe().wait_for(|finished| *finished == 1)).await.unwrap();
    house.assert_serves().await;
}

#[tokio::test]
async fn a6_a_hundred_idle_clients_leave_room_for_a_command() {
    let house = House::open(FakeDoor::new(), Limits { connections: 8, ..Limits::default() }).await;
    let mut first = house.unix().await;
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(house.unix().await);
    }
    house.assert_serves().await;
    assert_eq!(rest(&mut first).await, "", "the one that waited longest made room");
    // The youngest are still there: one of them can speak.
    let youngest = idle.pop().unwrap();
    assert!(exchange(youngest, &get("/healthz")).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a6_requests_under_way_are_not_cut_to_make_room() {
    let door = FakeDoor::new().answers([step("spawn"), changed()]);
    door.release.send_replace(false);
    let house = House::open(door, Limits { connections: 2, ..Limits::default() }).await;
    let mut busy = Vec::new();
    for count in 1..=2 {
        let mut client = house.unix().await;
        client.write_all(post(r#"{"verb":"reload"}"#).as_bytes()).await.unwrap();
        within(house.door.told.subscribe().wait_for(|told| told.len() == count)).await.unwrap();
        busy.push(client);
    }
    let request = get("/healthz");
    let waiting = exchange(house.unix().await, &request);
    let freeing = async {
        house.door.release.send_replace(true);
        for client in &mut busy {
            assert!(rest(client).await.contains(r#""line":"done""#));
        }
    };
    let (answer, ()) = tokio::join!(waiting, freeing);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn an_idle_connection_is_kept_then_closed() {
    let house = House::open(FakeDoor::new(), short()).await;
    let mut client = house.tcp().await;
    for _ in 0..2 {
        client.write_all(b"GET /healthz HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
        let mut seen = String::new();
        while !seen.ends_with("ok\n") {
            let mut piece = [0; 1024];
            let n = within(client.read(&mut piece)).await.unwrap();
            assert_ne!(n, 0, "kept for the next request");
            seen.push_str(&String::from_utf8_lossy(&piece[..n]));
        }
    }
    let began = Instant::now();
    assert_eq!(rest(&mut client).await, "");
    assert!(began.elapsed() + Duration::from_millis(100) >= short().idle);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut() {
    let door = FakeDoor::new();
    let row = door.rows.lock().unwrap()[0].clone();
    *door.rows.lock().unwrap() = vec![row; 40_000];
    let house = House::open(door, Limits { connections: 1, ..short() }).await;
    let mut deaf = house.unix().await;
    deaf.write_all(get("/v1/sessions").as_bytes()).await.unwrap();
    // The only place is free again only once the deaf client is gone.
    house.assert_serves().await;
    let taken = rest(&mut deaf).await;
    assert!(!taken.ends_with("0\r\n\r\n"), "the answer must not look complete");
}
