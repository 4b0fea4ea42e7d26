//! A service manager that only listens: the far end of `NOTIFY_SOCKET`.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tempfile::TempDir;

use super::wait::until_some;

const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Manager {
    socket: UnixDatagram,
    /// What `NOTIFY_SOCKET` is set to.
    pub name: OsString,
    /// Every message, in order.
    pub heard: Vec<String>,
    _directory: TempDir,
}

impl Manager {
    pub fn at_a_path() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("notify");
        Self::on(UnixDatagram::bind(&path).expect("a socket"), path.into(), directory)
    }

    pub fn in_the_abstract() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let name = directory.path().to_str().expect("a temporary directory has a plain name").to_owned();
        let address = SocketAddr::from_abstract_name(&name).expect("a short name");
        Self::on(UnixDatagram::bind_addr(&address).expect("a socket"), format!("@{name}").into(), directory)
    }

    fn on(socket: UnixDatagram, name: OsString, directory: TempDir) -> Self {
        socket.set_nonblocking(true).expect("a socket can be made non-blocking");
        Self { socket, name, heard: Vec::new(), _directory: directory }
    }

    /// From now on it takes nothing, until it listens. Returns how many messages it took to fill it.
    pub fn fill(&self) -> usize {
        let sender = UnixDatagram::unbound().expect("a socket");
        sender.set_nonblocking(true).expect("a socket can be made non-blocking");
        let address = self.socket.local_addr().expect("a bound socket has an address");
        let mut sent = 0;
        while sender.send_to_addr(b"FILLER=1", &address).is_ok() {
            sent += 1;
        }
        sent
    }

    /// Takes what has come.
    pub fn listen(&mut self) {
        let mut message = [0; 8192];
        loop {
            match self.socket.recv(&mut message) {
                Ok(n) => self.heard.push(String::from_utf8_lossy(&message[..n]).into_owned()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("the manager's own socket: {error}"),
            }
        }
    }

    /// Waits for a message after the first `from`. Returns the number after it.
    ///
    /// # Panics
    /// If none comes.
    pub fn hears(&mut self, from: usize, word: &str) -> usize {
        let found = until_some(&format!("the manager is told {word:?}"), DEADLINE, || {
            self.listen();
            self.heard.iter().skip(from).position(|message| message.contains(word))
        });
        from + found + 1
    }
}
