//! `GET /v1/events` and `proxyctl events`: who sees what, who has to wait, who is cut.

use std::ops::ControlFlow;
use std::time::Duration;

use crate::harness::{FakeDoor, House, body, exchange, get, rest, within};
use admin::client::Client;
use admin::limits::Limits;
use admin::view::EventView;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

fn numbers(text: &str) -> Vec<u64> {
    // The last line may not be whole yet.
    text.lines().filter_map(|line| serde_json::from_str::<EventView>(line).ok()).map(|event| event.seq).collect()
}

/// What has come until `enough` says so.
async fn read_until(stream: &mut UnixStream, enough: impl Fn(&str) -> bool) -> String {
    let (mut text, mut piece) = (String::new(), [0; 4096]);
    while !enough(&text) {
        let n = within(stream.read(&mut piece)).await.unwrap();
        assert!(n > 0, "the stream ended after {text}");
        text.push_str(std::str::from_utf8(&piece[..n]).unwrap());
    }
    text
}

async fn follower(house: &House, since: u64) -> UnixStream {
    let mut stream = house.unix().await;
    let request = get(&format!("/v1/events?since={since}&follow=1"));
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn events_are_lines_and_only_on_the_unix_socket() {
    let house = House::with_defaults().await;
    house.door.happens(1..=200, 1);
    for (query, wanted) in [("", (1..=200).collect::<Vec<_>>()), ("?since=198", vec![199, 200]), ("?since=200", vec![])]
    {
        let answer = exchange(house.unix().await, &get(&format!("/v1/events{query}"))).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(numbers(body(&answer)), wanted, "{query}");
    }
    for query in ["since=x", "since=-1", "follow=yes", "until=3"] {
        let answer = exchange(house.unix().await, &get(&format!("/v1/events?{query}"))).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{query}: {answer}");
    }
    let answer = exchange(house.tcp().await, &get("/v1/events")).await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
}

#[tokio::test]
async fn a_follower_sees_what_comes_and_ends_with_the_server() {
    let limits = Limits { quiet: Duration::from_millis(50), ..Limits::default() };
    let house = House::open(FakeDoor::new(), limits).await;
    house.door.happens(1..=2, 1);
    let mut stream = follower(&house, 1).await;
    let seen = read_until(&mut stream, |text| numbers(text) == [2]).await;
    assert!(seen.starts_with("HTTP/1.1 200 "), "{seen}");
    // Without news it hears that the keeper is there.
    read_until(&mut stream, |text| text.contains("1\r\n\n\r\n")).await;
    house.door.happens(3..=150, 1);
    read_until(&mut stream, |text| numbers(text).last() == Some(&150)).await;
    house.door.happens(151..=151, 1);
    house.close().await;
    let last = rest(&mut stream).await;
    assert!(last.ends_with("0\r\n\r\n"), "the end is told from a loss: {last:?}");
}

#[tokio::test]
async fn what_was_too_much_to_keep_is_told() {
    let house = House::with_defaults().await;
    house.door.happens(1..=12, 10);
    let mut stream = follower(&house, 3).await;
    let seen = read_until(&mut stream, |text| numbers(text) == [9, 10, 11, 12]).await;
    assert!(seen.contains(r#""event":"events_missed""#) && seen.contains(r#""missed":6"#), "{seen}");
    // A keeper that remembers the count, but no event of its predecessor.
    house.door.happens(20..=20, 20);
    let seen = read_until(&mut stream, |text| numbers(text) == [19, 20]).await;
    assert!(seen.contains(r#""missed":7"#), "{seen}");
    // Who asks for all there is has missed nothing.
    let seen = read_until(&mut follower(&house, 0).await, |text| !numbers(text).is_empty()).await;
    assert_eq!(numbers(&seen), [20]);
}

#[tokio::test]
async fn a_hundred_followers_keep_no_command_out() {
    let house = House::with_defaults().await;
    house.door.happens(1..=1, 1);
    let mut streams = Vec::new();
    let mut refused = 0;
    for _ in 0..100 {
        let mut stream = follower(&house, 0).await;
        let answer = read_until(&mut stream, |text| text.contains('}')).await;
        refused += usize::from(answer.starts_with("HTTP/1.1 503 ") && answer.contains(r#""kind":"conflict""#));
        streams.push(stream);
    }
    assert_eq!(refused, 100 - Limits::default().followers);
    house.assert_serves().await;
    streams.truncate(1);
    // Places are given back.
    let mut again = follower(&house, 0).await;
    let answer = read_until(&mut again, |text| text.contains('}')).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn a_follower_that_stops_reading_is_cut() {
    let limits = Limits { stall: Duration::from_millis(300), followers: 1, ..Limits::default() };
    let house = House::open(FakeDoor::new(), limits).await;
    let stream = follower(&house, 0).await;
    let text = "x".repeat(64 * 1024);
    house.door.happened.send_modify(|happened| {
        happened.extend((1..=64).map(|seq| EventView { seq, text: text.clone(), ..EventView::default() }));
    });
    // Its place is free again although it never left.
    within(async {
        loop {
            let mut other = follower(&house, 64).await;
            let mut status = [0; 12];
            other.read_exact(&mut status).await.unwrap();
            if &status == b"HTTP/1.1 200" {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    house.assert_serves().await;
    drop(stream);
}

/// Follows until it has seen the event `until`.
async fn follow(client: &Client, since: u64, until: u64) -> Vec<u64> {
    let mut seen = Vec::new();
    let followed = client.follow(since, |event| {
        seen.push(event.seq);
        if event.seq == until { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    within(followed).await.unwrap();
    seen
}

#[tokio::test]
async fn following_goes_on_with_the_next_keeper_without_duplicates() {
    let house = House::with_defaults().await;
    house.door.happens(1..=3, 1);
    let client = Client::new(&house.socket);
    let next = async {
        within(house.door.finished_following(3)).await;
        let successor = FakeDoor::new();
        successor.happens(2..=5, 1);
        house.succeeded_by(successor).await
    };
    let (seen, _house) = tokio::join!(follow(&client, 0, 5), next);
    assert_eq!(seen, [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn a_keeper_that_counts_anew_is_heard() {
    let house = House::with_defaults().await;
    house.door.happens(1..=2, 1);
    let client = Client::new(&house.socket);
    assert_eq!(follow(&client, 500, 2).await, [1, 2]);
}

#[tokio::test]
async fn a_keeper_that_does_not_come_back_ends_the_following() {
    let house = House::with_defaults().await;
    house.door.happens(1..=1, 1);
    let client = Client::new(&house.socket).silence(Duration::from_millis(300));
    let end = async {
        within(house.door.finished_following(1)).await;
        house.close().await;
    };
    let (followed, ()) = tokio::join!(within(client.follow(0, |_| ControlFlow::Continue(()))), end);
    assert_eq!(followed.unwrap_err().exit_code(), 3);
    // None there from the beginning: at once.
    assert_eq!(within(client.follow(0, |_| ControlFlow::Continue(()))).await.unwrap_err().exit_code(), 3);
}
