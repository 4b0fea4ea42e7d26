use std::io::IoSlice;
use std::process::{Command, Stdio};

use super::*;
use crate::message::Body;

fn us() -> Peer {
    Peer { pid: Some(std::process::id()), uid: rustix::process::getuid().as_raw() }
}

/// Two channels, and a second descriptor for the sending end of the first.
fn pair() -> (Channel, Channel, OwnedFd) {
    let (ours, theirs) = Channel::pair().unwrap();
    let raw = ours.try_clone().unwrap();
    (Channel::new(ours, us()).unwrap(), Channel::new(theirs, us()).unwrap(), raw)
}

#[tokio::test]
async fn a_record_arrives_whole_with_close_on_exec_descriptors() {
    let (ours, theirs, _raw) = pair();
    let file = tempfile::tempfile().unwrap();
    ours.send(&Message::Segment { index: 3 }, &[file.as_fd()]).await.unwrap();
    ours.send(&Message::Ready, &[]).await.unwrap();
    let (message, fds) = theirs.recv().await.unwrap();
    assert_eq!((message, fds.len()), (Message::Segment { index: 3 }, 1));
    assert!(rustix::io::fcntl_getfd(&fds[0]).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    assert_eq!(rustix::fs::fstat(&fds[0]).unwrap().st_ino, rustix::fs::fstat(&file).unwrap().st_ino);
    assert_eq!(theirs.recv().await.unwrap().0, Message::Ready);
    assert!(theirs.try_recv().unwrap().is_none());
}

#[tokio::test]
async fn a_full_queue_waits_and_loses_nothing() {
    let (ours, theirs, _raw) = pair();
    let word = |index: usize| Message::Notice { body: Body::Text(format!("{index}{}", "x".repeat(60_000))) };
    let send = async {
        for index in 0..50 {
            ours.send(&word(index), &[]).await.unwrap();
        }
    };
    let recv = async {
        for index in 0..50 {
            assert_eq!(theirs.recv().await.unwrap().0, word(index));
        }
    };
    tokio::join!(send, recv);
    let full = (0..50).find_map(|index| ours.try_send(&word(index)).err());
    assert!(matches!(full, Some(ChannelError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock));
}

#[tokio::test]
async fn h3_descriptors_are_counted_on_both_sides() {
    let (ours, theirs, raw) = pair();
    let file = tempfile::tempfile().unwrap();
    let wrong = ours.send(&Message::Ready, &[file.as_fd()]).await;
    assert!(matches!(wrong, Err(ChannelError::Descriptors { message: "ready", expected: 0, got: 1 })));
    let socket = UnixDatagram::from(raw);
    for (record, fds, message) in [
        (&br#"{"type":"ready"}"#[..], 1, "ready"),
        (br#"{"type":"segment","index":1}"#, 0, "segment"),
        (br#"{"type":"segment","index":1}"#, 2, "segment"),
    ] {
        socket.send_with_fd(record, &vec![file.as_raw_fd(); fds]).unwrap();
        match theirs.recv().await {
            Err(ChannelError::Descriptors { message: named, got, .. }) => assert_eq!((named, got), (message, fds)),
            other => panic!("{other:?}"),
        }
    }
    // Descriptors without a record are not the end of the conversation, nor a record.
    socket.send_with_fd(b"", &[file.as_raw_fd()]).unwrap();
    assert!(matches!(theirs.recv().await, Err(ChannelError::Codec(CodecError::Empty))));
    assert!(theirs.try_recv().unwrap().is_none());
}

#[tokio::test]
async fn h1_a_record_above_the_limit_is_refused_whole() {
    let (_ours, theirs, raw) = pair();
    let socket = UnixDatagram::from(raw);
    socket.send(&vec![b' '; codec::RECORD + 1]).unwrap();
    let error = theirs.recv().await.unwrap_err();
    assert!(matches!(error, ChannelError::Codec(CodecError::TooLong { len }) if len == codec::RECORD + 1));
    assert!(theirs.try_recv().unwrap().is_none());
}

#[tokio::test]
async fn h7_a_record_of_another_process_is_refused() {
    let (ours, theirs) = Channel::pair().unwrap();
    let channel = Channel::<Message>::new(ours, us()).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "printf '{\"type\":\"ready\"}' >&0"]).stdin(Stdio::from(theirs.try_clone().unwrap()));
    let mut child = command.spawn().unwrap();
    match channel.recv().await {
        Err(ChannelError::Stranger { wanted, got }) => assert_eq!((wanted, got.pid), (us(), Some(child.id()))),
        other => panic!("{other:?}"),
    }
    child.wait().unwrap();
    let anyone =
        Channel::<Message>::new(channel.socket.into_inner().into(), Peer { pid: None, uid: us().uid + 1 }).unwrap();
    let same_uid = Channel::new(theirs, us()).unwrap();
    same_uid.send(&Message::Ready, &[]).await.unwrap();
    assert!(matches!(anyone.recv().await, Err(ChannelError::Stranger { .. })), "the uid is compared without a pid");
}

#[tokio::test]
async fn credentials_are_there_even_for_what_was_sent_before_the_channel_was_taken() {
    let (ours, theirs) = Channel::pair().unwrap();
    let iov = [IoSlice::new(br#"{"type":"ready"}"#)];
    let mut none = rustix::net::SendAncillaryBuffer::default();
    rustix::net::sendmsg(&ours, &iov, &mut none, rustix::net::SendFlags::empty()).unwrap();
    assert_eq!(Channel::<Message>::new(theirs, us()).unwrap().recv().await.unwrap().0, Message::Ready);
}

#[tokio::test]
async fn last_words_are_read_before_the_end() {
    let (ours, theirs, raw) = pair();
    // Something unread at the other end makes its close a reset, which must not hide what it said.
    ours.send(&Message::Commit, &[]).await.unwrap();
    theirs.send(&Message::Ready, &[]).await.unwrap();
    drop(theirs);
    assert!(matches!(ours.send(&Message::Stop, &[]).await, Err(ChannelError::Gone)));
    assert_eq!(ours.recv().await.unwrap().0, Message::Ready);
    assert!(matches!(ours.recv().await, Err(ChannelError::Gone)));
    assert!(matches!(ours.send(&Message::Stop, &[]).await, Err(ChannelError::Gone)));
    drop(raw);
}

#[tokio::test]
async fn only_a_seqpacket_unix_socket_is_a_channel() {
    let strangers: [OwnedFd; 4] = [
        std::os::unix::net::UnixStream::pair().unwrap().0.into(),
        UnixDatagram::pair().unwrap().0.into(),
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().into(),
        tempfile::tempfile().unwrap().into(),
    ];
    for fd in strangers {
        assert!(matches!(Channel::<Message>::new(fd, us()), Err(ChannelError::NotAChannel { .. })));
    }
}

#[test]
fn f22_send_failures_are_sorted() {
    let of = |errno: Errno| unsent(errno.into());
    assert!(matches!(of(Errno::TOOMANYREFS), ChannelError::TooManyInFlight));
    assert!(matches!(of(Errno::PIPE), ChannelError::Gone));
    assert!(matches!(of(Errno::CONNRESET), ChannelError::Gone));
    assert!(matches!(of(Errno::MSGSIZE), ChannelError::Io(_)));
}
