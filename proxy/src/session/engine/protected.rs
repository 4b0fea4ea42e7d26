//! An engine whose session is to outlive its process: all bytes on their way are in two pipes of its own, which others hold
//! as well as its sockets. So nothing is said by closing them; each end is said by a call. (So it is with every session that
//! has moved, or was to move.)

use std::os::fd::{AsFd, BorrowedFd};

use super::Engine;
use crate::session::meter::Meter;
use crate::session::pipe::Pipe;
use crate::session::relay::{Side, index};

impl Engine {
    /// Before the first byte.
    pub(in crate::session) fn splice_only(&mut self, pipes: [Pipe; 2]) {
        self.relay.splice_only();
        self.pipes = pipes.map(Some);
        self.is_shared = true;
    }

    /// Nobody else holds it: it goes on as any other. The pipes go as soon as they are empty and it copies again.
    pub(in crate::session) fn splice_freely(&mut self) {
        self.relay.splice_freely();
    }

    pub(in crate::session) fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// All that it is made of, if it only splices: both sockets, and the reading ends of the pipes, the client's first.
    pub(in crate::session) fn belongings(&self) -> Option<[BorrowedFd<'_>; 4]> {
        let [Some(up), Some(down)] = &self.pipes else { return None };
        let all = [self.client.as_fd(), self.backend.as_fd(), up.reader.as_fd(), down.reader.as_fd()];
        self.relay.only_splices().then_some(all)
    }

    /// Done with a pipe for now.
    pub(super) fn put_down(&mut self, from: Side, pipe: Pipe) {
        if self.relay.only_splices() {
            self.pipes[index(from)] = Some(pipe);
        } else {
            pipe.give_back();
        }
    }

    /// Writes down what was learnt of the sides, for whoever goes on in our place.
    #[inline]
    pub(super) fn note(&mut self, meter: &Meter) {
        if self.relay.only_splices() {
            let marks = self.relay.marks();
            if marks != self.marked {
                self.marked = marks;
                meter.mark(marks);
            }
        }
    }

    /// Whoever finds the mark repeats the call, which does no harm; the other way round, one that was carried out and has no
    /// mark could look like a reset later.
    pub(super) fn before_shutdown(&mut self, from: Side, meter: &Meter) {
        if self.relay.only_splices() {
            meter.mark(self.relay.marks().shutting(from));
        }
        if self.relay.has_shut(from.other()) {
            // What the kernel holds is delivered, whoever closes last.
            self.linger_off();
        }
    }

    pub(super) fn finish_shared(self) {
        self.linger_off();
        for from in [Side::Client, Side::Backend] {
            if !self.relay.has_shut(from) {
                // One that is not connected any more has nothing to tell.
                let _ = self.socket(from.other()).shutdown();
            }
        }
        self.close();
    }

    pub(super) fn reset_shared(self) {
        self.client.disconnect();
        self.backend.disconnect();
        self.close();
    }
}
