//! How large an installation is, and the load on it: one request or one session after the other, so that nothing is done for
//! several at once and counts can be compared.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::echo::{exchange, opened};
use crate::harness::server::Server;
use crate::harness::{Conf, Port};

/// Under valgrind a request takes milliseconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shape {
    pub(crate) sessions: usize,
    pub(crate) listeners: u16,
    /// Of the one pool.
    pub(crate) backends: u16,
}

/// What is done on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    /// Exchanges on the open sessions in turn.
    pub(crate) requests: usize,
    /// Connect, one exchange, close.
    pub(crate) sessions: usize,
}

/// Ports that stay ours, and a configuration that binds them.
#[derive(Debug)]
pub(crate) struct Site {
    shape: Shape,
    ports: Vec<Port>,
    config: PathBuf,
}

impl Site {
    /// `backend` listens on all addresses of loopback: one for each of the pool.
    pub(crate) fn new(shape: Shape, backend: &Server, directory: &Path) -> Self {
        let ports: Vec<Port> = (0..shape.listeners).map(|_| Port::reserve()).collect();
        let backends: Vec<SocketAddr> = addresses(shape.backends, backend.address().port()).collect();
        let conf = ports.iter().enumerate().fold(Conf::new().pool("p", &backends), |conf, (number, port)| {
            conf.listener(&format!("l{number}"), &port.to_string(), "p")
        });
        let conf = conf.with("runtime", "max_sessions = 9300");
        let config = directory.join("proxyd.toml");
        let text = conf.render(directory, SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
        fs::write(&config, text).expect("our own directory takes files");
        Self { shape, ports, config }
    }

    pub(crate) fn config(&self) -> &Path {
        &self.config
    }

    /// Opens the sessions, and does the work. The sessions live on, so that no run sees more of their ends than another.
    pub(crate) fn load(&self, work: Work) -> io::Result<Vec<TcpStream>> {
        let open = |number: usize| opened(self.ports[number % self.ports.len()].address(), PATIENCE);
        let mut sessions: Vec<TcpStream> = (0..self.shape.sessions).map(open).collect::<io::Result<_>>()?;
        // What a session puts off until its second message belongs to it, not to a request.
        sessions.iter_mut().try_for_each(exchange)?;
        for number in 0..work.requests {
            exchange(&mut sessions[number % self.shape.sessions])?;
        }
        (0..work.sessions).try_for_each(|number| open(number).map(drop))?;
        Ok(sessions)
    }
}

/// So many of 127.0.0.0/8, all of one port.
pub(crate) fn addresses(count: u16, port: u16) -> impl Iterator<Item = SocketAddr> {
    (0..count).map(move |number| {
        let [high, low] = number.to_be_bytes();
        (Ipv4Addr::new(127, 1, high, low), port).into()
    })
}
