//! The words of a path and what travels beside them, as bytes.

use proptest::prelude::*;

use super::body::{BodyError, Part};
use super::message::{Entry, Hello, Offer, Transfer};
use super::*;
use crate::codec::{CodecError, Word, decode, encode};
use crate::message::Budget;

fn entry(id: u64, state: usize, hand: [usize; 2], pipes: [bool; 2]) -> Entry {
    let len = |len: usize| u32::try_from(len).unwrap();
    Entry { id, place: Place { segment: 0, index: 1 }, state: len(state), hand: hand.map(len), pipes }
}

fn offer(items: Vec<Entry>) -> Transfer {
    Transfer::Offer(Offer { batch: 1, items })
}

fn taken(verdicts: Vec<Verdict>) -> Transfer {
    Transfer::Taken { batch: 1, verdicts, descriptors: None }
}

/// One of each word, some with extreme values; the golden file holds their bytes as the version wrote them.
fn every_word() -> Vec<Transfer> {
    let hello = |generation, descriptors| Transfer::Hello(Hello { protocol: TRANSFER, generation, descriptors });
    let mut items =
        vec![entry(20_000_000_000_017, STATE, [HAND, 0], [false, true]), entry(5, 0, [0, 1], [false, false])];
    items[0].place = Place { segment: 2, index: 3 };
    items[1].place = Place { segment: 0, index: u32::MAX };
    let verdicts = vec![Verdict::Taken { thread: 3 }, Verdict::Refused { why: "no_room".to_owned() }];
    vec![
        hello(7, Some(Budget { limit: 1 << 20, open: 12 })),
        hello(0, None),
        offer(items),
        Transfer::Taken { batch: 1, verdicts, descriptors: None },
        Transfer::Release { batch: 1 },
        Transfer::Withdraw { batch: u64::MAX },
        Transfer::Dropped { batch: 2 },
        Transfer::Refused { cause: "session 5: client: a stream socket was announced, found a pipe".to_owned() },
    ]
}

#[test]
fn version_1_is_read_and_written_as_it_was_released() {
    let golden = include_str!("../../golden/transfer_v1.jsonl");
    assert_eq!(golden.lines().count(), every_word().len());
    for (line, word) in golden.lines().zip(every_word()) {
        assert_eq!(decode::<Transfer>(line.as_bytes()).unwrap(), word, "{line}");
        assert_eq!(String::from_utf8(encode(&word).unwrap()).unwrap(), line);
        assert!(line.contains(&format!("\"type\":\"{}\"", word.name())), "{line}");
    }
}

/// Later than the first release of version 1, whose words are read and written as before.
#[test]
fn an_answer_may_say_what_is_left() {
    let golden = include_str!("../../golden/transfer_v1_room.jsonl");
    let verdicts = vec![Verdict::Taken { thread: 3 }, Verdict::Refused { why: "no_room".to_owned() }];
    let word = Transfer::Taken { batch: 1, verdicts, descriptors: Some(Budget { limit: 1 << 20, open: 12 }) };
    assert_eq!(decode::<Transfer>(golden.trim_end().as_bytes()).unwrap(), word);
    assert_eq!(String::from_utf8(encode(&word).unwrap()).unwrap(), golden.trim_end());
}

#[test]
fn unknown_optional_fields_are_ignored_and_required_ones_refused() {
    let read = |record: &str| decode::<Transfer>(record.as_bytes());
    assert_eq!(read(r#"{"type":"release","batch":3,"colour":{}}"#).unwrap(), Transfer::Release { batch: 3 });
    let required = read(r#"{"type":"release","batch":3,"required":["splice"]}"#);
    assert_eq!(required, Err(CodecError::Required { feature: "splice".to_owned() }));
    assert!(matches!(read(r#"{"type":"ready"}"#), Err(CodecError::Syntax { .. })), "a word of another conversation");
}

#[test]
fn descriptors_follow_from_the_entries() {
    let both = [true, true];
    for (items, wanted) in [
        (vec![], 1),
        (vec![entry(1, 0, [0, 0], [false, false])], 3),
        (vec![entry(1, 0, [0, 0], [true, false]), entry(2, 0, [0, 0], both)], 8),
        ((1..=49).map(|id| entry(id, 0, [0, 0], both)).collect(), 197),
    ] {
        assert_eq!(offer(items).descriptors(), wanted);
    }
}

#[test]
fn numbers_are_bounded_both_ways() {
    let plain = |id| entry(id, 1, [0, 0], [false, false]);
    let both = |id| entry(id, 1, [0, 0], [true, true]);
    let many = |count: u64| offer((1..=count).map(plain).collect());
    let refusal = |len: usize| taken(vec![Verdict::Refused { why: "\"".repeat(len) }; 64]);
    let longest = Entry {
        id: u64::MAX,
        place: Place { segment: u32::MAX, index: u32::MAX },
        ..entry(1, STATE, [HAND, HAND], [false, false])
    };
    let longest = (0..64).map(|less| Entry { id: u64::MAX - less, ..longest.clone() }).collect();
    for good in [many(64), offer((1..=49).map(both).collect()), refusal(200), offer(longest)] {
        assert_eq!(decode::<Transfer>(&encode(&good).unwrap()).unwrap(), good, "it fits a record");
    }
    let too_many = taken(vec![Verdict::Taken { thread: 0 }; 65]);
    for bad in [
        many(65),
        offer((1..=50).map(both).collect()),
        refusal(201),
        too_many,
        offer(vec![entry(1, STATE + 1, [0, 0], [false, false])]),
        offer(vec![entry(1, 0, [HAND + 1, 0], [false, false])]),
        offer(vec![entry(1, 0, [0, u32::MAX as usize], [false, false])]),
        offer(vec![plain(7), plain(8), plain(7)]),
        offer(vec![plain(0)]),
    ] {
        let refused = |result: Result<(), CodecError>| {
            assert!(matches!(result, Err(CodecError::Limit { .. } | CodecError::Session { .. })), "{bad:?}");
        };
        refused(encode(&bad).map(drop));
        refused(decode::<Transfer>(&serde_json::to_vec(&bad).unwrap()).map(drop));
    }
}

#[test]
fn a_body_is_exactly_as_long_as_announced() {
    let entries = [entry(1, 2, [1, 0], [false, false]), entry(2, 1, [0, 3], [false, false])];
    let parts = body::unpack(&entries, b"{}ax234").unwrap();
    let part = |state: &str, hand: [&[u8]; 2]| Part { state: state.to_owned(), hand: hand.map(<[u8]>::to_vec) };
    assert_eq!(parts, [part("{}", [b"a", b""]), part("x", [b"", b"234"])]);
    assert_eq!(body::unpack(&[], b"").unwrap(), []);
    for (bytes, got) in [(&b"{}ax23"[..], 6), (b"{}ax2345", 8), (b"", 0)] {
        assert_eq!(body::unpack(&entries, bytes), Err(BodyError::Length { wanted: 7, got }));
    }
    assert_eq!(body::unpack(&entries, b"{\xffax234"), Err(BodyError::NotText { id: 1 }));
}

proptest! {
    #[test]
    fn any_bytes_give_a_word_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        drop(decode::<Transfer>(&bytes));
    }

    /// Valid records with a few bytes changed reach deeper than noise; what is still read is written and read alike.
    #[test]
    fn damaged_records_are_read_alike_or_refused(
        which in 0..8_usize,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut bytes = encode(&every_word()[which]).unwrap();
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(word) = decode::<Transfer>(&bytes) {
            prop_assert_eq!(decode::<Transfer>(&encode(&word).unwrap()).unwrap(), word);
        }
    }

    /// The body of the fuzz target `transfer`: any bytes under any lengths give parts of those lengths, or an error.
    #[test]
    fn any_body_gives_its_parts_or_an_error(
        lens in proptest::collection::vec((0..20_usize, 0..20_usize, 0..20_usize), 0..5),
        cut in -2..=2_isize,
        noise in any::<bool>(),
    ) {
        let entries: Vec<_> =
            lens.iter().map(|(state, one, other)| entry(1, *state, [*one, *other], [false, false])).collect();
        let wanted = body::len(&entries);
        let body = vec![if noise { 0x80 } else { b'x' }; wanted.saturating_add_signed(cut)];
        match body::unpack(&entries, &body) {
            Ok(parts) => {
                prop_assert!(body.len() == wanted && parts.len() == entries.len());
                for (part, (state, one, other)) in parts.iter().zip(&lens) {
                    prop_assert_eq!((part.state.len(), part.hand[0].len(), part.hand[1].len()), (*state, *one, *other));
                }
            }
            Err(BodyError::NotText { .. }) => prop_assert!(noise),
            Err(BodyError::Length { got, .. }) => prop_assert!(got != wanted),
        }
    }
}
