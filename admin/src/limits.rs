//! How much of the keeper one admin client may use.

use std::time::Duration;

/// Bounds of one admin listener. The defaults are what `proxyd` runs with; tests shorten them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request body. The largest honest command (a pool of some hundred backends) is under 32 KiB.
    pub body: usize,
    /// From the first byte of a request (of a new connection: from accept) to its last.
    pub request: Duration,
    /// Between two requests of a connection. Above the usual scrape interval of 15 s, so that a scraper keeps its own.
    pub idle: Duration,
    /// For how long a client may leave an answer unread before it is cut.
    pub stall: Duration,
    /// Connections at a time. When all are taken, the one that waits longest for a request makes room.
    pub connections: usize,
    /// Clients that follow events at a time; well below `connections`, so that they never keep a command out.
    pub followers: usize,
    /// Without news for so long a follower gets an empty line: it sees that the keeper is there, the keeper that it is.
    pub quiet: Duration,
    /// For a request that has not come whole when the listener stops; of one that has connected a moment ago, for all of it.
    /// A client sends it at once, so that it is on its way; one that says nothing must not hold up the keeper.
    pub fresh: Duration,
    /// For requests under way when the listener stops.
    pub finish: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 64 * 1024,
            request: Duration::from_secs(5),
            idle: Duration::from_secs(30),
            stall: Duration::from_secs(10),
            connections: 64,
            followers: 32,
            quiet: Duration::from_secs(5),
            fresh: Duration::from_millis(200),
            finish: Duration::from_secs(2),
        }
    }
}
