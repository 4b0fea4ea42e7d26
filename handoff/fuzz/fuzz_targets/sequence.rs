//! Any records in any order, sent or received: a transition or out of turn, and both roles agree on which.
//! Each line of the input is one word: `v` (down) or `^` (up), then a record.
#![no_main]

use handoff::codec::decode;
use handoff::sequence::{Event, Predecessor, Successor};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (mut ours, mut theirs) = (Predecessor::default(), Successor::default());
    for line in bytes.split(|byte| *byte == b'\n') {
        let Some((direction, record)) = line.split_first() else { continue };
        let Ok(word) = decode(record) else { continue };
        let (here, there) = if *direction == b'v' {
            (Event::Out(&word), Event::In(&word))
        } else {
            (Event::In(&word), Event::Out(&word))
        };
        match (ours.clone().on(here), theirs.clone().on(there)) {
            (Ok((next, _)), Ok((other, _))) => (ours, theirs) = (next, other),
            (Err(_), Err(_)) => {}
            disagreement => panic!("{disagreement:?}"),
        }
        assert_eq!(ours.state(), theirs.state());
    }
});
