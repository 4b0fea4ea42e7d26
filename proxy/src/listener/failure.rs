//! Why an accept failed, and what to do about it.

use rustix::io::Errno;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum AcceptFailure {
    /// Nothing is queued.
    #[error("nothing is queued")]
    Empty,
    /// This client left, or the network between failed (accept(2), "Error handling"): the next may be fine.
    #[error("the client is gone")]
    ClientGone,
    /// No descriptor or memory: what is queued can wait, and to ask again at once would only burn time.
    #[error("no descriptor or memory is left")]
    OutOfDescriptors,
    /// The socket is not what it was.
    #[error("{0}")]
    Fatal(Errno),
}

impl AcceptFailure {
    pub(super) fn of(e: Errno) -> Self {
        match e {
            Errno::AGAIN => Self::Empty,
            Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => Self::OutOfDescriptors,
            Errno::CONNABORTED
            | Errno::INTR
            | Errno::PERM
            | Errno::PROTO
            | Errno::NETDOWN
            | Errno::NOPROTOOPT
            | Errno::HOSTDOWN
            | Errno::NONET
            | Errno::HOSTUNREACH
            | Errno::OPNOTSUPP
            | Errno::NETUNREACH
            | Errno::TIMEDOUT => Self::ClientGone,
            e => Self::Fatal(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_cure() {
        assert_eq!(AcceptFailure::of(Errno::AGAIN), AcceptFailure::Empty);
        assert_eq!(AcceptFailure::of(Errno::CONNABORTED), AcceptFailure::ClientGone);
        for e in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            assert_eq!(AcceptFailure::of(e), AcceptFailure::OutOfDescriptors);
        }
        assert_eq!(AcceptFailure::of(Errno::INVAL), AcceptFailure::Fatal(Errno::INVAL));
    }
}
