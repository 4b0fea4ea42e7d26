//! What holds for every text.

use std::path::Path;

use proptest::prelude::*;

use super::super::{Change, parse_in};
use super::keys::EVERY_KEY;
use super::{around, good};

/// Pieces that take a mutated file further than random bytes do.
const PIECES: [&str; 16] = [
    "\"",
    "[",
    "]",
    "{",
    "}",
    "=",
    "\n",
    ".",
    "\r",
    "\0",
    "\"off\"",
    "-1",
    "99999999999999999999",
    "[[pools.app]]",
    "unix:",
    "\u{1F600}",
];

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        told(&bytes);
    }

    #[test]
    fn random_text_never_panics(text in "\\PC{0,200}") {
        told(text.as_bytes());
    }

    #[test]
    fn mutated_files_never_panic(
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), 0..20_usize, 0..PIECES.len()), 1..6)
    ) {
        let mut bytes = EVERY_KEY.as_bytes().to_vec();
        for (at, length, piece) in cuts {
            let start = at.index(bytes.len() + 1);
            let end = (start + length).min(bytes.len());
            bytes.splice(start..end, PIECES[piece].bytes());
        }
        told(&bytes);
    }

    #[test]
    fn a_configuration_does_not_differ_from_itself(
        threads in 1..=256_u32, ports in (1..9000_u16, 0..50_u16), weight in 1..=256_u32, seconds in 5..1000_u32
    ) {
        let config = good(&EVERY_KEY
            .replace("threads = 3", &format!("threads = {threads}"))
            .replace("7000-7001", &format!("{}-{}", ports.0 + 100, ports.0 + 100 + ports.1))
            .replace("weight = 256", &format!("weight = {weight}"))
            .replace("timeout = \"1s\"", &format!("timeout = \"{seconds}s\"")));
        let change = Change::between(&config, &config);
        prop_assert!(change.is_empty() && change.lines().is_empty());
        prop_assert!(change.added.is_empty() && change.removed.is_empty() && change.pools.is_empty());
        prop_assert!(change.refusal().is_none());
        prop_assert_eq!(change.kept.len(), config.listeners["web"].bind.len());
        let text = serde_json::to_string(&config).unwrap();
        prop_assert_eq!(serde_json::from_str::<super::Config>(&text).unwrap(), config);
    }
}

/// Parses, and shows what was wrong: neither may panic.
fn told(bytes: &[u8]) {
    match parse_in(Path::new("proxyd.toml"), bytes, &around()) {
        Ok(parsed) => assert!(!parsed.config.listeners.is_empty()),
        Err(mistakes) => assert!(mistakes.render(true).contains("proxyd.toml")),
    }
}
