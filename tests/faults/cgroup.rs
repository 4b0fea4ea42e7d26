//! Memory that runs out for one process only: a control group of its own.

use std::fs;
use std::path::PathBuf;

use crate::harness::until;
use crate::row::{DEADLINE, Row, rounds};
use crate::spawn::newcomer;

/// Less than any process needs to start.
const LIMIT: u32 = 256 * 1024;

/// Made by the test, and removed with it.
struct Group(PathBuf);

impl Group {
    /// `None` after saying so where none can be made.
    fn new() -> Option<Self> {
        let name = format!("proxyd-test-{}", std::process::id());
        // cgroups(7): version 1 with a mount for each resource, version 2 with one for all.
        for (root, limit) in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")] {
            let group = PathBuf::from(root).join(&name);
            if fs::create_dir(&group).is_ok() {
                let group = Self(group);
                if fs::write(group.0.join(limit), LIMIT.to_string()).is_ok() {
                    return Some(group);
                }
            }
        }
        println!("skipped: no control group with a limit of memory can be made here");
        None
    }

    fn take(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // It is empty: what was in it is dead. If not, a directory without a process is left.
        let _left = fs::remove_dir(&self.0);
    }
}

/// The kernel kills who is in the group, and nobody else.
#[test]
fn f49_the_new_process_runs_out_of_memory() {
    let mut row = Row::start("F49");
    let gate = row.proxy.directory().join("gate");
    let Some(path) = row.impostor(&format!("worker:gate:{}", gate.display())) else { return };
    let Some(group) = Group::new() else { return };
    for _ in 0..rounds() {
        let steps = ["spawn", "offer", "ready"];
        row.refuses_while("F49", &["--binary", &path], &steps, &["SIGKILL"], |row, old| {
            group.take(newcomer(row, old).pid());
            fs::write(&gate, "").unwrap();
            until("it has died", DEADLINE, || row.proxy.status()["upgrade"].is_null());
        });
        fs::remove_file(&gate).unwrap();
    }
    row.ends_well();
}
