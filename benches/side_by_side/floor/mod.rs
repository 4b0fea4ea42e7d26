//! The least that a proxy in user space can do, as a contestant: two threads, an epoll each, edge-triggered sockets, one
//! read and one write a message. No timeouts, no counters, no limits; when one side ends, both are closed.
//!
//! A process of its own, the bench starting itself with [`WORD`], so that its CPU time can be told from the load's.

mod copy;
mod splice;
mod turns;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::thread;

use socket2::{Domain, Socket, Type};

use copy::Copying;
use splice::Splicing;
use turns::{Flow, Turns};

/// The first word on the command line of such a process; then [`Means`] and the routes, `LISTEN=BACKEND` each.
pub(crate) const WORD: &str = "floor";
/// As of the other contestants.
const THREADS: usize = 2;
/// The default of net.core.somaxconn, to which the kernel cuts what is longer.
const QUEUE: i32 = 4096;

/// How bytes get from socket to socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Means {
    Copy,
    /// Through a pipe of so many bytes.
    Splice(usize),
}

impl Means {
    pub(crate) fn word(self) -> String {
        match self {
            Self::Copy => "copy".into(),
            Self::Splice(size) => size.to_string(),
        }
    }

    fn of(word: &str) -> Self {
        word.parse().map_or(Self::Copy, Self::Splice)
    }
}

type Route = (SocketAddr, SocketAddr);

/// Serves until it is killed.
pub(crate) fn serve(words: &[String]) {
    let (means, routes) = words.split_first().expect("means and routes follow");
    let routes: Vec<Route> = routes.iter().map(|word| route(word).expect("LISTEN=BACKEND")).collect();
    match Means::of(means) {
        Means::Copy => on_threads::<Copying>(&routes, ()),
        Means::Splice(size) => on_threads::<Splicing>(&routes, size),
    }
}

fn route(word: &str) -> Option<Route> {
    let (listen, backend) = word.split_once('=')?;
    Some((listen.parse().ok()?, backend.parse().ok()?))
}

fn on_threads<F: Flow>(routes: &[Route], with: F::With) {
    // One socket for both threads: measured against one for each, it made 10 % more sessions, and the same of anything else.
    let listeners = routes.iter().map(|(listen, backend)| Ok((listener(*listen)?, *backend)));
    let listeners = listeners.collect::<io::Result<Vec<_>>>().expect("the ports are reserved for us");
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| Turns::<F>::new(&listeners, with).and_then(Turns::run).expect("nothing breaks"));
        }
    });
}

fn listener(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // Accepted sockets inherit it.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(QUEUE)?;
    Ok(socket.into())
}
