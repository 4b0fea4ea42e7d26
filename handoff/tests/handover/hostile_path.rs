//! Either end of a path against one that says what is not so.

use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use handoff::HandoffError;
use handoff::channel::ChannelError;
use handoff::ledger::Place;
use handoff::memfile;
use handoff::message::Range;
use handoff::transfer::message::{Entry, Hello, Offer, Transfer};
use handoff::transfer::{self, Coming, Giver, TRANSFER, Taker, Verdict};
use tokio::time::Instant;

use crate::harness::{ByHand, alone, census, soon, us};
use crate::paths::{GIVER, TAKER, items};

fn hello(generation: u32) -> Transfer {
    Transfer::Hello(Hello { protocol: TRANSFER, generation, descriptors: None })
}

fn entry(id: u64) -> Entry {
    Entry { id, place: Place { segment: 0, index: 0 }, state: 2, hand: [0, 0], pipes: [false, false] }
}

fn offer(batch: u64, items: Vec<Entry>) -> Transfer {
    Transfer::Offer(Offer { batch, items })
}

fn taken(batch: u64, verdicts: Vec<Verdict>) -> Transfer {
    Transfer::Taken { batch, verdicts, descriptors: None }
}

fn body() -> OwnedFd {
    memfile::sealed("body", b"{}").unwrap()
}

fn socket() -> OwnedFd {
    std::os::unix::net::UnixStream::pair().unwrap().0.into()
}

async fn open_taker(hand: &ByHand<Transfer>, end: OwnedFd) -> Taker {
    hand.says(&hello(GIVER));
    let taker = Taker::open(end, us().uid, TAKER, soon()).await.unwrap();
    hand.hears("hello").await;
    taker
}

async fn open_giver(hand: &ByHand<Transfer>, end: OwnedFd) -> Giver {
    hand.says(&hello(TAKER));
    let giver = Giver::open(end, us().uid, GIVER, soon()).await.unwrap();
    hand.hears("hello").await;
    giver
}

/// A real taker is told this by a giver by hand: what its error is, which the giver is told too.
async fn taker_meets(word: &Transfer, fds: &[BorrowedFd<'_>]) -> HandoffError {
    let (hand, end) = ByHand::opposite();
    let mut taker = open_taker(&hand, end).await;
    hand.hands(word, fds);
    let error = taker.next().await.unwrap_err();
    drop(taker);
    assert_eq!(hand.hears_refusal().await.unwrap(), error.to_string());
    error
}

#[test]
fn a_count_that_lies_is_refused() {
    for count in [0, 1, 2, 4, 200, 253] {
        alone(async || {
            let (body, socket) = (body(), socket());
            let fds: Vec<_> = std::iter::once(body.as_fd()).chain(vec![socket.as_fd(); 252]).take(count).collect();
            let error = taker_meets(&offer(1, vec![entry(1)]), &fds).await;
            let text = format!("handoff protocol: record `offer` announces 3 descriptors and carries {count}");
            assert_eq!(error.to_string(), text);
        });
    }
}

#[test]
fn truncated_descriptors_are_closed_and_the_giver_is_told() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    alone(async || {
        let (hand, end) = ByHand::opposite();
        let mut taker = open_taker(&hand, end).await;
        let (body, socket) = (body(), socket());
        let entries: Vec<_> = (1..=50).map(|id| Entry { state: 0, ..entry(id) }).collect();
        let fds: Vec<_> = std::iter::once(body.as_fd()).chain(vec![socket.as_fd(); 100]).collect();
        let (before, open) = (getrlimit(Resource::Nofile), census().len() as u64);
        setrlimit(Resource::Nofile, Rlimit { current: Some(open + 10), ..before }).unwrap();
        hand.hands(&offer(1, entries), &fds);
        let error = taker.next().await.unwrap_err();
        setrlimit(Resource::Nofile, before).unwrap();
        assert!(
            matches!(&error, HandoffError::Channel { source: ChannelError::Truncated { expected: Some(101), .. }, .. }),
            "{error:?}"
        );
        drop(taker);
        assert!(hand.hears_refusal().await.unwrap().contains("of 101 arrived"));
    });
}

/// The answer was a promise: its giver may have read that, and not yet that the taker goes no further.
#[test]
fn what_was_answered_is_heard_after_an_error() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    alone(async || {
        let (hand, end) = ByHand::opposite();
        let mut taker = open_taker(&hand, end).await;
        let (body, socket) = (body(), socket());
        let fds = |count| std::iter::once(body.as_fd()).chain(vec![socket.as_fd(); count]).collect::<Vec<_>>();
        for batch in [1, 2] {
            hand.hands(&offer(batch, vec![entry(batch)]), &fds(2));
            assert!(matches!(taker.next().await.unwrap(), Coming::Offered { .. }));
            assert!(taker.taken(batch, &[Verdict::Taken { thread: 1 }]).await.unwrap());
        }
        let many = (3..=52).map(|id| Entry { state: 0, ..entry(id) }).collect();
        let (before, open) = (getrlimit(Resource::Nofile), census().len() as u64);
        setrlimit(Resource::Nofile, Rlimit { current: Some(open + 10), ..before }).unwrap();
        hand.hands(&offer(3, many), &fds(100));
        let error = taker.next().await.unwrap_err();
        setrlimit(Resource::Nofile, before).unwrap();
        assert!(error.to_string().contains("of 101 arrived"), "{error}");
        // It has not heard of that: it lets go, takes back, offers, and takes back what never came.
        hand.says(&Transfer::Release { batch: 1 });
        hand.hands(&offer(4, vec![entry(90)]), &fds(2));
        hand.says(&Transfer::Withdraw { batch: 3 });
        hand.says(&Transfer::Withdraw { batch: 2 });
        assert!(matches!(taker.hear_out().await, Some(Coming::Release { batch: 1 })));
        assert!(matches!(taker.hear_out().await, Some(Coming::Withdraw { batch: 2 })));
        assert!(hand.hears_refusal().await.unwrap().contains("of 101 arrived"), "before the path has ended");
        drop(hand);
        assert!(taker.hear_out().await.is_none());
    });
}

#[test]
fn a_descriptor_that_is_not_what_was_announced_is_refused() {
    type Imposter = fn() -> OwnedFd;
    let for_sockets: [(Imposter, &str); 5] = [
        (|| tempfile::tempfile().unwrap().into(), "a file"),
        (|| rustix::pipe::pipe().unwrap().0, "a pipe"),
        (|| UdpSocket::bind("127.0.0.1:0").unwrap().into(), "a socket of family 2, type 2"),
        (|| TcpListener::bind("127.0.0.1:0").unwrap().into(), "a listening socket"),
        (|| transfer::pair().unwrap().0, "a socket of family 1, type 5"),
    ];
    let for_pipes: [(Imposter, &str); 3] = [
        (|| tempfile::tempfile().unwrap().into(), "a file"),
        (socket, "a socket"),
        (|| rustix::pipe::pipe().unwrap().1, "the writing end of a pipe"),
    ];
    let places = [(0, &for_sockets[..]), (1, &for_sockets), (2, &for_pipes), (3, &for_pipes)];
    for (place, imposters) in places {
        for (imposter, found) in imposters {
            alone(async || {
                let mut fds = [socket(), socket(), rustix::pipe::pipe().unwrap().0, rustix::pipe::pipe().unwrap().0];
                fds[place] = imposter();
                let body = body();
                let lent: Vec<_> = std::iter::once(&body).chain(&fds).map(AsFd::as_fd).collect();
                let error = taker_meets(&offer(1, vec![Entry { pipes: [true, true], ..entry(7) }]), &lent).await;
                let HandoffError::Item { id: 7, found: what, .. } = &error else { panic!("{error:?}") };
                assert_eq!(what, found, "{error}");
            });
        }
    }
}

/// A reset socket has no peer any more, and is a session all the same.
#[test]
fn a_socket_that_was_reset_is_taken() {
    alone(async || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut accepted = listener.accept().unwrap().0;
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        while accepted.write(b"x").is_ok() {}
        assert!(accepted.peer_addr().is_err());
        let (hand, end) = ByHand::opposite();
        let mut taker = open_taker(&hand, end).await;
        let (body, socket) = (body(), socket());
        hand.hands(&offer(1, vec![entry(1)]), &[body.as_fd(), accepted.as_fd(), socket.as_fd()]);
        assert!(matches!(taker.next().await.unwrap(), Coming::Offered { batch: 1, .. }));
    });
}

#[test]
fn a_body_that_can_change_or_lies_about_its_size_is_refused() {
    type Lie = fn() -> OwnedFd;
    let open: Lie = || rustix::fs::memfd_create("body", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let lies: [(Lie, &str); 6] = [
        (|| memfile::sealed("body", b"{").unwrap(), "announced 2 bytes, found 1"),
        (|| memfile::sealed("body", b"{}}").unwrap(), "announced 2 bytes, found 3"),
        (|| memfile::sealed("body", b"\xff\xfe").unwrap(), "session 3: its state is not text"),
        (open, "not a sealed memory file"),
        (|| rustix::pipe::pipe().unwrap().0, "not a sealed memory file"),
        (socket, "not a sealed memory file"),
    ];
    for (lie, text) in lies {
        alone(async || {
            let (fd, socket) = (lie(), socket());
            let fds = [fd.as_fd(), socket.as_fd(), socket.as_fd()];
            let error = taker_meets(&offer(1, vec![entry(3)]), &fds).await;
            assert!(error.to_string().contains(text), "{error}");
        });
    }
}

#[test]
fn numbers_out_of_bounds_are_refused() {
    let of = |entry: Entry| vec![entry];
    for (items, text) in [
        (vec![entry(4), entry(4)], "session 4 occurs twice"),
        (of(entry(0)), "session 0 is none"),
        ((1..=65).map(entry).collect(), "the number of sessions is 65"),
        (of(Entry { state: 8_193, ..entry(1) }), "the length of a state is 8193"),
        (of(Entry { hand: [0, 65_537], ..entry(1) }), "the number of bytes in hand is 65537"),
        (of(Entry { hand: [u32::MAX, u32::MAX], ..entry(1) }), "the number of bytes in hand is 4294967295"),
        (vec![], "a batch is not empty"),
    ] {
        alone(async || {
            let (body, socket) = (body(), socket());
            let count = 2 * items.len();
            let fds: Vec<_> = std::iter::once(body.as_fd()).chain(vec![socket.as_fd(); count]).collect();
            let error = taker_meets(&offer(1, items), &fds).await;
            assert!(error.to_string().contains(text), "{error}");
        });
    }
}

#[test]
fn a_giver_out_of_turn_is_refused() {
    let (again, empty) = (hello(GIVER), Vec::new());
    let upwards = [taken(1, empty), Transfer::Dropped { batch: 1 }];
    let unopened = [Transfer::Release { batch: 1 }, Transfer::Withdraw { batch: 1 }];
    for word in upwards.into_iter().chain(unopened).chain([again]) {
        alone(async || {
            let error = taker_meets(&word, &[]).await;
            assert!(matches!(&error, HandoffError::OutOfTurn { .. }), "{error:?}");
        });
    }
    let release = Transfer::Release { batch: 1 };
    let repeated = (offer(1, vec![entry(9)]), "not a new batch");
    let held = (offer(2, vec![entry(1)]), "in an open batch");
    for (second, text) in [(release, "not answered"), repeated.clone(), held] {
        alone(async || {
            let (hand, end) = ByHand::opposite();
            let mut taker = open_taker(&hand, end).await;
            let (body, socket) = (body(), socket());
            let fds = [body.as_fd(), socket.as_fd(), socket.as_fd()];
            hand.hands(&repeated_first(), &fds);
            assert!(matches!(taker.next().await.unwrap(), Coming::Offered { .. }));
            let with = if matches!(second, Transfer::Offer(_)) { &fds[..] } else { &[] };
            hand.hands(&second, with);
            let error = taker.next().await.unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        });
    }
}

fn repeated_first() -> Transfer {
    offer(1, vec![entry(1)])
}

#[test]
fn a_flood_of_offers_is_refused() {
    alone(async || {
        let (hand, end) = ByHand::opposite();
        let mut taker = open_taker(&hand, end).await;
        let (body, socket) = (body(), socket());
        let mut held = Vec::new();
        for batch in 1..=5 {
            hand.hands(&offer(batch, vec![entry(batch)]), &[body.as_fd(), socket.as_fd(), socket.as_fd()]);
            match taker.next().await {
                Ok(coming) => held.push(coming),
                Err(error) => assert!(batch == 5 && error.to_string().contains("too many batches"), "{error}"),
            }
        }
        assert_eq!(held.len(), 4);
        drop(taker);
        assert!(hand.hears_refusal().await.unwrap().contains("too many batches"));
    });
}

/// A real giver has offered a session; it is told this by a taker by hand.
async fn giver_meets(word: &Transfer) -> HandoffError {
    let (hand, end) = ByHand::opposite();
    let mut giver = open_giver(&hand, end).await;
    giver.offer(1, &items([1])).await.unwrap();
    hand.hears("offer").await;
    hand.says(word);
    let error = giver.next().await.unwrap_err();
    assert_eq!(hand.hears_refusal().await.unwrap(), error.to_string());
    error
}

#[test]
fn a_taker_out_of_turn_is_refused() {
    let all = |batch, count| taken(batch, vec![Verdict::Taken { thread: 1 }; count]);
    let out_of_turn = [all(1, 0), all(1, 2), all(2, 1), Transfer::Dropped { batch: 1 }, Transfer::Release { batch: 1 }];
    for word in out_of_turn.into_iter().chain([hello(TAKER), Transfer::Withdraw { batch: 1 }]) {
        alone(async || {
            let error = giver_meets(&word).await;
            assert!(matches!(&error, HandoffError::OutOfTurn { .. }), "{error:?}");
        });
    }
    let why = Verdict::Refused { why: "x".repeat(201) };
    for word in [all(1, 65), taken(1, vec![why])] {
        alone(async || {
            let error = giver_meets(&word).await;
            assert!(matches!(&error, HandoffError::Channel { .. }), "{error:?}");
        });
    }
}

#[test]
fn a_reason_is_one_line() {
    alone(async || {
        let (hand, end) = ByHand::opposite();
        let mut giver = open_giver(&hand, end).await;
        giver.offer(1, &items([1])).await.unwrap();
        hand.hears("offer").await;
        let why = Verdict::Refused { why: "no\n\u{1b}[31mroom".to_owned() };
        hand.says(&taken(1, vec![why]));
        match &giver.next().await.unwrap().1[0] {
            Verdict::Refused { why } => assert!(!why.contains(char::is_control), "{why:?}"),
            other => panic!("{other:?}"),
        }
    });
}

/// A giver that has a late answer of a batch it withdrew goes on as if nothing had been said.
#[test]
fn a_late_answer_never_leads_to_a_release() {
    alone(async || {
        let (hand, end) = ByHand::opposite();
        let mut giver = open_giver(&hand, end).await;
        let taken = |batch| taken(batch, vec![Verdict::Taken { thread: 1 }]);
        giver.offer(1, &items([1])).await.unwrap();
        hand.hears("offer").await;
        hand.says(&taken(1));
        giver.withdraw(1).await.unwrap();
        giver.offer(2, &items([1])).await.unwrap();
        hand.hears("withdraw").await;
        hand.hears("offer").await;
        hand.says(&taken(2));
        assert_eq!(giver.next().await.unwrap().0, 2);
        assert!(giver.release(1).await.unwrap_err().is_unsent());
        giver.release(2).await.unwrap();
        hand.hears("release").await;
        // And a second one of the same is a lie.
        hand.says(&taken(1));
        assert!(matches!(giver.next().await, Err(HandoffError::OutOfTurn { .. })));
    });
}

#[test]
fn hellos_of_other_versions_users_and_words_are_refused() {
    let newer = Transfer::Hello(Hello { protocol: Range { min: 2, max: 9 }, generation: 1, descriptors: None });
    let text = "no common transfer version: ours 1, theirs 2 to 9";
    for (word, text) in [(newer, text), (Transfer::Release { batch: 1 }, "out of turn in state")] {
        alone(async || {
            let (hand, end) = ByHand::opposite();
            hand.says(&word);
            let error = Taker::open(end, us().uid, TAKER, soon()).await.unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
            assert_eq!(hand.hears_refusal().await.unwrap(), error.to_string());
            let (hand, end) = ByHand::<Transfer>::opposite();
            hand.says(&word);
            let error = Giver::open(end, us().uid, GIVER, soon()).await.unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
            assert_eq!(hand.hears_refusal().await.unwrap(), error.to_string());
        });
    }
    alone(async || {
        let (hand, end) = ByHand::<Transfer>::opposite();
        hand.says(&hello(GIVER));
        let error = Taker::open(end, us().uid + 1, TAKER, soon()).await.unwrap_err();
        assert!(matches!(error, HandoffError::Channel { source: ChannelError::Stranger { .. }, .. }), "{error:?}");
        let (hand, end) = ByHand::<Transfer>::opposite();
        hand.writes(br#"{"type":"ready"}"#, &[]);
        let error = Taker::open(end, us().uid, TAKER, soon()).await.unwrap_err();
        assert!(error.to_string().contains("ready"), "{error}");
        let wrong = Taker::open(socket(), us().uid, TAKER, soon()).await.unwrap_err();
        assert!(matches!(wrong, HandoffError::Channel { source: ChannelError::NotAChannel { .. }, .. }));
    });
}

#[test]
fn a_silent_end_is_given_up() {
    alone(async || {
        let (_hand, end) = ByHand::<Transfer>::opposite();
        let soon = || Instant::now() + Duration::from_millis(50);
        assert!(matches!(Taker::open(end, us().uid, TAKER, soon()).await, Err(HandoffError::Deadline { .. })));
        let (_hand, end) = ByHand::<Transfer>::opposite();
        assert!(matches!(Giver::open(end, us().uid, GIVER, soon()).await, Err(HandoffError::Deadline { .. })));
    });
}
