//! System calls that no crate wraps safely. One of the two files with `unsafe`; each use says why it is needed and sound.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::libc;
use tokio::io::unix::AsyncFd;

/// Bytes written to the socket that its peer has not acknowledged (`SIOCOUTQ`, tcp(7); for Unix sockets: not yet read).
// JUSTIFICATION: neither nix nor rustix has this request as a safe function.
#[expect(unsafe_code, reason = "ioctl(2) with a request no crate wraps")]
pub fn unsent(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (the number of TIOCOUTQ, tcp(7)) writes one int to the pointer, which outlives the call.
    let status = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if status < 0 {
        return Err(io::Error::last_os_error());
    }
    u32::try_from(bytes).map_err(io::Error::other)
}

/// State of a TCP socket (`TCP_ESTABLISHED` = 1 and so on, include/net/tcp_states.h).
///
/// # Errors
/// Not a TCP socket.
// JUSTIFICATION: `TCP_INFO` has no safe wrapper in nix, rustix or socket2.
#[expect(unsafe_code, reason = "getsockopt(2) with an option no crate wraps")]
pub fn tcp_state(socket: BorrowedFd<'_>) -> io::Result<u8> {
    // The first byte of `struct tcp_info`; of a longer one the kernel writes as much as is asked for.
    let mut state: u8 = 0;
    let mut len: libc::socklen_t = 1;
    // SAFETY: the kernel writes at most `len` = 1 byte to the pointer; both pointers outlive the call.
    let status = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut state).cast(), &raw mut len)
    };
    match (status, len) {
        (0, 1) => Ok(state),
        // Some that know no such option say nothing, and no error (TIPC).
        (0, _) => Err(io::ErrorKind::Unsupported.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Cookie of the network namespace the socket lives in (Linux 5.14; older kernels answer ENOPROTOOPT). Never 0.
// JUSTIFICATION: the option is too new for nix, rustix and socket2.
#[expect(unsafe_code, reason = "getsockopt(2) with an option no crate wraps")]
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie: u64 = 0;
    let mut len: libc::socklen_t = 8;
    // SAFETY: the kernel writes at most `len` = 8 bytes to the pointer; both pointers outlive the call.
    let status = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut len)
    };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Makes the command's process leader of its own session (no terminal signal reaches it), with no signal blocked or
/// ignored: both would otherwise be inherited over `execve`.
// JUSTIFICATION: std has no safe way to run code between fork and exec, and setsid has no other place to go.
#[expect(unsafe_code, reason = "pre_exec runs between fork and exec")]
pub fn spawn_in_own_session(command: &mut Command) {
    // SAFETY: the closure makes system calls only, which are async-signal-safe, and allocates nothing.
    unsafe { command.pre_exec(own_session) };
}

/// Takes the descriptors 3 to 3 + `count` that the service manager left open (sd_listen_fds(3)), close-on-exec from now
/// on. Works once; on error none is taken.
pub fn inherited(count: u32) -> io::Result<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the inherited descriptors are taken already"));
    }
    let count = RawFd::try_from(count).ok().filter(|count| *count <= MOST_INHERITED);
    let Some(count) = count else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("more than {MOST_INHERITED} descriptors")));
    };
    let numbers = FIRST_INHERITED..FIRST_INHERITED + count;
    numbers.clone().try_for_each(survived_exec)?;
    numbers.map(adopt).collect()
}

/// Descriptors that an earlier image of this process left open for this one, by number.
#[derive(Debug)]
pub struct Legacy {
    taken: BTreeSet<RawFd>,
}

impl Legacy {
    /// Once in the life of a process, before it opens anything itself.
    pub fn claim() -> io::Result<Self> {
        static CLAIMED: AtomicBool = AtomicBool::new(false);
        if CLAIMED.swap(true, Ordering::SeqCst) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the legacy is claimed already"));
        }
        Ok(Self { taken: BTreeSet::new() })
    }

    /// A descriptor that came without close-on-exec, and has it from now on; each can be taken once.
    pub fn take(&mut self, number: RawFd) -> io::Result<OwnedFd> {
        if number < FIRST_INHERITED || !self.taken.insert(number) {
            let why = format!("descriptor {number} is a standard stream, or is named twice");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        survived_exec(number)?;
        adopt(number)
    }
}

/// Tells the scheduler that this thread works in batches (`SCHED_BATCH`, sched(7)): woken, it waits its turn instead of taking the
/// processor from whoever runs.
///
/// # Errors
/// The system refuses it, say a filter of system calls.
// JUSTIFICATION: rustix has no such call, and nix has none for a scheduling policy.
#[expect(unsafe_code, reason = "no crate of ours wraps the call")]
pub fn work_in_batches() -> io::Result<()> {
    // SAFETY: a sched_param of zeroes is one of priority 0, the only one of this policy.
    let param: libc::sched_param = unsafe { mem::zeroed() };
    // SAFETY: 0 is the calling thread; the parameter is read, and outlives the call.
    let status = unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const param) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes standard input for our own use, close-on-exec, and puts `/dev/null` in its place: nothing that writes or reads
/// "standard input" later can touch the channel.
pub fn take_stdin() -> io::Result<OwnedFd> {
    let taken = rustix::io::fcntl_dupfd_cloexec(io::stdin(), FIRST_INHERITED)?;
    nix::unistd::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok(taken)
}

/// Readiness of a descriptor of any kind, say a pidfd. Must be called within a tokio runtime with I/O enabled.
// JUSTIFICATION: tokio's own safe constructors are deprecated as unsound for types that lie about their descriptor.
#[expect(unsafe_code, reason = "AsyncFd wants a promise about the descriptor")]
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open and always the same descriptor; the AsyncFd owns it and lends it out by `&` only.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// [`watch`] for a socket that is to be used as one.
// JUSTIFICATION: as above.
#[expect(unsafe_code, reason = "AsyncFd wants a promise about the descriptor")]
pub(crate) fn watch_socket(socket: UnixDatagram) -> io::Result<AsyncFd<UnixDatagram>> {
    // SAFETY: a UnixDatagram is an OwnedFd inside and has no way to exchange it.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

thread_local! {
    /// What this thread confesses as.
    static NUMBER: Cell<u16> = const { Cell::new(NO_THREAD) };
}

/// Where a crash is confessed; -1: nowhere. Once there is a descriptor, it stays open for the life of the process.
static CONFESSOR: AtomicI32 = AtomicI32::new(-1);
/// How each of [`CRASHES`] was handled before.
static BEFORE: OnceLock<[libc::sigaction; CRASHES.len()]> = OnceLock::new();

/// Should this thread crash, its number is confessed.
pub fn confess_as(thread: u16) {
    NUMBER.set(thread);
}

/// Should this process crash (SEGV, BUS, ILL, ABRT, FPE) from now on, the last it does is to send [`CONFESSION`] and the number of
/// the thread through this socket, if there is room at once. What is called again replaces the socket.
///
/// # Errors
/// No descriptor is free.
pub fn confess_through(socket: BorrowedFd<'_>) -> io::Result<()> {
    static HELD: Mutex<Option<OwnedFd>> = Mutex::new(None);
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    match &mut *held {
        // In place: the number never stands for anything else, not even for a moment.
        Some(held) => rustix::io::dup3(socket, held, rustix::io::DupFlags::CLOEXEC)?,
        none => {
            let fd = none.insert(socket.try_clone_to_owned()?);
            CONFESSOR.store(fd.as_raw_fd(), Ordering::Release);
            handle_crashes()?;
        }
    }
    Ok(())
}

// JUSTIFICATION: no crate installs a handler for a fault; signal-hook refuses to.
#[expect(unsafe_code, reason = "sigaction(2) with a handler")]
fn handle_crashes() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is a valid value: the default action, an empty mask, no flags.
    let none: libc::sigaction = unsafe { mem::zeroed() };
    let mut before = [none; CRASHES.len()];
    for (signal, before) in CRASHES.iter().zip(&mut before) {
        // SAFETY: reads the present action into a live local.
        if unsafe { libc::sigaction(*signal, ptr::null(), before) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // Before the handler can run.
    let _ = BEFORE.set(before);
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = confess;
    let ours = libc::sigaction {
        sa_sigaction: handler as *const () as libc::sighandler_t,
        // On the stack that std has set aside for a thread whose own is used up.
        sa_flags: libc::SA_SIGINFO | libc::SA_ONSTACK,
        ..none
    };
    for signal in CRASHES {
        // SAFETY: the handler is async-signal-safe (see there) and never unwinds.
        if unsafe { libc::sigaction(signal, &raw const ours, ptr::null_mut()) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Runs on the thread that crashes, wherever it was: it only loads two words, makes system calls, and leaves the rest to whoever
/// handled the signal before.
// JUSTIFICATION: what it does is what may be done in a signal handler (signal-safety(7)), and no crate offers it.
#[expect(unsafe_code, reason = "a signal handler")]
extern "C" fn confess(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // A cell without a destructor, initialised at compile time: a plain load.
    let [high, low] = NUMBER.get().to_be_bytes();
    let words = [CONFESSION, high, low];
    let (socket, flags) = (CONFESSOR.load(Ordering::Acquire), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
    // SAFETY: the kernel reads as many bytes as there are; a bad number is an error that changes nothing.
    unsafe { libc::send(socket, words.as_ptr().cast(), words.len(), flags) };
    // SAFETY: with SA_SIGINFO the kernel passes a valid pointer.
    let is_fault = unsafe { (*info).si_code } > 0;
    let known = CRASHES.iter().position(|crash| *crash == signal);
    let before = known.zip(BEFORE.get()).and_then(|(at, before)| before.get(at));
    if let Some(before) = before.filter(|_| is_fault) {
        // SAFETY: an action that was in force before. The faulting instruction is repeated when this returns.
        unsafe { libc::sigaction(signal, before, ptr::null_mut()) };
        return;
    }
    // Sent by somebody, or by abort(3): it is not repeated by itself.
    // SAFETY: the default action runs no code of ours.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // SAFETY: sends a signal to this thread, which is blocked until this returns.
    unsafe { libc::raise(signal) };
}

/// What the child does before `execve`.
// JUSTIFICATION: called between fork and exec, where raw calls are easier to show harmless than a library.
#[expect(unsafe_code, reason = "setsid, sigprocmask and sigaction between fork and exec")]
fn own_session() -> io::Result<()> {
    // SAFETY: setsid has no arguments; a child that was just forked leads no process group, so it cannot fail.
    if unsafe { libc::setsid() } < 0 {
        return Err(io::Error::last_os_error());
    }
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: SIG_DFL runs no code of ours. KILL, STOP and the two of the C library answer EINVAL: not ignorable.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an all-zero sigset_t is a valid value; sigemptyset sets it anyway.
    let mut none: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: the pointer is to a live local.
    unsafe { libc::sigemptyset(&raw mut none) };
    // SAFETY: reads the set, writes nothing back.
    if unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A descriptor without close-on-exec came with `execve`: everything this process opens itself has the flag.
// JUSTIFICATION: the number is not known to be open, so there is no `BorrowedFd` to give to a safe wrapper.
#[expect(unsafe_code, reason = "fcntl on a number that may not be open")]
fn survived_exec(number: RawFd) -> io::Result<()> {
    // SAFETY: F_GETFD reads a flag of a number, open or not, and touches no memory of ours.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        let cause = io::Error::last_os_error();
        return Err(io::Error::new(cause.kind(), format!("inherited descriptor {number}: {cause}")));
    }
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("descriptor {number} was not inherited")));
    }
    Ok(())
}

// JUSTIFICATION: the protocol of the service manager passes numbers; here they become owned.
#[expect(unsafe_code, reason = "a number becomes an OwnedFd")]
fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: survived_exec showed that it is open and that nobody in this process opened it; `inherited` runs once, and
    // `Legacy` takes each number once.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// include/uapi/asm-generic/socket.h; libc has it under this value on every architecture Rust runs on but parisc, sparc.
const SO_NETNS_COOKIE: libc::c_int = 71;
/// `SD_LISTEN_FDS_START`, sd_listen_fds(3).
const FIRST_INHERITED: RawFd = 3;
/// The most a service manager can be asked to pass is its own descriptor limit; this is Linux' default ceiling (nr_open).
const MOST_INHERITED: RawFd = 1 << 20;
/// What a process does to itself.
const CRASHES: [libc::c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGABRT, libc::SIGFPE];
/// The first byte of a confession; the number of the thread follows, the higher byte first.
pub const CONFESSION: u8 = b'!';
/// Confessed by a thread without a number.
pub const NO_THREAD: u16 = u16::MAX;
/// `_NSIG`, signal(7).
const LAST_SIGNAL: libc::c_int = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn unsent_counts_what_the_peer_has_not_taken() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        assert_eq!(unsent(ours.as_fd()).unwrap(), 0);
        ours.write_all(&[1; 100]).unwrap();
        // The kernel counts the memory of the buffers of a Unix socket, not only its payload.
        assert!(unsent(ours.as_fd()).unwrap() >= 100);
        theirs.read_exact(&mut [0; 100]).unwrap();
        assert_eq!(unsent(ours.as_fd()).unwrap(), 0);
    }

    #[test]
    fn unsent_of_a_blocked_connection_is_not_zero() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_nonblocking(true).unwrap();
        while client.write(&[0; 65_536]).is_ok() {}
        assert!(unsent(client.as_fd()).unwrap() > 0);
    }

    #[test]
    fn a_connection_is_established_until_it_is_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        assert_eq!(tcp_state(client.as_fd()).unwrap(), 1);
        rustix::net::connect_unspec(&server).unwrap();
        assert_eq!((tcp_state(client.as_fd()).unwrap(), tcp_state(server.as_fd()).unwrap()), (7, 7));
        assert!(tcp_state(UnixStream::pair().unwrap().0.as_fd()).is_err());
    }

    #[test]
    fn unsent_of_a_file_is_an_error() {
        assert!(unsent(tempfile::tempfile().unwrap().as_fd()).is_err());
    }

    #[test]
    fn sockets_of_one_namespace_have_one_cookie() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let (unix, _peer) = UnixStream::pair().unwrap();
        let cookie = netns_cookie(tcp.as_fd()).unwrap();
        assert_ne!(cookie, 0);
        assert_eq!(netns_cookie(unix.as_fd()).unwrap(), cookie);
        assert!(netns_cookie(tempfile::tempfile().unwrap().as_fd()).is_err());
    }

    #[test]
    fn a_child_leads_its_own_session_with_default_signals() {
        let mut command = Command::new("cat");
        command.arg("/proc/self/stat").arg("/proc/self/status");
        spawn_in_own_session(&mut command);
        let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let stat: Vec<_> = text.lines().next().unwrap().split(' ').collect();
        let (pid, session) = (stat[0], stat[5]);
        assert_eq!(pid, session);
        for mask in ["SigBlk", "SigIgn"] {
            let line = text.lines().find(|line| line.starts_with(mask)).unwrap();
            let signals = u64::from_str_radix(line.rsplit('\t').next().unwrap(), 16).unwrap();
            // 32 and 33 belong to the C library, which lets nobody change them.
            assert_eq!(signals & !(0b11 << 31), 0, "{line}");
        }
    }

    #[test]
    fn only_what_came_with_exec_is_inherited_and_only_once() {
        // Opened here, so close-on-exec (or nothing is open at 3): both are no inheritance.
        let _ours = tempfile::tempfile().unwrap();
        assert!(survived_exec(_ours.as_raw_fd()).is_err());
        assert!(survived_exec(RawFd::MAX).is_err());
        assert!(inherited(u32::MAX).is_err());
        let second = inherited(0).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn a_legacy_is_what_came_with_exec_each_number_once() {
        let ours = tempfile::tempfile().unwrap();
        let mut legacy = Legacy::claim().unwrap();
        assert!(Legacy::claim().is_err());
        for number in [-1, 0, 2, RawFd::MAX, ours.as_raw_fd()] {
            assert!(legacy.take(number).is_err(), "{number}");
        }
        // As after execve.
        let kept = rustix::io::dup(&ours).unwrap();
        let number = std::os::fd::IntoRawFd::into_raw_fd(kept);
        let taken = legacy.take(number).unwrap();
        assert!(rustix::io::fcntl_getfd(&taken).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        assert!(legacy.take(number).is_err(), "twice");
    }
}
