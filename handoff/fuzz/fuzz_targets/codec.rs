//! Any bytes give a message or a typed error; what is read is written and read alike.
#![no_main]

use handoff::codec::{CodecError, decode, encode};
use handoff::message::Message;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = decode::<Message>(bytes) {
        match encode(&message) {
            Ok(record) => assert_eq!(decode(&record).as_ref(), Ok(&message)),
            // Escapes and defaults can make our own record longer than the one that was read.
            Err(error) => assert!(matches!(error, CodecError::TooLong { .. })),
        }
    }
});
