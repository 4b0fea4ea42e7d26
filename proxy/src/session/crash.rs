//! For tests, in builds with debug assertions only: `PROXYD_TEST_CRASH=TEXT` ends the process in the middle of a session that
//! is about to read exactly this text. What it was about to read is read again by whoever goes on with the session.

use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use rustix::net::{RecvFlags, recv};

/// Looks at what the socket has to read, and takes none of it.
pub(super) fn if_asked(socket: BorrowedFd<'_>) {
    static TEXT: OnceLock<Option<Vec<u8>>> = OnceLock::new();
    let text = TEXT.get_or_init(|| std::env::var_os("PROXYD_TEST_CRASH").map(|text| text.into_encoded_bytes()));
    let Some(text) = text else { return };
    let mut bytes = vec![0; text.len() + 1];
    let read = recv(socket, bytes.as_mut_slice(), RecvFlags::PEEK | RecvFlags::DONTWAIT);
    if read.is_ok_and(|(_, n)| bytes.get(..n) == Some(text)) {
        tracing::error!("a session asks for a crash");
        std::process::abort();
    }
}
