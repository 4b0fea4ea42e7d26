use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};

use socket2::{Domain, SockAddr, Socket, Type};

use super::*;

fn tcp() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn v6(v6only: bool) -> Socket {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
    socket.set_only_v6(v6only).unwrap();
    // The kernel makes every socket bound to one plain IPv6 address v6-only; on a mapped one it leaves the choice.
    let address = if v6only { "[::1]:0" } else { "[::ffff:127.0.0.1]:0" };
    socket.bind(&SockAddr::from(address.parse::<SocketAddr>().unwrap())).unwrap();
    socket.listen(5).unwrap();
    socket
}

#[test]
fn an_entry_says_what_getsockname_says() {
    let listener = tcp();
    let entry = Entry::of("web", &listener).unwrap();
    assert_eq!((entry.id.as_str(), entry.kind, entry.v6only), ("web", Kind::Tcp4, false));
    assert_eq!(entry.address, listener.local_addr().unwrap().to_string());
    assert_ne!(entry.netns, 0, "this kernel has SO_NETNS_COOKIE");
    for only in [true, false] {
        let entry = Entry::of("web", v6(only)).unwrap();
        assert_eq!((entry.kind, entry.v6only), (Kind::Tcp6, only));
        assert!(entry.address.starts_with(if only { "[::1]:" } else { "[::ffff:127.0.0.1]:" }));
        assert_eq!(entry.verify(v6(only).as_fd()).unwrap_err().what, "address");
    }
}

#[test]
fn unix_addresses_are_text_without_ambiguity() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a b.sock");
    let entry = Entry::of("s", UnixListener::bind(&path).unwrap()).unwrap();
    assert_eq!((entry.kind, entry.address.as_str()), (Kind::Unix, path.to_str().unwrap()));
    use std::os::linux::net::SocketAddrExt;
    let name = format!("proxyd-test-{}", std::process::id());
    let address = UnixAddr::from_abstract_name(&name).unwrap();
    let entry = Entry::of("s", UnixListener::bind_addr(&address).unwrap()).unwrap();
    assert_eq!(entry.address, format!("@{name}"));
    for (bytes, text) in [(&b"/a"[..], "/a"), (b"/\n", "/\\n"), (b"/\\n", "/\\\\n"), (b"/\xff", "/\\xff")] {
        assert_eq!(escaped(bytes), text);
    }
}

#[test]
fn f28_h5_only_the_announced_socket_passes() {
    let (listener, other, udp) = (tcp(), tcp(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let entry = Entry::of("web", &listener).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let unix = UnixListener::bind(dir.path().join("s")).unwrap();
    let unbound = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let bound = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    bound.bind(&SockAddr::from("127.0.0.1:0".parse::<SocketAddr>().unwrap())).unwrap();
    let seqpacket = crate::channel::Channel::pair().unwrap().0;
    entry.verify(listener.as_fd()).unwrap();
    entry.verify(listener.try_clone().unwrap().as_fd()).unwrap();
    let cases: [(OwnedFd, &str, &str); 11] = [
        (tempfile::tempfile().unwrap().into(), "type", "a file"),
        (std::fs::File::open("/dev/null").unwrap().into(), "type", "a device"),
        (rustix::pipe::pipe().unwrap().0, "type", "a pipe"),
        (udp.into(), "type", "a datagram socket"),
        (seqpacket, "type", "a seqpacket socket"),
        (client.into(), "type", "a tcp4 socket that does not listen"),
        (unbound.into(), "type", "a tcp4 socket that does not listen"),
        (bound.into(), "type", "a tcp4 socket that does not listen"),
        (UnixStream::pair().unwrap().0.into(), "type", "a unix socket that does not listen"),
        (unix.into(), "type", "unix"),
        (other.into(), "address", ""),
    ];
    for (fd, what, found) in cases {
        let mismatch = entry.verify(fd.as_fd()).unwrap_err();
        assert_eq!((mismatch.id.as_str(), mismatch.what), ("web", what), "{mismatch}");
        assert!(mismatch.found.contains(found), "{mismatch}");
        if what == "type" && found != "unix" {
            assert!(Entry::of("web", fd).unwrap_err().to_string().contains(found));
        }
    }
}

#[test]
fn another_network_namespace_is_refused_and_an_unknown_one_is_not_compared() {
    let listener = tcp();
    let entry = Entry::of("web", &listener).unwrap();
    let foreign = Entry { netns: entry.netns + 1, ..entry.clone() };
    assert_eq!(foreign.verify(listener.as_fd()).unwrap_err().what, "network namespace");
    Entry { netns: 0, ..entry.clone() }.verify(listener.as_fd()).unwrap();
    let dual = v6(false);
    let entry = Entry { v6only: true, ..Entry::of("six", &dual).unwrap() };
    assert_eq!(entry.verify(dual.as_fd()).unwrap_err().what, "v6only");
}

#[test]
fn batches_hold_everything_in_order_and_fit_a_record() {
    let listener = tcp();
    let entry = |id: String, address: &str| Entry {
        id,
        kind: Kind::Unix,
        address: address.to_owned(),
        v6only: true,
        netns: u64::MAX,
    };
    let quotes = |index: usize| format!("{index:0>4}{}", "\"".repeat(296));
    for (n, long) in [(0, false), (1, false), (200, false), (201, false), (1_000, false), (500, true)] {
        let all: Vec<_> = (0..n)
            .map(|index| if long { entry(quotes(index), &"\\\\".repeat(200)) } else { entry(index.to_string(), "/s") })
            .map(|entry| (entry, listener.as_fd()))
            .collect();
        let cut: Vec<_> = batches(&all).collect();
        for batch in &cut {
            assert!(!batch.is_empty() && batch.len() <= codec::BATCH);
            let entries = batch.iter().map(|(entry, _)| entry.clone()).collect();
            codec::encode(&crate::message::Message::Batch(crate::message::Batch { first: 65_536, entries })).unwrap();
        }
        let ids: Vec<_> = cut.iter().flat_map(|batch| batch.iter()).map(|(entry, _)| &entry.id).collect();
        assert_eq!(ids, all.iter().map(|(entry, _)| &entry.id).collect::<Vec<_>>());
        assert!(long || cut.len() == n.div_ceil(200));
    }
}

/// Left out silently it would be a listener that nobody serves; the codec refuses it by name.
#[test]
fn an_entry_that_fits_no_record_is_not_left_out() {
    let listener = tcp();
    let long = Entry { id: "x".repeat(codec::RECORD), ..Entry::of("web", &listener).unwrap() };
    let all = [(long.clone(), listener.as_fd()), (long, listener.as_fd())];
    assert_eq!(batches(&all).map(<[_]>::len).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn a_duplicate_is_found() {
    assert_eq!(duplicate(["a", "b", "a "]), None);
    assert_eq!(duplicate(["a", "b", "b", "a"]), Some("b"));
}
