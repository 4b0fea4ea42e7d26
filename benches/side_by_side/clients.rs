//! Load that is made here: clients on threads of their own, blocking, until the time is over.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::echo::{connect, exchange, opened};

/// As of the backends.
const BLOCK: usize = 256 * 1024;
/// Of any single answer; longer means that a contestant has stopped.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Reads of a few words are made at once; so many bytes at a time are read in bulk.
const GULP: usize = 1024 * 1024;

/// What was done in all, and how much of it a second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amount {
    pub(crate) total: f64,
    pub(crate) rate: f64,
}

/// Runs `client` on so many threads; each returns its amount, of which `per_unit` are a unit.
///
/// # Panics
/// If a client fails: a contestant serves until the end.
pub(crate) fn run(
    threads: u32,
    time: Duration,
    per_unit: f64,
    client: impl Fn(Instant) -> io::Result<f64> + Sync,
) -> Amount {
    let start = Instant::now();
    let client = || client(start + time).expect("a contestant serves until the end");
    let amount: f64 = thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(client)).collect();
        running.into_iter().map(|one| one.join().expect("a client does not panic")).sum()
    });
    let total = amount / per_unit;
    Amount { total, rate: total / start.elapsed().as_secs_f64() }
}

/// Exchanges on one connection.
pub(crate) fn ping_pong(address: SocketAddr, until: Instant) -> io::Result<f64> {
    let mut stream = connect(address, PATIENCE)?;
    let mut done = 0.0;
    while Instant::now() < until {
        exchange(&mut stream)?;
        done += 1.0;
    }
    Ok(done)
}

/// Connections with an exchange each.
pub(crate) fn churn(address: SocketAddr, until: Instant) -> io::Result<f64> {
    let mut done = 0.0;
    while Instant::now() < until {
        opened(address, PATIENCE)?;
        done += 1.0;
    }
    Ok(done)
}

/// Bits read.
pub(crate) fn sink(address: SocketAddr, until: Instant) -> io::Result<f64> {
    drain(&connect(address, PATIENCE)?, until)
}

/// Bits read and written, on one connection.
pub(crate) fn both_ways(address: SocketAddr, until: Instant) -> io::Result<f64> {
    let stream = connect(address, PATIENCE)?;
    thread::scope(|scope| {
        let writer = scope.spawn(|| fill(&stream, until));
        let read = drain(&stream, until);
        // The writer may wait for room that nobody makes any more.
        stream.shutdown(std::net::Shutdown::Both)?;
        Ok(read? + writer.join().expect("a client does not panic"))
    })
}

fn drain(mut stream: &TcpStream, until: Instant) -> io::Result<f64> {
    let mut buffer = vec![0; GULP];
    let mut bits = 0.0;
    while Instant::now() < until {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bits += 8.0 * n as f64;
    }
    Ok(bits)
}

fn fill(mut stream: &TcpStream, until: Instant) -> f64 {
    let block = vec![0x5a; BLOCK];
    let mut bits = 0.0;
    while Instant::now() < until {
        match stream.write(&block) {
            Ok(n @ 1..) => bits += 8.0 * n as f64,
            // The reader has made an end.
            Ok(0) | Err(_) => break,
        }
    }
    bits
}
