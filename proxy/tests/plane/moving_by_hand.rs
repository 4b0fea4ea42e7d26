//! Sessions that move over a path of which this test is an end, or the middle: word by word.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use handoff::channel::{Channel, ChannelError, Peer};
use handoff::codec::Word;
use handoff::message::Budget;
use handoff::transfer::message::{Hello, Transfer};
use handoff::transfer::{self, TRANSFER, Verdict};
use proxy::config::order::left;
use tokio::io::AsyncWriteExt;

use crate::moving::{Path, whys};
use crate::rig::*;

struct Hand(Channel<Transfer>);

impl Hand {
    fn at(end: OwnedFd) -> Self {
        Self(Channel::new(end, Peer { pid: None, uid: nix::unistd::geteuid().as_raw() }).unwrap())
    }

    /// Of a taker that does not say how many descriptors it has.
    async fn taking(end: OwnedFd) -> Self {
        let hand = Self::at(end);
        hand.hears("hello").await;
        hand.says(&Transfer::Hello(Hello { protocol: TRANSFER, generation: 2, descriptors: None })).await;
        hand
    }

    async fn hears(&self, name: &str) -> (Transfer, Vec<OwnedFd>) {
        let (word, fds) = soon(name, self.0.recv()).await.unwrap();
        assert_eq!(word.name(), name);
        (word, fds)
    }

    async fn says(&self, word: &Transfer) {
        self.0.send(word, &[]).await.unwrap();
    }

    /// Hears a word, and says it at the other hand.
    async fn passes(&self, name: &str, to: &Self) {
        let (word, fds) = self.hears(name).await;
        let lent: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        to.0.send(&word, &lent).await.unwrap();
    }

    /// Refuses everything that is offered next.
    async fn refuses(&self, why: &str, descriptors: Option<Budget>) {
        let (word, _) = self.hears("offer").await;
        let Transfer::Offer(offer) = word else { panic!("{word:?}") };
        let verdicts = vec![Verdict::Refused { why: why.to_owned() }; offer.items.len()];
        self.says(&Transfer::Taken { batch: offer.batch, verdicts, descriptors }).await;
    }

    async fn is_left(&self) {
        let end = soon("the end of the path", self.0.recv()).await;
        assert!(matches!(end, Err(ChannelError::Gone)), "{end:?}");
    }
}

/// The giver reads an answer, and only later that the taker goes no further.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_before_an_error_is_not_let_go() {
    let (listener, address) = backend().await;
    let rig = rig(&[address]).await;
    let other = rig.successor(2, |_| {});
    let (mut client, mut server) = rig.pair(&listener).await;
    rig.established(1).await;
    let (mut path, end) = Path::from(&rig.plane);
    let giver = Hand::at(end);
    let (end, take) = transfer::pair().unwrap();
    let taker = Hand::at(end);
    path.tasks.spawn(other.take(1, take));
    giver.passes("hello", &taker).await;
    taker.passes("hello", &giver).await;
    giver.passes("offer", &taker).await;
    let (taken, _) = taker.hears("taken").await;
    taker.says(&Transfer::Release { batch: 7 }).await;
    taker.hears("refused").await;
    giver.says(&taken).await;
    giver.passes("release", &taker).await;
    // Everything is decided: now it ends the path.
    taker.is_left().await;
    let said = path.over().await;
    assert_eq!((said.moved, said.left), (1, whys(&[])));
    client.write_all(b"on").await.unwrap();
    assert_eq!(read(&mut server, 2).await, b"on");
    assert_eq!((rig.plane.sessions(), other.sessions()), (0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taker_that_fills_up_meanwhile_is_offered_no_more() {
    let (listener, address) = backend().await;
    let rig = rig_with(&[address], |plan| plan.threads = 1).await;
    let mut peers = Vec::new();
    for _ in 0..140 {
        peers.push(rig.pair(&listener).await);
    }
    rig.established(140).await;
    // Of busy ones a batch has fewer.
    rig.idle_for(Duration::from_secs(1)).await;
    let (path, end) = Path::from(&rig.plane);
    let taker = Hand::taking(end).await;
    for _ in 0..2 {
        taker.refuses("not these", Some(Budget { limit: 1_000, open: 900 })).await;
    }
    for _ in 0..2 {
        taker.hears("withdraw").await;
    }
    taker.is_left().await;
    assert_eq!(path.over().await.left, whys(&[(left::REFUSED, 128), (left::NO_ROOM, 12)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_found_no_room_goes_over_the_next_path() {
    let (listener, address) = backend().await;
    let rig = rig(&[address]).await;
    let other = rig.successor(2, |_| {});
    let (_client, _server) = rig.pair(&listener).await;
    rig.established(1).await;
    let (path, end) = Path::from(&rig.plane);
    let taker = Hand::taking(end).await;
    for _ in 0..2 {
        taker.refuses(left::NO_ROOM, None).await;
        taker.hears("withdraw").await;
    }
    taker.is_left().await;
    assert_eq!(path.over().await.left, whys(&[(left::NO_ROOM, 1)]));
    assert_eq!(Path::between(&rig.plane, &other).over().await.moved, 1);
}
