//! Instructions of a program in user space, counted by valgrind.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Runs what is added to the command; what was counted is in `out` when it has ended.
pub(crate) fn cachegrind(valgrind: &Path, strace: &Path, out: &Path) -> Command {
    // Before 3.22 valgrind hands PR_GET_AUXV to the kernel, which tells of a vDSO that is not there under valgrind; refused, a
    // program asks where valgrind answers.
    let mut command = Command::new(strace);
    command.args(["-f", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=prctl", "-e", "inject=prctl:error=EINVAL"]);
    // Not callgrind: that one loses its way when a signal reaches one of several threads (3.19).
    command.arg(valgrind).args(["--tool=cachegrind", "--cache-sim=no"]);
    command.arg(format!("--cachegrind-out-file={}", out.display()));
    command
}

/// # Panics
/// If it was not written.
pub(crate) fn counted(out: &Path) -> u64 {
    let text = fs::read_to_string(out).expect("cachegrind has written it");
    let total = text.lines().find_map(|line| line.strip_prefix("summary: ")).expect("cachegrind says a total");
    total.trim().parse().expect("a number")
}
