//! What can be known of a session whose process died: from its record, and from the kernel, whose objects outlived it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use handoff::ledger::SessionSnapshot;
use handoff::vault;
use rustix::net::{Shutdown, shutdown, sockopt};
use serde::{Deserialize, Serialize};

use super::carried::{BackendState, SessionState};
use super::relay::{Failure, Marks, RelayState, Side};
use super::relaying::Clocks;
use crate::config::{TcpSettings, Timeouts};
use crate::observe::names;

/// What a session goes by that neither its record nor the kernel tells. Left with the keeper as JSON; a reader ignores what it
/// does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptTerms {
    pub timeouts: Timeouts,
    pub tcp: TcpSettings,
}

impl KeptTerms {
    /// `None`: longer than a deposit carries.
    pub(super) fn write(&self) -> Option<String> {
        serde_json::to_string(self).ok().filter(|text| text.len() <= vault::TERMS)
    }

    /// `None`: nothing that is understood here.
    pub fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

impl SessionState {
    /// Of a session that only spliced; sockets and pipes with the client's first. Repeats what its process may have been about
    /// to do, and nothing else. `None`: there is nothing to go on with.
    pub fn recovered(
        snapshot: &SessionSnapshot,
        terms: KeptTerms,
        sockets: [&OwnedFd; 2],
        pipes: &[OwnedFd; 2],
    ) -> Option<Self> {
        let marks = Marks::of_word(snapshot.marks);
        for (from, sink) in [(Side::Client, sockets[1]), (Side::Backend, sockets[0])] {
            if marks.has_shut(from) {
                // It was carried out already, most likely.
                let _ = shutdown(sink, Shutdown::Write);
            }
        }
        let [to_backend, to_client] = pipes.each_ref().map(in_pipe);
        let broken = [(Side::Client, sockets[0]), (Side::Backend, sockets[1])]
            .map(|(side, socket)| is_reset(side, socket, marks).then_some(Failure::Reset));
        Some(Self {
            listener: snapshot.listener.clone(),
            pool: snapshot.pool.clone(),
            backend: BackendState {
                name: names::last_label(&snapshot.backend).to_owned(),
                address: snapshot.backend_address?,
            },
            client: snapshot.client,
            timeouts: terms.timeouts,
            tcp: terms.tcp,
            opened_ms: snapshot.opened_ms,
            lasts: false,
            nagle_off: false,
            relay: RelayState::recovered(marks, broken, [to_backend.ok()?, to_client.ok()?]),
            clocks: Clocks::default(),
        })
    }
}

/// Says an orderly end to both peers, whoever else holds the sockets. What was said already is said in vain.
pub fn finish(client: &OwnedFd, backend: &OwnedFd) {
    for socket in [client, backend] {
        let _ = sockopt::set_socket_linger(socket, None);
        let _ = shutdown(socket, Shutdown::Write);
    }
}

/// Resets both, whoever else holds the sockets.
pub fn reset(client: &OwnedFd, backend: &OwnedFd) {
    for socket in [client, backend] {
        if rustix::net::connect_unspec(socket).is_err() {
            let _ = shutdown(socket, Shutdown::Both);
        }
    }
}

fn in_pipe(pipe: &OwnedFd) -> io::Result<usize> {
    usize::try_from(rustix::io::ioctl_fionread(pipe)?).map_err(io::Error::other)
}

/// An error that the dead process was told, and had no time to write down, is told to nobody else. But a TCP connection that is
/// closed although neither end has said so was broken. (One that both have ended is closed too; and one that broke after we
/// had ended it tells so itself, unless it was told to the dead process at the moment of its death.)
fn is_reset(side: Side, socket: &OwnedFd, marks: Marks) -> bool {
    let is_closed = handoff::os::tcp_state(socket.as_fd()).is_ok_and(|state| state == TCP_CLOSE);
    is_closed && !marks.has_ended(side) && !marks.has_shut(side.other())
}

/// include/net/tcp_states.h
const TCP_CLOSE: u8 = 7;
