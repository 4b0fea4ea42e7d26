//! What the tests of the conversation share: listeners, a census of descriptors, and a peer driven by hand.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use handoff::HandoffError;
use handoff::channel::{Channel, Peer};
use handoff::codec::Word;
use handoff::manifest::Entry;
use handoff::message::{Hello, LEDGER, Message, PROTOCOL};
use handoff::predecessor::{Offer, Predecessor};
use handoff::successor::{Accepted, Identity, Successor};
use sendfd::SendWithFd;
use tokio::time::Instant;

/// Runs a test while no other runs, and checks that it leaves the descriptors of this process as it found them.
pub(crate) fn alone(test: impl AsyncFnOnce()) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // The first runtime of a process opens a pair of sockets for signals that stays.
    drop(runtime());
    let before = census();
    let runtime = runtime();
    runtime.block_on(test());
    drop(runtime);
    assert_eq!(census(), before, "descriptors before and after");
}

/// Every open descriptor and what it is.
pub(crate) fn census() -> BTreeMap<String, PathBuf> {
    let listed = std::fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path());
    // The listing's own descriptor is gone by the time its link is read.
    listed.filter_map(|fd| Some((fd.file_name()?.to_str()?.to_owned(), std::fs::read_link(&fd).ok()?))).collect()
}

pub(crate) struct Listeners {
    pub(crate) sockets: Vec<(Entry, OwnedFd)>,
    _dir: tempfile::TempDir,
}

impl Listeners {
    /// IPv4, IPv6 and Unix in turn.
    pub(crate) fn new(count: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let one = |index: usize| -> OwnedFd {
            match index % 3 {
                0 => TcpListener::bind("127.0.0.1:0").unwrap().into(),
                1 => TcpListener::bind("[::1]:0").unwrap().into(),
                _ => UnixListener::bind(dir.path().join(index.to_string())).unwrap().into(),
            }
        };
        let named = |index: usize| {
            let fd = one(index);
            (Entry::of(&format!("listener {index}"), &fd).unwrap(), fd)
        };
        Self { sockets: (0..count).map(named).collect(), _dir: dir }
    }

    pub(crate) fn lent(&self) -> Vec<(Entry, BorrowedFd<'_>)> {
        self.sockets.iter().map(|(entry, fd)| (entry.clone(), fd.as_fd())).collect()
    }
}

pub(crate) fn us() -> Peer {
    Peer { pid: Some(std::process::id()), uid: rustix::process::getuid().as_raw() }
}

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

pub(crate) async fn offer(
    channel: Channel,
    sockets: &[(Entry, BorrowedFd<'_>)],
    deadline: Instant,
) -> Result<(Predecessor, Hello), HandoffError> {
    let offer = Offer { generation: 7, version: "1.2.3", build: "keeper", sockets, segments: &[], plan: b"plan" };
    Predecessor::offer(channel, &offer, deadline, &mut |_| {}).await
}

pub(crate) async fn accept(channel: Channel, deadline: Instant) -> Result<Accepted, HandoffError> {
    Successor::accept(channel, Identity { version: "1.2.4", build: "worker" }, deadline).await
}

pub(crate) fn hello() -> Hello {
    Hello {
        protocol: PROTOCOL,
        ledger: LEDGER,
        version: "1.2.4".to_owned(),
        build: "by hand".to_owned(),
        generation: 7,
        pid: std::process::id(),
        descriptors: None,
    }
}

/// A peer that says whatever it is told to, in whatever order, with whatever descriptors.
pub(crate) struct ByHand<W = Message> {
    channel: Channel<W>,
    raw: UnixDatagram,
}

impl ByHand {
    /// The other end is for the role under test.
    pub(crate) fn new() -> (Self, Channel) {
        let (hand, theirs) = Self::opposite();
        (hand, Channel::new(theirs, us()).unwrap())
    }
}

impl<W: Word> ByHand<W> {
    /// As [`Self::new`], the other end as it is.
    pub(crate) fn opposite() -> (Self, OwnedFd) {
        let (theirs, ours) = Channel::pair().unwrap();
        let raw = UnixDatagram::from(ours.try_clone().unwrap());
        (Self { channel: Channel::new(ours, us()).unwrap(), raw }, theirs)
    }

    /// The next word, which has this name.
    pub(crate) async fn hears(&self, name: &str) -> (W, Vec<OwnedFd>) {
        let (message, fds) = self.channel.recv().await.unwrap();
        assert_eq!(message.name(), name);
        (message, fds)
    }

    /// Hears words until the other side refuses, and gives its reason; `None` if it leaves without one.
    pub(crate) async fn hears_refusal(&self) -> Option<String> {
        loop {
            match self.channel.recv().await {
                Ok((word, _)) => match word.refused() {
                    Some(cause) => return Some(cause.to_owned()),
                    None => continue,
                },
                Err(_) => return None,
            }
        }
    }

    pub(crate) fn says(&self, message: &W) {
        self.writes(&serde_json::to_vec(message).unwrap(), &[]);
    }

    pub(crate) fn hands(&self, message: &W, fds: &[BorrowedFd<'_>]) {
        self.writes(&serde_json::to_vec(message).unwrap(), fds);
    }

    pub(crate) fn writes(&self, record: &[u8], fds: &[BorrowedFd<'_>]) {
        let fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        self.raw.send_with_fd(record, &fds).unwrap();
    }
}
