//! Upgrades that must succeed whatever the listeners are doing: many of them, many sessions, full queues, other threads.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::harness::{Client, Conf, LongStreams, Pace, Port, Tagged, until};
use crate::row::{DEADLINE, Row, conf, rounds};

fn long() -> bool {
    std::env::var("PROXYD_LONG").is_ok_and(|value| value == "1")
}

/// A row with one listener more, of its own pool.
fn beside(id: &str, port: &Port, backend: SocketAddr, lines: &str) -> Row {
    let more = |conf: Conf| {
        let conf = conf.listener("beside", &port.to_string(), "beside").pool("beside", &[backend]);
        conf.with("listeners.beside", lines)
    };
    Row::start_as(id, more, |starter| starter)
}

/// Batches are of 200: 254 are two, and more than the kernel takes in one message.
#[test]
fn f23_any_number_of_listeners() {
    for count in [254, 1_000, 4_095] {
        let ports = Port::reserve_long_range(count);
        let last = ports[ports.len() - 1].number();
        let range = format!("{}-{last}", ports[0]);
        let row = Row::start_as("F23", |conf| conf.listener("range", &range, "pool"), |starter| starter);
        for _ in 0..rounds() {
            let begun = Instant::now();
            row.upgrades();
            println!("F23: {count} listeners in {:?}", begun.elapsed());
        }
        TcpStream::connect(ports[ports.len() - 1].address()).unwrap();
        row.ends_with(|tally| tally.assert_clean());
    }
}

/// Two descriptors each in the old one, and room for as many in the new one.
#[test]
fn f35_thousands_of_sessions_are_open() {
    let count = if long() { 4_500 } else { 1_000 };
    let row = Row::start("F35");
    let pace = Pace { frame: 100, every: Duration::from_secs(1) };
    let streams = LongStreams::start(row.port.address(), count, pace);
    let open = |more: u64| row.proxy.metrics().count("proxyd_sessions_active", &[]) >= u64::from(count) + more;
    until("all are open", DEADLINE, || open(0));
    let report = row.proxy.upgrade();
    assert!(report["sessions"]["moved"].as_u64().unwrap() >= u64::from(count), "{report}");
    assert_eq!(report["sessions"]["forced"], 0, "{report}");
    assert!(open(0), "each is counted, wherever it is");
    row.serves();
    streams.stop().assert_clean();
    row.ends_well();
}

#[test]
fn f41_other_numbers_of_threads() {
    let row = Row::start("F41");
    let before = conf(&row.port, &row.backend);
    for _ in 0..rounds() {
        for threads in [4, 2, 1, 4, 2] {
            row.proxy.write_config(&before.clone().with("runtime", &format!("threads = {threads}")));
            row.upgrades();
            row.serves();
        }
    }
    row.ends_well();
}

/// The queue belongs to the socket, and the socket to both.
#[test]
fn f42_connections_wait_in_a_full_queue() {
    let (port, backend) = (Port::reserve(), Tagged::start("beside"));
    let row = beside("F42", &port, backend.address(), "max_sessions = 1\nbacklog = 4");
    for _ in 0..rounds() {
        let (occupant, _) = Client::greeted(port.address());
        let waiting: Vec<Client> = (0..5).map(|_| Client::connect(port.address())).collect();
        row.proxy.upgrade();
        drop(occupant);
        for mut client in waiting {
            assert_eq!(client.line(), "beside", "a connection that waited was not served");
        }
    }
    row.ends_well();
}

/// A backend that does not take connections yet: its queue is full.
#[test]
fn f45_a_connect_to_the_backend_is_pending() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let listener = TcpListener::from(socket);
    let port = Port::reserve();
    let row = beside("F45", &port, address, "");
    for _ in 0..rounds() {
        // The first fills the queue; the next one's SYN is dropped until there is room.
        let fill = TcpStream::connect(address).unwrap();
        let mut client = Client::connect(port.address());
        client.send(b"?");
        until("the session connects", DEADLINE, || {
            row.proxy.metrics().count("proxyd_sessions_total", &[("listener", "beside")]) > 0
        });
        let old = row.proxy.serving().unwrap();
        row.proxy.upgrade();
        drop((fill, listener.accept().unwrap()));
        let (mut session, _) = listener.accept().unwrap();
        std::io::Read::read_exact(&mut session, &mut [0]).unwrap();
        std::io::Write::write_all(&mut session, b"ok\n").unwrap();
        assert_eq!(client.line(), "ok");
        drop((client, session));
        row.proxy.wait_generation_gone(old, DEADLINE);
    }
    row.ends_well();
}

/// As fast as it goes, byte for byte, through one upgrade after the other.
#[test]
fn f46_a_long_transfer() {
    let size = if long() { 1 << 30 } else { 1 << 27 };
    let row = Row::start("F46");
    let streams = LongStreams::start(row.port.address(), 2, Pace { frame: 60_000, every: Duration::ZERO });
    for part in 1..=3 {
        until("the transfer goes on", DEADLINE * 10, || streams.tally().bytes_down > size / 4 * part);
        row.proxy.upgrade();
    }
    until("the transfer is complete", DEADLINE * 10, || streams.tally().bytes_down > size);
    streams.stop().assert_clean();
    row.ends_well();
}
