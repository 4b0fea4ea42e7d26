//! Sockets from a service manager (sd_listen_fds(3)): adopted, handed on, and leaked nowhere.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::fs::{self, File};
use std::io::Read;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::{Conf, Port, Starter, Steady, Tagged, slim, until};
use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

const DEADLINE: Duration = Duration::from_secs(20);

/// As a service manager starts it: `socket` is descriptor 3. A shell does the rest, because `LISTEN_PID` has to be the pid
/// of what is executed in the end.
fn under_a_manager(conf: &Conf, socket: OwnedFd, pid: &str) -> Starter {
    let mut starter = Starter::with_binary(conf, slim());
    let words = format!("exec 3<&0 </dev/null; LISTEN_PID={pid} LISTEN_FDS=1 LISTEN_FDNAMES=a exec \"$0\" \"$@\"");
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(words).arg(starter.command.get_program()).args(starter.command.get_args());
    let errors = starter.state_dir().parent().unwrap().join("stderr");
    shell.stdin(Stdio::from(socket)).stdout(Stdio::null()).stderr(File::create(errors).unwrap());
    starter.command = shell;
    starter
}

/// Inode of a socket we hold.
fn inode(socket: &impl AsFd) -> u64 {
    rustix::fs::fstat(socket).unwrap().st_ino
}

/// Descriptors of a process that name this socket.
fn held(pid: u32, inode: u64) -> usize {
    let name = format!("socket:[{inode}]");
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    targets.filter(|target| target.to_str() == Some(&name)).count()
}

/// Inode of the socket that listens on a port of 127.0.0.1 (proc_pid_net(5): state 0A is LISTEN, the tenth field the inode).
fn listening(port: u16) -> u64 {
    let table = fs::read_to_string("/proc/self/net/tcp").unwrap();
    let rows = table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let name = format!("0100007F:{port:04X}");
    let mut found = rows.filter(|row| row.len() > 9 && row[1] == name && row[3] == "0A");
    found.next().expect("somebody listens").get(9).unwrap().parse().unwrap()
}

fn environment(pid: u32) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/environ")).unwrap()).replace('\0', "\n")
}

#[test]
fn an_inherited_socket_is_adopted_and_stays_the_same_over_upgrades() {
    let backend = Tagged::start("blue");
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, inode) = (socket.local_addr().unwrap(), inode(&socket));
    let spare = Port::reserve();
    let with_spare = Conf::new().listener("spare", &spare.to_string(), "pool").pool("pool", &[backend.address()]);
    let conf = with_spare.clone().listener("main", &address.to_string(), "pool");
    // What waits in its queue from before is served.
    let mut early = TcpStream::connect(address).unwrap();
    let proxy = under_a_manager(&conf, socket.into(), "$$").start();
    assert!(proxy.stderr().contains(&format!("{address} adopted from the service manager")), "{}", proxy.stderr());
    let mut tag = [0; 5];
    early.read_exact(&mut tag).unwrap();
    assert_eq!(&tag, b"blue\n");
    drop(early);

    let mut session = Steady::open(address);
    for _ in 0..3 {
        let worker = proxy.serving_pid();
        assert_eq!(held(proxy.keeper_pid(), inode), 1);
        // One for the control thread and each data thread, as of a socket that the keeper has bound itself.
        assert_eq!((held(worker, inode), held(worker, listening(spare.number()))), (3, 3));
        assert!(!environment(worker).contains("LISTEN_"), "{}", environment(worker));
        assert!(environment(proxy.keeper_pid()).contains("LISTEN_FDS=1"), "the test is worth nothing without");
        proxy.upgrade();
        session.assert_alive();
        Steady::open(address).assert_alive();
    }
    drop(session);
    until("only one generation is left", DEADLINE, || proxy.status()["generations"].as_array().unwrap().len() == 1);
    // No copy is left anywhere once the configuration names it no more.
    proxy.write_config(&with_spare);
    assert!(proxy.ctl(&["reload"]).status.success());
    until("it refuses", DEADLINE, || TcpStream::connect(address).is_err());
    TcpListener::bind(address).unwrap();
    Steady::open(spare.address()).assert_alive();
}

#[test]
fn a_crashed_worker_gets_the_inherited_socket_again() {
    let backend = Tagged::start("blue");
    // As systemd makes it unless told otherwise: not v6 only, which for one address means nothing.
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
    socket.set_only_v6(false).unwrap();
    socket.bind(&SocketAddr::from((Ipv6Addr::LOCALHOST, 0)).into()).unwrap();
    socket.listen(64).unwrap();
    let (address, inode) = (socket.local_addr().unwrap().as_socket().unwrap(), inode(&socket));
    let conf = Conf::new().listener("main", &address.to_string(), "pool").pool("pool", &[backend.address()]);
    let proxy = under_a_manager(&conf, socket.into(), "$$").start();
    let worker = proxy.serving_pid();
    harness::child::send(worker, Signal::SIGKILL).unwrap();
    Steady::open(address).assert_alive();
    until("another worker serves", DEADLINE, || proxy.serving().is_some_and(|id| proxy.worker_pid(id) != Some(worker)));
    assert_eq!((held(proxy.keeper_pid(), inode), held(proxy.serving_pid(), inode)), (1, 3));
}

#[test]
fn the_file_of_an_inherited_unix_socket_is_the_managers() {
    let backend = Tagged::start("blue");
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("front.sock");
    let socket = UnixListener::bind(&path).unwrap();
    let kept = socket.try_clone().unwrap();
    let bind = format!("unix:{}", path.display());
    let conf = Conf::new().listener("main", &bind, "pool").pool("pool", &[backend.address()]);
    let mut proxy = under_a_manager(&conf, socket.into(), "$$").start();
    assert!(proxy.stderr().contains("adopted from the service manager"), "{}", proxy.stderr());
    let greeted = || {
        let mut client = UnixStream::connect(&path).unwrap();
        let mut tag = [0; 5];
        client.read_exact(&mut tag).unwrap();
        assert_eq!(&tag, b"blue\n");
    };
    greeted();
    proxy.upgrade();
    greeted();
    proxy.signal(Signal::SIGTERM);
    assert!(proxy.wait_exit(DEADLINE).success());
    // The manager still listens there, for the next start.
    let _waiting = UnixStream::connect(&path).expect("the file is still there");
    kept.accept().unwrap();
}

#[test]
fn what_is_meant_for_another_process_is_not_adopted() {
    let backend = Tagged::start("blue");
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let conf = Conf::new().listener("main", &address.to_string(), "pool").pool("pool", &[backend.address()]);
    let exited = under_a_manager(&conf, socket.into(), "1").try_start().unwrap_err();
    assert_eq!(exited.status.code(), Some(71), "{exited:?}");
    assert!(exited.stderr.contains(&address.to_string()) && exited.stderr.contains("in use"), "{exited:?}");
}

#[test]
fn a_socket_that_nothing_names_is_closed_and_said_so() {
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, inode) = (socket.local_addr().unwrap(), inode(&socket));
    let proxy = under_a_manager(&Conf::simple(&port, &[backend.address()]), socket.into(), "$$").start();
    assert!(proxy.stderr().contains("matches no bind"), "{}", proxy.stderr());
    assert_eq!((held(proxy.keeper_pid(), inode), held(proxy.serving_pid(), inode)), (0, 0));
    until("nobody listens there", DEADLINE, || TcpStream::connect(address).is_err());
    Steady::open(port.address()).assert_alive();
}
