//! Instructions of a case.

use std::env;
use std::path::PathBuf;

use crate::cachegrind::{cachegrind, counted};
use crate::cases::Case;
use crate::peer::peer;

/// The first word on the command line of a process that runs a case.
pub(crate) const WORD: &str = "run";
/// Variants that glibc would choose by the processor.
const PLAIN: &str = "glibc.cpu.hwcaps=-AVX2,-AVX_Fast_Unaligned_Load,-ERMS,-FSRM,-BMI2";

#[derive(Debug)]
pub(crate) struct Valgrind {
    valgrind: PathBuf,
    strace: PathBuf,
}

impl Valgrind {
    /// `None` after saying what is not installed.
    pub(crate) fn find() -> Option<Self> {
        Some(Self { valgrind: peer("valgrind")?, strace: peer("strace")? })
    }

    /// Instructions of one time.
    pub(crate) fn count(&self, case: &Case) -> f64 {
        let [once, twice] = [case.times, case.times * 2].map(|times| self.run(case, times));
        twice.saturating_sub(once) as f64 / f64::from(case.times)
    }

    fn run(&self, case: &Case, times: u32) -> u64 {
        let out = tempfile::NamedTempFile::new().expect("a temporary file");
        let mut command = cachegrind(&self.valgrind, &self.strace, out.path());
        command.arg(env::current_exe().expect("this program has a path")).args([WORD, case.name, &times.to_string()]);
        // What is in the environment takes its part of the stack.
        let output = command.env_clear().env("GLIBC_TUNABLES", PLAIN).output().expect("valgrind starts");
        assert!(output.status.success(), "{}: {}", case.name, String::from_utf8_lossy(&output.stderr));
        counted(out.path())
    }
}
