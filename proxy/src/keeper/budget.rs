//! What a new generation will need of the machine, and whether that is to be had: asked before it is started, so that it
//! does not find out halfway.

use std::fs;
use std::path::PathBuf;

use rustix::process::{Resource, getrlimit};

/// What is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Needs {
    pub sockets: u64,
    pub threads: u64,
    pub segments: u64,
    /// Bytes of memory of its own that the worker has which it replaces.
    pub like: u64,
    /// Descriptors the keeper will open: sockets it binds, and a duplicate of each while they are handed on.
    pub keeper: u64,
}

/// What is to be had; `None` where there is no limit, or it cannot be known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Room {
    pub descriptors: Option<u64>,
    /// Of the keeper, still free.
    pub own_descriptors: Option<u64>,
    pub processes: Option<u64>,
    pub memory: Option<u64>,
}

/// Standard streams, the channel, three for each runtime (some to spare), and one session.
const OTHERS: u64 = 64;
/// Short-lived descriptors of the keeper: the channel, pipes of a preflight, admin connections.
const OWN_OTHERS: u64 = 32;
/// Beside the data threads: the control thread and the log's, and a short-lived child.
const OTHER_TASKS: u64 = 3;
/// To start with; the ledger and the binary are shared with the others.
const MEMORY: u64 = 16 << 20;

/// All of it must fit. `Err` names the first that does not.
///
/// Sessions are not counted among the descriptors: `max_sessions` is a limit, not a need, and a worker that reaches the other
/// limit first lets connections wait.
pub(super) fn check(needs: &Needs, room: &Room) -> Result<(), String> {
    let Needs { sockets, threads, segments, like, keeper } = *needs;
    let worker = sockets.saturating_mul(1 + threads) + segments + OTHERS;
    fits("the new generation", "descriptors", worker, room.descriptors, "raise the hard limit (LimitNOFILE=)")?;
    fits(
        "the keeper",
        "more descriptors",
        keeper + OWN_OTHERS,
        room.own_descriptors,
        "raise the hard limit (LimitNOFILE=)",
    )?;
    let tasks = threads + OTHER_TASKS;
    fits("the new generation", "processes and threads", tasks, room.processes, "raise TasksMax= or LimitNPROC=")?;
    let (memory, free) = ((like + MEMORY) >> 20, room.memory.map(|free| free >> 20));
    fits("the new generation", "MiB of memory", memory, free, "raise MemoryMax=, or end draining sessions first")
}

fn fits(who: &str, what: &str, need: u64, limit: Option<u64>, cure: &str) -> Result<(), String> {
    match limit {
        Some(limit) if need > limit => {
            Err(format!("{who} needs {} {what}, limit {}: {cure}", grouped(need), grouped(limit)))
        }
        _ => Ok(()),
    }
}

impl Room {
    pub(super) fn measure() -> Self {
        let descriptors = getrlimit(Resource::Nofile).current;
        let open = fs::read_dir("/proc/self/fd").ok().map(|fds| fds.count() as u64);
        Self {
            descriptors,
            own_descriptors: descriptors.zip(open).map(|(limit, open)| limit.saturating_sub(open)),
            processes: least([processes_of_user(), in_group("pids", "pids.max", "pids.current")]),
            memory: least([memory_of_group(), memory_of_machine()]),
        }
    }
}

/// Anonymous memory of a process: what another one like it would take anew.
pub(super) fn memory_of(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    kilobytes(&status, "RssAnon:").unwrap_or(0)
}

fn memory_of_machine() -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// Cached files give way.
fn memory_of_group() -> Option<u64> {
    let free = least([
        in_group("memory", "memory.max", "memory.current"),
        in_group("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ])?;
    let stat = group("memory").and_then(|group| fs::read_to_string(group.join("memory.stat")).ok()).unwrap_or_default();
    let cached = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse::<u64>().ok());
    Some(free.saturating_add(cached.unwrap_or(0)))
}

/// What a control group's limit leaves. `max`: there is none.
fn in_group(controller: &str, limit: &str, used: &str) -> Option<u64> {
    let group = group(controller)?;
    let number = |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    Some(number(limit)?.saturating_sub(number(used)?))
}

/// cgroups(7): version 2 has one hierarchy, version 1 one for each controller.
fn group(controller: &str) -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut found = None;
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let root = match controllers {
            "" => PathBuf::from("/sys/fs/cgroup"),
            list if list.split(',').any(|name| name == controller) => PathBuf::from("/sys/fs/cgroup").join(controller),
            _ => continue,
        };
        // In a container the path may be one of the host, and the root of the mount is our group.
        let group = [root.join(path.trim_start_matches('/')), root].into_iter().find(|group| group.is_dir());
        if !controllers.is_empty() {
            return group;
        }
        found = found.or(group);
    }
    found
}

/// RLIMIT_NPROC counts the threads of a user in all; root is exempt (getrlimit(2)).
fn processes_of_user() -> Option<u64> {
    let uid = nix::unistd::getuid();
    let limit = getrlimit(Resource::Nproc).current.filter(|_| !uid.is_root())?;
    let status = |entry: std::io::Result<fs::DirEntry>| fs::read_to_string(entry.ok()?.path().join("status")).ok();
    let threads = fs::read_dir("/proc").ok()?.filter_map(status).filter_map(|text| threads(&text, uid.as_raw()));
    Some(limit.saturating_sub(threads.sum()))
}

fn threads(status: &str, uid: u32) -> Option<u64> {
    let first = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.split_ascii_whitespace().next());
    (first("Uid:")? == uid.to_string()).then_some(())?;
    first("Threads:")?.parse().ok()
}

fn least(limits: [Option<u64>; 2]) -> Option<u64> {
    limits.into_iter().flatten().min()
}

/// `1004` as `1,004`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDS: Needs = Needs { sockets: 313, threads: 2, segments: 1, like: 8 << 20, keeper: 313 };

    #[test]
    fn each_budget_is_named_with_need_and_limit() {
        let room = |descriptors, own, processes, memory| Room {
            descriptors: Some(descriptors),
            own_descriptors: Some(own),
            processes: Some(processes),
            memory: Some(memory),
        };
        assert_eq!(check(&NEEDS, &Room::default()), Ok(()));
        assert_eq!(check(&NEEDS, &room(1004, 345, 5, 24 << 20)), Ok(()));
        for (room, told) in [
            (room(1000, 345, 5, 24 << 20), "needs 1,004 descriptors, limit 1,000"),
            (room(1004, 344, 5, 24 << 20), "the keeper needs 345 more descriptors, limit 344"),
            (room(1004, 345, 4, 24 << 20), "needs 5 processes and threads, limit 4"),
            (room(1004, 345, 5, 23 << 20), "needs 24 MiB of memory, limit 23"),
        ] {
            let why = check(&NEEDS, &room).unwrap_err();
            assert!(why.contains(told), "{told:?} is not in {why}");
        }
    }

    #[test]
    fn this_machine_can_be_measured() {
        let room = Room::measure();
        assert!(
            room.descriptors.is_some_and(|limit| limit > 0) && room.memory.is_some_and(|free| free > 0),
            "{room:?}"
        );
        assert!(memory_of(std::process::id()) > 0);
    }

    #[test]
    fn threads_are_those_of_one_user() {
        let status = "Name:\tx\nUid:\t7\t7\t7\t7\nThreads:\t12\n";
        assert_eq!((threads(status, 7), threads(status, 8)), (Some(12), None));
    }
}
