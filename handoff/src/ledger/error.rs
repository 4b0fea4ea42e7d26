//! What can go wrong with a ledger, sorted by who is to blame.

use std::io;

use super::layout::LAYOUTS;

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The system refused.
    #[error("ledger: cannot {doing}: {source}")]
    System { doing: &'static str, source: io::Error },

    /// The peer process handed over something else.
    #[error("ledger: not a segment: {0}")]
    NotASegment(&'static str),
    #[error("ledger: segment of layout {found}, this binary knows {} to {}", LAYOUTS.start(), LAYOUTS.end())]
    UnknownLayout { found: u32 },
    #[error("ledger: segment {found} stands at place {place} of the chain")]
    OutOfOrder { place: usize, found: u32 },

    /// The caller asked for too much.
    #[error("ledger: name of {bytes} bytes (at most 255): {start:?}...")]
    NameTooLong { bytes: usize, start: String },
    #[error("ledger: {counters} counters and {gauges} gauges asked for one name (at most {most} of each)")]
    TooManyCells { counters: u32, gauges: u32, most: u32 },
    #[error("ledger: sizes beyond what a segment can have")]
    TooLarge,
    #[error("ledger: {0} segments, and no more can be numbered")]
    ChainFull(usize),
    #[error("ledger: no session {id} that is established in record {index} of segment {segment}")]
    NotThere { id: u64, segment: u32, index: u32 },
    #[error("ledger: all {blocks} counter blocks of segment {segment} are leased")]
    NoBlock { segment: u32, blocks: u32 },
    #[error("ledger: the counter blocks left in segment {segment} are for other generations")]
    NoShare { segment: u32 },
}

impl LedgerError {
    pub(super) fn system(doing: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::System { doing, source: errno.into() }
    }
}
