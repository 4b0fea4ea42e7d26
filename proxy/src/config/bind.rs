//! Where a listener listens: TCP addresses and Unix sockets, and which of them exclude each other.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// An address to listen on. Its text is the id of the socket: a socket is kept over a reload or an upgrade exactly as
/// long as its text stays.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Bind {
    Tcp {
        address: SocketAddr,
        /// For IPv6 only; `true` for IPv4.
        v6only: bool,
    },
    Unix {
        path: PathBuf,
        mode: u32,
        owner: Option<u32>,
        group: Option<u32>,
    },
}

impl Bind {
    /// `tcp:0.0.0.0:80`, `tcp:[::]:80` (v6 only), `tcp:[::]:80+v4`, `unix:/run/a.sock`.
    pub fn id(&self) -> String {
        match self {
            Self::Tcp { address, v6only: false } if address.is_ipv6() => format!("tcp:{address}+v4"),
            Self::Tcp { address, .. } => format!("tcp:{address}"),
            Self::Unix { path, .. } => format!("unix:{}", path.display()),
        }
    }
}

/// As an operator writes it.
impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { address, .. } => write!(f, "{address}"),
            Self::Unix { path, .. } => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Bind {
    /// The kernel lets only one of the two listen: the same address, or one address and the wildcard that covers it
    /// (`SO_REUSEADDR` does not help once one of them listens).
    pub(super) fn excludes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unix { path, .. }, Self::Unix { path: other, .. }) => path == other,
            (Self::Tcp { address: a, .. }, Self::Tcp { address: b, .. }) if a.port() == b.port() => {
                a.ip() == b.ip() || self.is_wildcard_over(b.ip()) || other.is_wildcard_over(a.ip())
            }
            _ => false,
        }
    }

    /// Whether a connection to `target` from this machine, which has the addresses `local`, arrives here.
    pub(super) fn accepts(&self, target: SocketAddr, local: &[IpAddr]) -> bool {
        let Self::Tcp { address, .. } = self else { return false };
        let is_here = || target.ip().is_loopback() || local.contains(&target.ip());
        address.port() == target.port()
            && (address.ip() == target.ip() || (self.is_wildcard_over(target.ip()) && is_here()))
    }

    fn is_wildcard_over(&self, ip: IpAddr) -> bool {
        match self {
            Self::Tcp { address, v6only } if address.ip().is_unspecified() => {
                address.is_ipv4() == ip.is_ipv4() || (address.is_ipv6() && !v6only)
            }
            _ => false,
        }
    }
}
