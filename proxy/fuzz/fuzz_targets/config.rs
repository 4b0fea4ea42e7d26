//! Any text as a configuration: no panic, no hang, and every mistake can be shown.

#![no_main]

use std::path::{Path, PathBuf};

use libfuzzer_sys::fuzz_target;
use proxy::config::{Change, Found, Kind, Surroundings, parse_in, render};

fuzz_target!(|text: &[u8]| {
    match parse_in(Path::new("fuzz.toml"), text, &around()) {
        Ok(parsed) => {
            render(&parsed.warnings, true);
            assert!(Change::between(&parsed.config, &parsed.config).is_empty());
        }
        Err(mistakes) => assert!(mistakes.render(true).contains("fuzz.toml")),
    }
});

/// The same in every run, whatever the machine.
fn around() -> Surroundings {
    Surroundings {
        cpus: 2,
        descriptors: 20_000,
        somaxconn: 4096,
        runtime_directory: None,
        xdg_runtime_dir: Some(PathBuf::from("/run/user/1000")),
        uid: 1000,
        addresses: vec![[10, 0, 0, 9].into()],
        user: |name| (name == "postgres").then_some(105),
        group: |name| (name == "db").then_some(106),
        found: |path| path.ends_with("tmp").then_some(Found { kind: Kind::Directory, uid: 0, mode: 0o1777 }),
    }
}
