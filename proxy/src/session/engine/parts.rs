//! An engine taken to pieces, for whoever goes on in its place, and put together again.

use std::io;
use std::os::fd::OwnedFd;

use super::{Engine, Nagle};
use crate::session::pipe::Pipe;
use crate::session::relay::{Relay, RelayState, Side};
use crate::session::socket::Socket;

/// A session's sockets, out of every runtime, and where its relay stopped. Dropped, nothing is shut down: if another process
/// has the sockets too, their peers see nothing; if not, they see a reset, as of any process that dies.
#[derive(Debug)]
pub(in crate::session) struct Parts {
    pub(in crate::session) relay: RelayState,
    /// Bytes read and not written, the client's first.
    pub(in crate::session) hand: [Vec<u8>; 2],
    pub(in crate::session) client: OwnedFd,
    pub(in crate::session) backend: OwnedFd,
    /// Reading ends of the pipes that hold bytes, the client's first.
    pub(in crate::session) pipes: [Option<OwnedFd>; 2],
    /// Their writing ends, where these are at hand. They do not travel: who goes on where it was needs nothing new.
    pub(in crate::session) writers: [Option<OwnedFd>; 2],
    pub(in crate::session) nagle_off: bool,
}

/// Why parts make no session.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error("its sockets cannot be polled here: {0}")]
    Socket(#[source] io::Error),
    #[error("one of its pipes is no pipe: {0}")]
    NoPipe(#[source] io::Error),
    #[error("it can go on only by two pipes, which did not come")]
    NoWay,
    #[error("it can go on only by two pipes, and one cannot be filled here: {0}")]
    NoWriter(#[source] io::Error),
    #[error("{said} bytes should be in its pipe, {found} are")]
    Bytes { said: usize, found: usize },
}

impl Engine {
    /// Stops it where it is: no byte is read or written, and nothing is shut down. An empty pipe stays with the thread.
    pub(in crate::session) fn into_parts(self) -> Parts {
        let Self { relay, client, backend, pipes, to_backend, .. } = self;
        let [to_backend_pipe, to_client_pipe] = pipes;
        let travels = |from: Side, pipe: Option<Pipe>| match pipe {
            Some(pipe) if relay.in_pipe(from) > 0 || relay.only_splices() => {
                let (reader, writer) = pipe.into_ends();
                (Some(reader), writer)
            }
            Some(pipe) => {
                pipe.give_back();
                (None, None)
            }
            None => (None, None),
        };
        let (up, up_writer) = travels(Side::Client, to_backend_pipe);
        let (down, down_writer) = travels(Side::Backend, to_client_pipe);
        let (pipes, writers) = ([up, down], [up_writer, down_writer]);
        let (relay, hand) = relay.into_state();
        let (client, backend) = (client.into_fd(), backend.into_fd());
        Parts { relay, hand, client, backend, pipes, writers, nagle_off: to_backend == Nagle::Off }
    }

    /// To go on with, on the runtime of this thread. A write that had no room is simply tried again. If it fails, the parts
    /// are dropped.
    pub(in crate::session) fn from_parts(parts: Parts) -> Result<Self, Unfit> {
        let Parts { relay, hand, client, backend, pipes, writers, nagle_off } = parts;
        let ([up, down], [up_writer, down_writer]) = (pipes, writers);
        let up = adopted(up, up_writer, relay.in_pipe(Side::Client))?;
        let down = adopted(down, down_writer, relay.in_pipe(Side::Backend))?;
        let mut pipes = [up, down];
        if relay.only_splices() {
            let [Some(up), Some(down)] = pipes else { return Err(Unfit::NoWay) };
            let whole = |pipe: Pipe| pipe.owned().with_writer().map_err(Unfit::NoWriter);
            pipes = [Some(whole(up)?), Some(whole(down)?)];
        }
        let relay = Relay::from_state(relay, hand);
        Ok(Self {
            marked: relay.marks(),
            // Who gave it, or was to take it, may be stopped and still have its copies.
            is_shared: true,
            relay,
            client: Socket::register(client).map_err(Unfit::Socket)?,
            backend: Socket::register(backend).map_err(Unfit::Socket)?,
            pipes,
            blocked: [false; 2],
            moved: 0,
            // Whether the first write is still to come is not told: one call too many at most.
            to_backend: if nagle_off { Nagle::Off } else { Nagle::Wrote },
        })
    }
}

/// The kernel knows best what is in a pipe. If that is not what was said, bytes are missing, or are not ours.
fn adopted(reader: Option<OwnedFd>, writer: Option<OwnedFd>, said: usize) -> Result<Option<Pipe>, Unfit> {
    let pipe = reader.map(|reader| Pipe::adopt(reader, writer)).transpose().map_err(Unfit::NoPipe)?;
    let found = pipe.as_ref().map_or(Ok(0), Pipe::held).map_err(Unfit::NoPipe)?;
    if found != said {
        return Err(Unfit::Bytes { said, found });
    }
    Ok(pipe)
}
