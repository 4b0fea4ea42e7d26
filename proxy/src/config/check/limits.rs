//! What the machine allows: open descriptors, length of accept queues.

use super::super::draft::Draft;
use super::super::report::Report;
use super::super::surroundings::Surroundings;

/// Descriptors of a process that belong to no session and no listening socket: log, ledger, channels, an epoll instance,
/// an eventfd and a signal pipe for each thread, pipes of the relay.
const OWN: u64 = 256;

/// Most listening sockets for which room is kept when `max_sessions` is not given. A fixed share, so that a listener
/// added by a reload does not change `max_sessions`, which would need an upgrade.
const ROOM_FOR_SOCKETS: u64 = 4096;

/// More sessions than this are run only if told: their records are kept in memory.
const MOST_BY_DEFAULT: u64 = 1_000_000;

/// Gives `max_sessions` its default, or checks what was written: two descriptors a session, and two pipes more for one that
/// is to outlive its worker.
pub(super) fn sessions(draft: &mut Draft, report: &Report, around: &Surroundings) {
    let sockets = draft.config.listeners.values().map(|listener| listener.bind.len() as u64).sum();
    let limit = around.descriptors;
    let protected = Protected::of(draft);
    let most = protected.most(limit.saturating_sub(OWN).saturating_sub(sockets));
    let Some(place) = &draft.places.max_sessions else {
        let share = protected.most(limit.saturating_sub(OWN + ROOM_FOR_SOCKETS.min(limit / 8)));
        draft.config.runtime.max_sessions = usize::try_from(share.min(most).min(MOST_BY_DEFAULT)).unwrap_or(usize::MAX);
        if most == 0 {
            let title =
                format!("needs {} descriptors, limit {}", grouped(OWN + sockets + protected.need(1)), grouped(limit));
            report.add(report.whole(title).help("raise the hard limit (`ulimit -Hn`, `LimitNOFILE=`)"));
        }
        return;
    };
    let sessions = draft.config.runtime.max_sessions as u64;
    if sessions > most {
        let needed = protected.need(sessions).saturating_add(OWN + sockets);
        let title = format!("`runtime.max_sessions` needs {} descriptors, limit {}", grouped(needed), grouped(limit));
        let mistake = report.error(place, title).expected(format!("expected at most {most}"));
        report.add(mistake.help("or raise the hard limit (`ulimit -Hn`, `LimitNOFILE=`)"));
    }
    for (name, listener) in &draft.config.listeners {
        let place = draft.places.listeners.get(name).and_then(|places| places.max_sessions.as_ref());
        if let (Some(own), Some(place)) = (listener.max_sessions, place)
            && own > sessions
        {
            let title = format!("`listeners.{name}.max_sessions` is never reached");
            report.add(report.warning(place, title).expected(format!("`runtime.max_sessions` is {sessions}")));
        }
    }
}

/// Most sessions of listeners with `survive_crash`.
struct Protected(u64);

impl Protected {
    fn of(draft: &Draft) -> Self {
        let listeners = draft.config.listeners.values().filter(|listener| listener.survive_crash);
        Self(listeners.map(|listener| listener.max_sessions.unwrap_or(u64::MAX)).fold(0, u64::saturating_add))
    }

    /// Descriptors of so many sessions.
    fn need(&self, sessions: u64) -> u64 {
        sessions.saturating_mul(2).saturating_add(sessions.min(self.0).saturating_mul(4))
    }

    /// Sessions for which so many descriptors are enough.
    fn most(&self, descriptors: u64) -> u64 {
        let all_protected = descriptors / 6;
        if all_protected <= self.0 { all_protected } else { (descriptors - self.0 * 4) / 2 }
    }
}

/// The kernel cuts them without a word.
pub(super) fn backlogs(draft: &Draft, report: &Report, around: &Surroundings) {
    for (name, listener) in &draft.config.listeners {
        let place = draft.places.listeners.get(name).and_then(|places| places.backlog.as_ref());
        // A default that is cut is not worth a word to everyone.
        if let Some(place) = place.filter(|_| listener.backlog > around.somaxconn) {
            let title = format!("`listeners.{name}.backlog` is cut to {} by the kernel", around.somaxconn);
            report.add(report.warning(place, title).help("raise net.core.somaxconn"));
        }
    }
}

/// `40020` as `40,020`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
    groups.join(",")
}
