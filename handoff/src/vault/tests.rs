use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use super::*;
use crate::channel;
use crate::ledger::Place;

const PLACE: Place = Place { segment: 1, index: 7 };

/// A session: its four descriptors, and the peers' ends of the sockets.
struct Session {
    client: TcpStream,
    backend: TcpStream,
    pipes: [(OwnedFd, OwnedFd); 2],
    peer: TcpStream,
}

fn session() -> Session {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (client, _) = listener.accept().unwrap();
    let backend = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let pipe = || rustix::pipe::pipe().unwrap();
    Session { client, backend, pipes: [pipe(), pipe()], peer }
}

impl Session {
    fn fds(&self) -> [std::os::fd::BorrowedFd<'_>; 4] {
        let [up, down] = &self.pipes;
        [self.client.as_fd(), self.backend.as_fd(), up.0.as_fd(), down.0.as_fd()]
    }
}

fn ends() -> (Depositor, Custodian) {
    let (ours, theirs) = pair().unwrap();
    (Depositor::new(theirs).unwrap(), Custodian::new(ours).unwrap())
}

fn deposit(id: u64) -> Deposit {
    Deposit { id, place: PLACE, thread: 3, terms: None }
}

#[tokio::test]
async fn what_was_deposited_outlives_the_depositor() {
    let (depositor, custodian) = ends();
    let mut session = session();
    rustix::io::write(&session.pipes[0].1, b"in flight").unwrap();
    depositor.deposit(&deposit(9), session.fds()).unwrap();
    depositor.withdraw(4, PLACE).unwrap();
    drop(depositor);
    let Session { client, backend, pipes, peer } = &mut session;
    client.write_all(b"hello").unwrap();
    let _ = (backend, pipes);
    let Word::Deposit(got, belongings) = custodian.next().await.unwrap() else { panic!("a deposit") };
    assert_eq!(got, deposit(9));
    assert!(matches!(custodian.try_next(), Ok(Some(Word::Withdraw { id: 4, place: PLACE }))));
    assert!(matches!(custodian.try_next(), Err(VaultError::Gone)));
    let mut bytes = [0; 20];
    assert_eq!(rustix::io::read(&belongings.pipes[0], &mut bytes).unwrap(), 9);
    peer.read_exact(&mut bytes[..5]).unwrap();
    assert_eq!(&bytes[..5], b"hello");
    for fd in [&belongings.client, &belongings.backend, &belongings.pipes[0], &belongings.pipes[1]] {
        assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }
}

#[tokio::test]
async fn a_keeper_that_reads_nothing_is_stalled_until_it_acknowledges() {
    let (depositor, custodian) = ends();
    let session = session();
    let sent = (0..).take_while(|id| depositor.deposit(&deposit(*id), session.fds()).is_ok()).count();
    assert!((1..=100).contains(&sent), "{sent} deposits of 4 descriptors were open");
    assert_eq!(depositor.deposit(&deposit(1), session.fds()), Err(NotDeposited::Stalled));
    for _ in 0..sent {
        assert!(matches!(custodian.next().await, Ok(Word::Deposit(..))));
        custodian.keep();
    }
    assert!(custodian.settle().unwrap());
    // Acknowledgements are heard while somebody waits for a refusal.
    let waiting = tokio::time::timeout(std::time::Duration::from_millis(20), depositor.refused()).await;
    assert!(waiting.is_err());
    depositor.deposit(&deposit(1), session.fds()).unwrap();
}

#[tokio::test]
async fn a_refusal_reaches_the_thread_and_frees_its_place() {
    let (depositor, custodian) = ends();
    let session = session();
    for id in [1, 2] {
        depositor.deposit(&deposit(id), session.fds()).unwrap();
        let Word::Deposit(got, _) = custodian.next().await.unwrap() else { panic!("a deposit") };
        if id == 1 { custodian.keep() } else { custodian.refuse(&got) }
    }
    assert!(custodian.settle().unwrap());
    assert_eq!(depositor.refused().await.unwrap(), Refused { id: 2, thread: 3 });
}

#[tokio::test]
async fn a_worker_that_reads_nothing_is_owed_and_told_later_by_another_image() {
    let (depositor, custodian) = ends();
    custodian.writable().await.unwrap();
    let mut owed = 0;
    while custodian.settle().unwrap() {
        custodian.refuse(&deposit(owed));
        owed += 1;
    }
    assert!(owed > 50, "only {owed} answers fit into a queue");
    let (end, left) = custodian.leave().unwrap();
    drop(custodian);
    let left = serde_json::from_str(&serde_json::to_string(&left).unwrap()).unwrap();
    let resumed = Custodian::resume(end, left).unwrap();
    assert!(!resumed.settle().unwrap(), "the queue is still full");
    let session = session();
    let refused = async |id| {
        // An answer is one to a deposit.
        depositor.deposit(&deposit(id), session.fds()).unwrap();
        assert!(matches!(resumed.next().await, Ok(Word::Deposit(..))));
        assert_eq!(depositor.refused().await.unwrap().id, id);
    };
    for id in 0..owed - 1 {
        refused(id).await;
    }
    // What did not fit is said by the image that came after.
    resumed.writable().await.unwrap();
    assert!(resumed.settle().unwrap());
    refused(owed - 1).await;
}

#[tokio::test]
async fn a_gone_keeper_is_away_and_ends_the_wait() {
    let (depositor, custodian) = ends();
    drop(custodian);
    let session = session();
    assert_eq!(depositor.deposit(&deposit(1), session.fds()), Err(NotDeposited::Away));
    assert_eq!(depositor.withdraw(1, PLACE), Err(NotDeposited::Away));
    assert!(matches!(depositor.refused().await, Err(VaultError::Gone)));
}

#[tokio::test]
async fn nonsense_ends_the_channel_and_leaks_nothing() {
    let session = session();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let text = |id: u64| {
        format!(r#"{{"type":"deposit","id":{id},"place":{{"segment":0,"index":0}},"thread":0,"later":true}}"#)
    };
    let [client, backend, up, down] = session.fds();
    let long = format!(r#"{{"type":"withdraw","id":1,"place":"{}"}}"#, "x".repeat(600));
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    for (record, fds) in [
        (text(1), vec![client, backend, up]),
        (text(1), vec![]),
        (text(1), vec![client, backend, up, down, down]),
        (text(1), vec![up, backend, up, down]),
        (text(1), vec![client, listener.as_fd(), up, down]),
        (text(1), vec![client, backend, client, down]),
        (long, vec![]),
        ("{}".into(), vec![client]),
        (r#"{"type":"held","count":1}"#.into(), vec![]),
        ("[".repeat(500), vec![]),
    ] {
        let (ours, theirs) = pair().unwrap();
        let (theirs, custodian) = (UnixDatagram::from(theirs), Custodian::new(ours).unwrap());
        let before = open();
        let fds: Vec<_> = fds.iter().map(std::os::fd::AsRawFd::as_raw_fd).collect();
        channel::transmit(&theirs, record.as_bytes(), &fds).unwrap();
        let error = custodian.next().await.unwrap_err();
        assert!(!matches!(error, VaultError::Gone | VaultError::Io(_)), "{record}: {error}");
        assert_eq!(open(), before, "{record}: descriptors are left open");
    }
}

#[tokio::test]
async fn a_keeper_that_counts_wrongly_is_not_believed() {
    let (ours, theirs) = pair().unwrap();
    let depositor = Depositor::new(theirs).unwrap();
    channel::transmit(&UnixDatagram::from(ours), br#"{"type":"held","count":1}"#, &[]).unwrap();
    assert!(matches!(depositor.refused().await, Err(VaultError::Count { held: 1, open: 0 })));
}

/// In a process of its own, which is this program with `CONFESS` set to what is to bring it down.
#[tokio::test]
async fn the_last_word_of_a_process_is_which_of_its_threads_crashed() {
    if let Ok(how) = std::env::var("CONFESS") {
        crash(&how);
    }
    for (how, thread, signal) in [("abort", Some(700), 6), ("segv", Some(700), 11), ("other", None, 6)] {
        let (ours, theirs) = pair().unwrap();
        let custodian = Custodian::new(ours).unwrap();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "vault::tests::the_last_word_of_a_process_is_which_of_its_threads_crashed"]);
        child.env("CONFESS", how).stdin(theirs).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let status = child.status().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(signal), "{how}: {status}");
        drop(child);
        let Ok(Some(Word::Crashed { thread: said })) = custodian.try_next() else { panic!("{how}: nothing was said") };
        assert_eq!(said, thread, "{how}");
        assert!(matches!(custodian.try_next(), Err(VaultError::Gone)));
    }
}

fn crash(how: &str) {
    let end = crate::os::take_stdin().unwrap();
    crate::os::confess_through(end.as_fd()).unwrap();
    // A second time, as after a new keeper.
    crate::os::confess_through(end.as_fd()).unwrap();
    let how = how.to_owned();
    let crashes = move || match how.as_str() {
        "abort" => {
            crate::os::confess_as(700);
            std::process::abort()
        }
        "segv" => {
            crate::os::confess_as(700);
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGSEGV).unwrap();
        }
        _ => std::process::abort(),
    };
    std::thread::spawn(crashes).join().unwrap();
}

/// What workers and keepers of other versions read and write.
#[test]
fn the_words_are_what_they_were() {
    use super::words::{Down, Up, decode, encode};
    fn is_written<T>(word: &T, text: &str)
    where
        T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
    {
        assert_eq!(String::from_utf8(encode(word).unwrap()).unwrap(), text);
        assert_eq!(decode::<T>(text.as_bytes()).unwrap(), *word);
    }
    let place = r#""place":{"segment":1,"index":7}"#;
    is_written(&Up::Deposit(deposit(9)), &format!(r#"{{"type":"deposit","id":9,{place},"thread":3}}"#));
    let with_terms = Deposit { terms: Some(r#"{"idle":5}"#.into()), ..deposit(9) };
    let terms = r#""terms":"{\"idle\":5}""#;
    is_written(&Up::Deposit(with_terms), &format!(r#"{{"type":"deposit","id":9,{place},"thread":3,{terms}}}"#));
    is_written(&Up::Withdraw { id: 9, place: PLACE }, &format!(r#"{{"type":"withdraw","id":9,{place}}}"#));
    is_written(&Down::Held { count: 2 }, r#"{"type":"held","count":2}"#);
    is_written(&Down::Refused(Refused { id: 9, thread: 3 }), r#"{"type":"refused","id":9,"thread":3}"#);
}

#[test]
fn the_longest_terms_fit_into_a_record() {
    use super::words::{RECORD, Up, encode};
    let place = Place { segment: u32::MAX, index: u32::MAX };
    let terms = format!("{}{}", "\"".repeat(TERMS / 7), "x".repeat(TERMS - TERMS / 7));
    let longest = Deposit { id: u64::MAX, place, thread: u16::MAX, terms: Some(terms) };
    let record = encode(&Up::Deposit(longest)).unwrap();
    assert!(record.len() <= RECORD, "{}", record.len());
}
