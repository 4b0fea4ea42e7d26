//! A configuration that was read but not yet checked as a whole, with the places of what the checks may complain about.

use std::collections::BTreeMap;

use super::Config;
use super::mistake::Span;

#[derive(Debug)]
pub(super) struct Draft {
    pub(super) config: Config,
    pub(super) places: Places,
}

/// Where things were written; `None` if they were not.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) max_sessions: Option<Span>,
    pub(super) state_dir: Option<Span>,
    pub(super) admin_socket: Option<Span>,
    pub(super) admin_listen: Option<Span>,
    pub(super) listeners: BTreeMap<String, ListenerPlaces>,
    pub(super) pools: BTreeMap<String, PoolPlaces>,
}

#[derive(Debug)]
pub(super) struct ListenerPlaces {
    pub(super) pool: Option<Span>,
    pub(super) backlog: Option<Span>,
    pub(super) max_sessions: Option<Span>,
    /// One for each [`super::Bind`]; those of a range share theirs.
    pub(super) binds: Vec<Span>,
}

#[derive(Debug)]
pub(super) struct PoolPlaces {
    /// The name.
    pub(super) key: Span,
    pub(super) source: Option<Span>,
    /// One for each backend.
    pub(super) backends: Vec<Span>,
}
