use proptest::prelude::*;

use super::*;
use crate::manifest::Kind;
use crate::message::{Budget, Hello, Offered, Pulse, Range};
use crate::transfer::Role;

fn decode(bytes: &[u8]) -> Result<Message, CodecError> {
    super::decode(bytes)
}

/// One of each message, some with extreme values; the golden files hold their bytes as each version wrote them.
fn every_message(version: u32) -> Vec<Message> {
    let range = Range { min: 1, max: version };
    let entry = |id: &str, kind, address: &str, v6only| Entry {
        id: id.to_owned(),
        kind,
        address: address.to_owned(),
        v6only,
        netns: 1,
    };
    let entries = vec![
        entry("web 0", Kind::Tcp4, "127.0.0.1:80", false),
        entry("web 1", Kind::Tcp6, "[::1]:80", true),
        entry("sock", Kind::Unix, "/run/web.sock", false),
    ];
    let text = |text: &str| Body::Text(text.to_owned());
    vec![
        Message::Hello(Hello {
            protocol: range,
            ledger: Range { min: 1, max: 1 },
            version: "0.1.0".to_owned(),
            build: "a1b2c3".to_owned(),
            generation: 7,
            pid: 4711,
            descriptors: Some(Budget { limit: 1 << 20, open: 12 }),
        }),
        Message::Offer(Offered { protocol: version, sockets: 3, segments: 1 }),
        Message::Segment { index: 0 },
        Message::Batch(Batch { first: 0, entries: entries.clone() }),
        Message::BatchTaken { count: 3 },
        Message::Plan { body: Body::File(17) },
        Message::Adopted(Batch { first: 0, entries: entries[..1].to_vec() }),
        Message::Ready,
        Message::Commit,
        Message::Polling { first_poll_ns: u64::MAX },
        Message::Stop,
        Message::Stopped { last_poll_ns: 1 },
        Message::Order { id: (1 << 53) + 1, body: text("{\"swap\":\"pg\"}") },
        Message::Answer { id: (1 << 53) + 1, body: text("") },
        Message::Answer { id: 2, body: Body::File(FILE) },
        Message::Heartbeat(Pulse { sessions: 120, ..Pulse::default() }),
        Message::Heartbeat(Pulse { sessions: 120, connects: Some(4000), failures: Some(u64::MAX) }),
        Message::Notice { body: text("backend down") },
        Message::Refused { cause: "listener web 0: address: wanted 127.0.0.1:80, found 127.0.0.1:81".to_owned() },
    ]
}

#[test]
fn every_version_is_read_and_written_as_it_was_released() {
    replay(include_str!("../../golden/v1.jsonl"), every_message(1));
    replay(include_str!("../../golden/v2.jsonl"), [every_message(2), vec![Message::Door]].concat());
    let of_3 = vec![
        Message::Door,
        Message::Path { id: (1 << 53) + 1, role: Role::Give, other: 8 },
        Message::Path { id: 2, role: Role::Take, other: 0 },
        Message::Vault,
    ];
    replay(include_str!("../../golden/v3.jsonl"), [every_message(3), of_3].concat());
}

fn replay(golden: &str, messages: Vec<Message>) {
    assert_eq!(golden.lines().count(), messages.len());
    for (line, message) in golden.lines().zip(messages) {
        assert_eq!(decode(line.as_bytes()).unwrap(), message, "{line}");
        assert_eq!(String::from_utf8(encode(&message).unwrap()).unwrap(), line);
        assert!(line.contains(&format!("\"type\":\"{}\"", message.name())), "{line}");
    }
}

#[test]
fn f18_unknown_optional_fields_are_ignored_and_required_ones_refused() {
    assert_eq!(decode(br#"{"type":"ready","colour":[{"x":1}],"required":[]}"#).unwrap(), Message::Ready);
    let optional = br#"{"later":1,"type":"offer","protocol":1,"sockets":0,"segments":0}"#;
    assert!(matches!(decode(optional).unwrap(), Message::Offer(_)));
    // The feature is named even if the rest of the record cannot be understood without it.
    for record in [r#"{"type":"ready","required":["moves"]}"#, r#"{"required":["moves"],"type":"move"}"#] {
        assert_eq!(decode(record.as_bytes()), Err(CodecError::Required { feature: "moves".to_owned() }));
    }
}

#[test]
fn h1_what_is_no_record_is_named_with_its_offset() {
    let syntax = |record: &[u8]| match decode(record) {
        Err(CodecError::Syntax { offset, what }) => (offset, what),
        other => panic!("{other:?}"),
    };
    assert_eq!(decode(b""), Err(CodecError::Empty));
    assert_eq!(decode(&[b' '; RECORD + 1]), Err(CodecError::TooLong { len: RECORD + 1 }));
    assert_eq!(syntax(b"\0\0\0\x05").0, 0);
    assert_eq!(syntax(br#"{"type":"ready"}{"type":"ready"}"#).0, 16, "two records glued");
    assert_eq!(syntax(b"{\"type\":\n\"ready\"}x").0, 17, "trailing bytes after a line break");
    assert_eq!(syntax(br#"{"type":"rea"#).0, 11, "truncated");
    for record in every_message(2).iter().map(|message| encode(message).unwrap()) {
        for cut in 0..record.len() {
            assert!(decode(&record[..cut]).is_err());
        }
    }
    assert!(syntax(br#"{"type":"launch"}"#).1.contains("launch"), "an unknown word is named");
    syntax(br#"{"sockets":1}"#);
    syntax(br#"["ready"]"#);
    syntax(br#"{"type":"polling","first_poll_ns":-1}"#);
    syntax(br#"{"type":"polling","first_poll_ns":1e3}"#);
    syntax(br#"{"type":"polling","first_poll_ns":18446744073709551616}"#);
    syntax(br#"{"type":"polling","first_poll_ns":1,"first_poll_ns":2}"#);
    syntax(b"{\"type\":\"notice\",\"body\":{\"text\":\"\xff\"}}");
    assert!(!syntax(b"{\"type\":\"a\\nb\\u001b\"}").1.contains(['\n', '\u{1b}']), "nothing of it breaks a log line");
}

#[test]
fn nesting_is_limited() {
    let nested = |depth: usize| format!("{{\"type\":\"ready\",\"x\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    assert_eq!(decode(nested(DEPTH - 1).as_bytes()).unwrap(), Message::Ready);
    assert_eq!(decode(nested(DEPTH).as_bytes()), Err(CodecError::TooDeep { offset: 19 + DEPTH }));
    assert!(matches!(decode(&[b'['; RECORD]), Err(CodecError::TooDeep { .. })));
    let quoted = format!("{{\"type\":\"notice\",\"body\":{{\"text\":\"\\\"{}\"}}}}", "{[".repeat(DEPTH));
    assert!(decode(quoted.as_bytes()).is_ok(), "brackets in a text are no nesting");
}

#[test]
fn h6_ids_are_bounded_and_plain() {
    let batch = |id: &str| {
        let entry = Entry { id: id.to_owned(), kind: Kind::Tcp4, address: "x".to_owned(), v6only: false, netns: 0 };
        Message::Batch(Batch { first: 0, entries: vec![entry] })
    };
    for id in ["a", "web 0", "größe", &"x".repeat(300)] {
        assert!(encode(&batch(id)).is_ok(), "{id}");
    }
    for id in ["", "a\nb", "a\u{0}", "a\u{85}", &"x".repeat(301), &"x".repeat(60_000)] {
        assert!(matches!(encode(&batch(id)), Err(CodecError::Id { .. })), "{id:?}");
        let bytes = serde_json::to_vec(&batch(id)).unwrap();
        assert!(matches!(decode(&bytes), Err(CodecError::Id { .. })), "{id:?}");
    }
}

#[test]
fn numbers_are_bounded_both_ways() {
    let offer = |sockets, segments| Message::Offer(Offered { protocol: 1, sockets, segments });
    let entry = Entry { id: "a".to_owned(), kind: Kind::Unix, address: String::new(), v6only: false, netns: 0 };
    let batch = |first, n| Message::Batch(Batch { first, entries: vec![entry.clone(); n] });
    for good in [offer(65_536, 65_536), batch(65_536, 200), Message::BatchTaken { count: 200 }] {
        assert_eq!(decode(&encode(&good).unwrap()).unwrap(), good);
    }
    for bad in [
        offer(65_537, 0),
        offer(0, u32::MAX),
        batch(0, 201),
        batch(u32::MAX, 1),
        Message::BatchTaken { count: 201 },
        Message::Plan { body: Body::File(FILE + 1) },
    ] {
        assert!(matches!(encode(&bad), Err(CodecError::Limit { .. })), "{bad:?}");
        assert!(matches!(decode(&serde_json::to_vec(&bad).unwrap()), Err(CodecError::Limit { .. })), "{bad:?}");
    }
    let long = Message::Notice { body: Body::Text("x".repeat(RECORD)) };
    assert!(matches!(encode(&long), Err(CodecError::TooLong { .. })));
}

proptest! {
    #[test]
    fn any_bytes_give_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        drop(decode(&bytes));
    }

    /// Valid records with a few bytes changed reach deeper than noise; what is still read is written and read alike.
    #[test]
    fn damaged_records_are_read_alike_or_refused(
        which in 0..18_usize,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut bytes = encode(&every_message(2)[which]).unwrap();
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(message) = decode(&bytes) {
            prop_assert_eq!(decode(&encode(&message).unwrap()).unwrap(), message);
        }
    }

    #[test]
    fn any_text_crosses_unchanged(id in "[^\\p{Cc}]{1,40}", address in ".{0,100}", text in ".{0,200}") {
        let entry = Entry { id, kind: Kind::Unix, address, v6only: false, netns: u64::MAX };
        for message in [
            Message::Batch(Batch { first: 1, entries: vec![entry.clone()] }),
            Message::Order { id: 1, body: Body::Text(text.clone()) },
        ] {
            prop_assert_eq!(decode(&encode(&message).unwrap()).unwrap(), message);
        }
    }
}
