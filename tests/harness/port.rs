//! Ports from the kernel, reserved for as long as a test lives.
//!
//! The socket is bound alone, then marked `SO_REUSEADDR`, and never listens. Linux lets another socket with
//! `SO_REUSEADDR` bind the same address explicitly and listen, but gives the port to nobody who asks for any port, nor to
//! an outgoing connection: so proxyd and the peers get it, and tests that run beside us do not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use socket2::{Domain, Socket, Type};

/// Tries to find neighbouring free ports before giving up; each fails only if a port in the middle is taken.
const RANGE_TRIES: usize = 200;
/// Ports the kernel does not give away by itself, `net.ipv4.ip_local_port_range` being 32768 to 60999, and that few
/// programs use.
const BELOW_EPHEMERAL: Range<u16> = 12_000..30_000;

#[derive(Debug)]
pub struct Port {
    /// Held for its binding only.
    _socket: Socket,
    address: SocketAddr,
}

impl Port {
    /// A free TCP port of 127.0.0.1.
    pub fn reserve() -> Self {
        Self::on(Ipv4Addr::LOCALHOST.into())
    }

    /// A free TCP port of ::1.
    pub fn reserve_v6() -> Self {
        Self::on(Ipv6Addr::LOCALHOST.into())
    }

    fn on(ip: IpAddr) -> Self {
        Self::bind(SocketAddr::new(ip, 0)).expect("the kernel has a free port")
    }

    /// `count` neighbouring ports of 127.0.0.1, in order.
    pub fn reserve_range(count: u16) -> Vec<Self> {
        (0..RANGE_TRIES)
            .find_map(|_| Self::neighbours(Ipv4Addr::LOCALHOST, count))
            .expect("some free ports are neighbours")
    }

    /// As [`Self::reserve_range`], for long ranges: on an address of 127.0.0.0/8 that nobody else uses, because among the
    /// ports of 127.0.0.1 every connection of every test is in the way.
    pub fn reserve_long_range(count: u16) -> Vec<Self> {
        let elsewhere = || Ipv4Addr::new(127, fastrand::u8(1..), fastrand::u8(..), fastrand::u8(1..255));
        (0..RANGE_TRIES).find_map(|_| Self::neighbours(elsewhere(), count)).expect("some free ports are neighbours")
    }

    fn neighbours(address: Ipv4Addr, count: u16) -> Option<Vec<Self>> {
        let first = fastrand::u16(BELOW_EPHEMERAL);
        let ports = first..first.checked_add(count)?;
        ports.map(|port| Self::bind((address, port).into()).ok()).collect()
    }

    fn bind(address: SocketAddr) -> std::io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.bind(&address.into())?;
        // Only now: two sockets that had it before would share the port.
        socket.set_reuse_address(true)?;
        let address = socket.local_addr()?.as_socket().expect("an internet socket has an internet address");
        Ok(Self { _socket: socket, address })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn number(&self) -> u16 {
        self.address.port()
    }
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.address.fmt(f)
    }
}
