//! Messages at a fixed rate, each answered by an echo. A latency counts from the moment a message was meant to be sent, so
//! that one that had to wait for those before it is not left out.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::thread::{ClockId, clock_nanosleep_relative, set_current_timer_slack};
use rustix::time::Timespec;

const MESSAGE: usize = 64;
/// A look at whether it is over.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// For the last answers; longer means that whoever is measured has stopped.
const PATIENCE: Duration = Duration::from_secs(10);

/// What to offer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offer {
    pub(crate) connections: u32,
    /// Messages a second over all connections, in turn.
    pub(crate) rate: u32,
    pub(crate) time: Duration,
}

/// All latencies, sorted.
#[derive(Debug)]
pub(crate) struct Latencies(Vec<Duration>);

impl Latencies {
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The latency that such a part of all messages did not exceed, in microseconds.
    pub(crate) fn micros(&self, part: f64) -> f64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a length is an index")]
        let at = (self.0.len() as f64 * part).ceil() as usize;
        self.0[at.clamp(1, self.0.len()) - 1].as_secs_f64() * 1e6
    }
}

impl Offer {
    /// # Errors
    /// If the echo at `address` refuses, ends or stops.
    pub(crate) fn run(self, address: SocketAddr) -> io::Result<Latencies> {
        let streams: Vec<TcpStream> = (0..self.connections).map(|_| open(address)).collect::<io::Result<_>>()?;
        let (begun, sent_all) = (Instant::now(), AtomicBool::new(false));
        let total = u64::from(self.rate) * u64::try_from(self.time.as_millis()).unwrap_or(u64::MAX) / 1000;
        thread::scope(|scope| {
            let answers = scope.spawn(|| receive(&streams, begun, total, &sent_all));
            let sent = self.send(&streams, begun, total);
            sent_all.store(true, Ordering::Release);
            let seen = answers.join().expect("the receiver does not panic");
            sent?;
            let mut seen = seen?;
            seen.sort_unstable();
            Ok(Latencies(seen))
        })
    }

    fn send(self, streams: &[TcpStream], begun: Instant, total: u64) -> io::Result<()> {
        // The kernel would otherwise add up to 50 us to each sleep, to wake up for several at once.
        set_current_timer_slack(NonZeroU64::new(1))?;
        let between = Duration::from_secs(1) / self.rate;
        let mut message = [0; MESSAGE];
        for (number, mut stream) in (0..total).zip(streams.iter().cycle()) {
            let meant = Duration::from_nanos(number * nanos(between));
            sleep_until(begun + meant);
            message[..8].copy_from_slice(&nanos(meant).to_le_bytes());
            stream.write_all(&message)?;
        }
        Ok(())
    }
}

fn open(address: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    // The way to the echo is there before it counts.
    stream.write_all(&[0; MESSAGE])?;
    stream.read_exact(&mut [0; MESSAGE])?;
    Ok(stream)
}

fn sleep_until(moment: Instant) {
    let left = moment.saturating_duration_since(Instant::now());
    if !left.is_zero()
        && let Ok(left) = Timespec::try_from(left)
    {
        // Woken up early it is a little too soon for one message.
        let _ = clock_nanosleep_relative(ClockId::Monotonic, &left);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Until all are answered.
fn receive(streams: &[TcpStream], begun: Instant, total: u64, sent_all: &AtomicBool) -> io::Result<Vec<Duration>> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    for (key, stream) in (0..).zip(streams) {
        epoll::add(&epoll, stream.as_fd(), EventData::new_u64(key), EventFlags::IN)?;
    }
    let mut parts: Vec<Vec<u8>> = vec![Vec::new(); streams.len()];
    let mut events: Vec<Event> = Vec::with_capacity(streams.len());
    let mut seen = Vec::new();
    let mut buffer = [0; 64 * MESSAGE];
    let mut last = Instant::now();
    while (seen.len() as u64) < total {
        events.clear();
        epoll::wait(&epoll, spare_capacity(&mut events), Some(&TICK))?;
        if events.is_empty() && sent_all.load(Ordering::Acquire) && last.elapsed() > PATIENCE {
            return Err(io::ErrorKind::TimedOut.into());
        }
        for event in &events {
            let which = usize::try_from(event.data.u64()).expect("keys are indices");
            let n = (&streams[which]).read(&mut buffer)?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            last = Instant::now();
            parts[which].extend_from_slice(&buffer[..n]);
            let whole = parts[which].len() / MESSAGE * MESSAGE;
            for message in parts[which].drain(..whole).as_slice().chunks_exact(MESSAGE) {
                let meant = u64::from_le_bytes(message[..8].try_into().expect("eight bytes"));
                seen.push(last.duration_since(begun).saturating_sub(Duration::from_nanos(meant)));
            }
        }
    }
    Ok(seen)
}
