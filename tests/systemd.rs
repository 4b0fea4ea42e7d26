//! The units of `deploy/systemd`: sound, hardened, and allowing every system call that is made.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::proxy::PROXYD;
use harness::{Conf, Port, Starter, Steady, Tagged, peer};
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(60);

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd").join(name)
}

/// The units in a directory, with the binaries under test in place of installed ones.
fn installed() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let binaries = format!("{}/", Path::new(PROXYD).parent().unwrap().display());
    for name in ["proxyd.service", "proxyd.socket"] {
        let unit = fs::read_to_string(deploy(name)).unwrap().replace("/usr/bin/", &binaries);
        fs::write(directory.path().join(name), unit).unwrap();
    }
    directory
}

/// What it says, as one text; it must succeed.
fn analyze(program: &Path, directory: &Path, words: &[&str]) -> String {
    let output = Command::new(program).current_dir(directory).args(words).output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "systemd-analyze {words:?}: {said}");
    said
}

#[test]
fn the_units_are_sound_and_hardened() {
    let Some(program) = peer("systemd-analyze") else { return };
    let directory = installed();
    let said = analyze(&program, directory.path(), &["verify", "./proxyd.service", "./proxyd.socket"]);
    assert!(!said.contains("proxyd."), "a complaint about a unit of ours: {said}");
    // 0 to 100, of which 100 is a unit without any protection.
    analyze(&program, directory.path(), &["security", "--offline=true", "--threshold=20", "./proxyd.service"]);
}

#[test]
fn the_drop_in_only_changes_how_it_reloads() {
    let drop_in = fs::read_to_string(deploy("proxyd.service.d/notify-reload.conf")).unwrap();
    let lines: Vec<&str> = drop_in.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    assert_eq!(lines, ["[Service]", "Type=notify-reload", "ExecReload="]);
}

/// A filter as `SystemCallFilter=` builds it: lists with `~` take away, the others add.
fn allowed(program: &Path, unit: &str) -> BTreeSet<String> {
    let mut allowed = BTreeSet::new();
    for list in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let (takes_away, words) = list.strip_prefix('~').map_or((false, list), |words| (true, words));
        for call in words.split_ascii_whitespace().flat_map(|word| calls(program, word)) {
            if takes_away {
                allowed.remove(&call)
            } else {
                allowed.insert(call)
            };
        }
    }
    // What no process can start without is never taken away.
    allowed.extend(calls(program, "@default"));
    allowed
}

/// The calls of a group, with those of the groups in it.
fn calls(program: &Path, word: &str) -> Vec<String> {
    if !word.starts_with('@') {
        return vec![word.to_owned()];
    }
    let listed = analyze(program, Path::new("/"), &["--no-pager", "syscall-filter", word]);
    let members = listed.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    members.flat_map(|member| calls(program, member)).collect()
}

/// A life with an upgrade, a crash, a reload, a Unix socket with an owner, and an end, looked at by strace.
fn calls_made(strace: &Path) -> BTreeSet<String> {
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let sockets = tempfile::tempdir().unwrap();
    let unix = format!("unix:{}/s", sockets.path().display());
    let own = nix::unistd::geteuid();
    let conf = Conf::simple(&port, &[backend.address()]).listener("unix", &unix, "pool");
    let conf = conf.with("listeners.unix", &format!("mode = \"0660\"\nowner = \"{own}\""));
    let mut starter = Starter::new(&conf);
    let trace = sockets.path().join("trace");
    let mut traced = Command::new(strace);
    traced.arg("--follow-forks").arg("--quiet=all").arg("--signal=none").arg("--output").arg(&trace).arg(PROXYD);
    traced.args(starter.command.get_args());
    traced.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    starter.command = traced;
    let mut proxy = starter.start();
    Steady::open(port.address()).assert_alive();
    proxy.upgrade();
    proxy.ctl_json(&["reload"]);
    drop(Steady::open(port.address()));
    proxy.ctl(&["shutdown"]);
    assert!(proxy.wait_exit(DEADLINE).success());
    let lines = fs::read_to_string(&trace).unwrap();
    let name = |line: &str| Some(line.split_once(' ')?.1.trim_start().split_once('(')?.0.to_owned());
    let plain = |name: &String| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    lines.lines().filter_map(name).filter(plain).collect()
}

#[test]
fn every_system_call_that_is_made_is_allowed() {
    let (Some(program), Some(strace)) = (peer("systemd-analyze"), peer("strace")) else { return };
    let unit = fs::read_to_string(deploy("proxyd.service")).unwrap();
    let (allowed, made) = (allowed(&program, &unit), calls_made(&strace));
    assert!(made.contains("memfd_create") && made.contains("execve"), "the trace saw an upgrade: {made:?}");
    let refused: Vec<&String> = made.difference(&allowed).collect();
    assert!(refused.is_empty(), "proxyd.service refuses {refused:?}");
}
