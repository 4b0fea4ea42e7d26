//! Any words of a path in any order, sent or received, and any body beside an offer: never more than an error, and both
//! ends agree on which words are legal. Each line of the input is one word: `v` (down) or `^` (up), then a record; the
//! whole input is the body of every offer in it.
#![no_main]

use handoff::codec::{CodecError, decode, encode};
use handoff::sequence::Event;
use handoff::transfer::body;
use handoff::transfer::message::Transfer;
use handoff::transfer::sequence::{Giver, Taker};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (mut giver, mut taker) = (Giver::default(), Taker::default());
    for line in bytes.split(|byte| *byte == b'\n') {
        let Some((direction, record)) = line.split_first() else { continue };
        let Ok(word) = decode::<Transfer>(record) else { continue };
        match encode(&word) {
            Ok(record) => assert_eq!(decode::<Transfer>(&record).as_ref(), Ok(&word)),
            Err(error) => assert!(matches!(error, CodecError::TooLong { .. })),
        }
        if let Transfer::Offer(offer) = &word
            && let Ok(parts) = body::unpack(&offer.items, bytes)
        {
            assert_eq!(parts.len(), offer.items.len());
        }
        let (here, there) = if *direction == b'v' {
            (Event::Out(&word), Event::In(&word))
        } else {
            (Event::In(&word), Event::Out(&word))
        };
        match (giver.clone().on(here), taker.clone().on(there)) {
            (Ok((next, _)), Ok((other, _))) => (giver, taker) = (next, other),
            (Err(_), Err(_)) => {}
            // It may have crossed a withdrawal: legal to receive, and not to send.
            (Ok(_), Err(_)) if matches!(word, Transfer::Taken { batch, .. } if taker.is_over(batch)) => {}
            disagreement => panic!("{disagreement:?}"),
        }
        assert_eq!(giver.state(), taker.state());
    }
});
