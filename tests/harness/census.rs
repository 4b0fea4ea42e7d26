//! What a process holds: descriptors by kind, threads, unreaped children, memory, CPU time. From `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use super::child::{children, stat};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// `socket`, `pipe`, `memfd`, `anon:[eventpoll]`, `file`, ... and how many of each.
    pub descriptors: BTreeMap<String, usize>,
    pub threads: usize,
    /// Children that have ended and were not reaped.
    pub zombies: usize,
    pub memory: Memory,
}

/// In KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    pub resident: u64,
    /// Written pages that no other process shares: what the process costs by itself, without its binary.
    pub private: u64,
    /// Shared memory mapped (a ledger in memfd counts here), by its proportional share.
    pub shared: u64,
}

impl Census {
    /// `None` if there is no such process, or it is a zombie.
    pub fn of(pid: u32) -> Option<Self> {
        Some(Self {
            descriptors: descriptors(pid)?,
            threads: fs::read_dir(format!("/proc/{pid}/task")).ok()?.count(),
            zombies: children(pid).into_iter().filter(|child| stat(*child).is_some_and(|s| s.state() == "Z")).count(),
            memory: Memory::of(pid)?,
        })
    }

    pub fn open(&self) -> usize {
        self.descriptors.values().sum()
    }
}

fn descriptors(pid: u32) -> Option<BTreeMap<String, usize>> {
    let mut kinds = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).ok()? {
        // One that was closed between the listing and the look is not open.
        let Some(target) = entry.ok().and_then(|entry| fs::read_link(entry.path()).ok()) else { continue };
        *kinds.entry(kind(&target.to_string_lossy())).or_insert(0) += 1;
    }
    Some(kinds)
}

fn kind(target: &str) -> String {
    match target.split_once(':') {
        Some(("anon_inode", what)) => format!("anon:{what}"),
        Some((kind @ ("socket" | "pipe"), _)) => kind.into(),
        _ if target.starts_with("/memfd:") => "memfd".into(),
        _ => "file".into(),
    }
}

impl Memory {
    pub fn of(pid: u32) -> Option<Self> {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let field = |name: &str| -> Option<u64> {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.split_ascii_whitespace().next()?.parse().ok()
        };
        Some(Self { resident: field("Rss")?, private: field("Pss_Anon")?, shared: field("Pss_Shmem")? })
    }
}

/// User and system time of a process so far, its ended threads included, its children not.
pub fn cpu(pid: u32) -> Option<Duration> {
    let stat = stat(pid)?;
    let ticks = stat.field(14) + stat.field(15);
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    Some(Duration::from_millis(ticks * 1000 / u64::try_from(per_second).ok()?))
}
