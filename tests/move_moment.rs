//! Sessions that end in the very moment in which they are moved: closed or reset by either side, at random times around the
//! move. Each side sees what the other one did: all bytes and then the end of file, or a reset, never the one for the other.
//!
//! Two rounds of 200; with `PROXYD_LONG=1` ten of 1,000.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use harness::seeded::Bytes;
use harness::server::{Server, any_v4, runtime};
use harness::{Conf, Following, Metrics, Port, Proxy, Starter, slim, until};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

const DEADLINE: Duration = Duration::from_secs(60);
/// Of each read and write.
const PATIENCE: Duration = Duration::from_secs(20);
const PROBATION: Duration = Duration::from_millis(500);
/// Around the end of the probation, when the sessions move.
const WINDOW: Duration = Duration::from_millis(120);

fn scale() -> (u32, u64) {
    match std::env::var("PROXYD_LONG").as_deref() {
        Ok("1") => (10, 1_000),
        _ => (2, 200),
    }
}

/// What one side does at its moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// Sends its last bytes and closes its half; the other side answers with its own last bytes and its end.
    Close,
    /// The same of both sides at the same time.
    CloseBoth,
    /// Sends bytes and breaks off.
    Reset,
    /// Sends its last bytes and closes its half; the other side breaks off when it has them all.
    CloseThenReset,
}

const ACTS: [Act; 4] = [Act::Close, Act::CloseBoth, Act::Reset, Act::CloseThenReset];

/// How one session goes.
#[derive(Debug, Clone, Copy)]
struct Plan {
    act: Act,
    /// The client is the one that acts.
    by_client: bool,
    /// From the beginning of the window.
    at: Duration,
    /// Last bytes of whoever acts, and of the other one.
    sizes: [usize; 2],
}

impl Plan {
    fn any(random: &mut fastrand::Rng) -> Self {
        // Nothing, less than a buffer, and more than the sockets hold.
        let mut size = || random.choice([0, 1, 900, 40_000, 300_000]).unwrap();
        let sizes = [size(), size()];
        let at = WINDOW.mul_f64(random.f64());
        Self { act: random.choice(ACTS).unwrap(), by_client: random.bool(), at, sizes }
    }

    fn seed(number: u64, is_client: bool) -> u64 {
        number * 2 + u64::from(is_client)
    }
}

/// All that both sides know of a round.
#[derive(Debug)]
struct Round {
    plans: Vec<Plan>,
    /// When the window begins, once that is known.
    window: watch::Receiver<Option<Instant>>,
}

/// One side of one session.
struct Side {
    stream: TcpStream,
    number: u64,
    is_client: bool,
    round: Arc<Round>,
}

impl Side {
    /// What this side does and must see.
    async fn play(mut self) -> io::Result<()> {
        let plan = self.round.plans[usize::try_from(self.number).unwrap()];
        let acts = plan.by_client == self.is_client;
        if acts || plan.act == Act::CloseBoth {
            self.await_moment(plan.at).await;
        }
        let [first, second] = plan.sizes;
        let (mine, theirs) = if acts { (first, second) } else { (second, first) };
        match (plan.act, acts) {
            (Act::Close, true) | (Act::CloseBoth, _) => {
                self.send_last(mine).await?;
                self.expect_end(theirs).await
            }
            (Act::Close, false) => {
                self.expect_end(theirs).await?;
                self.send_last(mine).await
            }
            (Act::Reset, true) => {
                self.send(mine).await?;
                self.break_off()
            }
            (Act::Reset, false) => self.expect_reset().await,
            (Act::CloseThenReset, true) => {
                self.send_last(mine).await?;
                self.expect_reset().await
            }
            (Act::CloseThenReset, false) => {
                self.expect_end(theirs).await?;
                self.break_off()
            }
        }
    }

    async fn await_moment(&mut self, at: Duration) {
        let mut window = self.round.window.clone();
        let begins = window.wait_for(Option::is_some).await.unwrap().unwrap();
        sleep_until((begins + at).into()).await;
    }

    async fn send(&mut self, size: usize) -> io::Result<()> {
        let mut bytes = vec![0; size];
        Bytes::up(Plan::seed(self.number, self.is_client)).fill(&mut bytes);
        timeout(PATIENCE, self.stream.write_all(&bytes)).await?
    }

    async fn send_last(&mut self, size: usize) -> io::Result<()> {
        self.send(size).await?;
        self.stream.shutdown().await
    }

    fn break_off(self) -> io::Result<()> {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))
    }

    /// What comes until the connection ends, and how it ends.
    async fn receive(&mut self) -> io::Result<(u64, io::Result<()>)> {
        let mut bytes = Bytes::up(Plan::seed(self.number, !self.is_client));
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match timeout(PATIENCE, self.stream.read(&mut buffer)).await? {
                Ok(0) => return Ok((bytes.at(), Ok(()))),
                Ok(n) => bytes.check(&buffer[..n])?,
                Err(error) => return Ok((bytes.at(), Err(error))),
            }
        }
    }

    async fn expect_end(&mut self, size: usize) -> io::Result<()> {
        match self.receive().await? {
            (got, Ok(())) if got == size as u64 => Ok(()),
            (got, end) => Err(io::Error::other(format!("{got} of {size} bytes, then {end:?}, for an end of file"))),
        }
    }

    async fn expect_reset(&mut self) -> io::Result<()> {
        match self.receive().await? {
            (_, Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            (got, end) => Err(io::Error::other(format!("{got} bytes, then {end:?}, for a reset"))),
        }
    }

    async fn told(self) -> Result<(), String> {
        let (number, who) = (self.number, if self.is_client { "client" } else { "backend" });
        let plan = self.round.plans[usize::try_from(number).unwrap()];
        self.play().await.map_err(|error| format!("{who} {number}: {error}; {plan:?}"))
    }
}

/// The client tells its number; the backend answers with a byte: the session is established.
async fn client(address: SocketAddr, number: u64, round: Arc<Round>) -> Side {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_u64(number).await.unwrap();
    timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap();
    Side { stream, number, is_client: true, round }
}

async fn backend(mut stream: TcpStream, round: Arc<Round>) -> Result<(), String> {
    let number = stream.read_u64().await.map_err(|error| format!("a backend without a number: {error}"))?;
    stream.write_u8(1).await.map_err(|error| format!("backend {number}: {error}"))?;
    Side { stream, number, is_client: false, round }.told().await
}

/// One upgrade with sessions that end while it moves them; whatever a side saw that it should not have.
fn play(proxy: &Proxy, port: &Port, current: &watch::Sender<Option<Arc<Round>>>, plans: Vec<Plan>) -> Vec<String> {
    let (begin, window) = watch::channel(None);
    let round = Arc::new(Round { plans, window });
    current.send_replace(Some(Arc::clone(&round)));
    let runtime = runtime();
    let count = round.plans.len() as u64;
    let address = port.address();
    let sides: Vec<Side> = runtime.block_on(async {
        let mut sides = Vec::new();
        for number in 0..count {
            sides.push(client(address, number, Arc::clone(&round)).await);
        }
        sides
    });
    let mut running = JoinSet::new();
    for side in sides {
        running.spawn_on(side.told(), runtime.handle());
    }
    let following = Following::start(proxy);
    let begun = proxy.ctl(&["upgrade", "--probation", &format!("{}ms", PROBATION.as_millis()), "--no-wait"]);
    assert!(begun.status.success(), "{begun:?}");
    following.until_step("probation", DEADLINE);
    begin.send_replace(Some(Instant::now() + PROBATION - WINDOW / 3));
    let results = runtime.block_on(running.join_all());
    until("the upgrade is over", DEADLINE, || proxy.status()["upgrade"].is_null());
    println!("{}", proxy.ctl_json(&["upgrade", "--last"])["sessions"]);
    results.into_iter().filter_map(Result::err).collect()
}

#[test]
fn an_end_in_the_moment_of_the_move_is_what_it_was() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (current, rounds_of) = watch::channel(None::<Arc<Round>>);
    let (tell, told) = std::sync::mpsc::sync_channel(100_000);
    let server = Server::start(any_v4(), move |stream| {
        let (round, tell) = (rounds_of.borrow().clone(), tell.clone());
        async move {
            let result = match round {
                Some(round) => backend(stream, round).await,
                None => Ok(()),
            };
            // Nobody listens any more when the test is over.
            let _over = tell.send(result);
        }
    });
    let port = Port::reserve();
    let conf = Conf::simple(&port, &[server.address()]).with("upgrade", "probe = \"off\"");
    let proxy = Starter::with_binary(&conf.with("drain", "timeout = \"1h\""), slim()).start();
    let (rounds, sessions) = scale();
    let mut wrong = Vec::new();
    let mut all = Vec::new();
    for _ in 0..rounds {
        let plans: Vec<Plan> = (0..sessions).map(|_| Plan::any(&mut random)).collect();
        all.extend(plans.clone());
        wrong.extend(play(&proxy, &port, &current, plans));
        for _ in 0..sessions {
            wrong.extend(told.recv_timeout(DEADLINE).unwrap().err());
        }
    }
    assert!(wrong.is_empty(), "{} of {}: {wrong:#?}", wrong.len(), 2 * all.len());
    until("no session is shown as live", DEADLINE, || proxy.metrics().count("proxyd_sessions_active", &[]) == 0);
    assert_reasons(&proxy.metrics(), &all);
    until("the old generations have ended", DEADLINE, || proxy.status()["generations"].as_array().unwrap().len() == 1);
}

/// Each is counted once, and for what it ended.
fn assert_reasons(metrics: &Metrics, plans: &[Plan]) {
    let count = |reason: &str| metrics.count("proxyd_sessions_closed_total", &[("reason", reason)]);
    let of = |act: Act, by_client: bool| {
        plans.iter().filter(|plan| plan.act == act && plan.by_client == by_client).count() as u64
    };
    let both = of(Act::CloseBoth, true) + of(Act::CloseBoth, false);
    let closed = of(Act::Close, true) + of(Act::Close, false) + both;
    assert_eq!(count("client_closed") + count("backend_closed"), closed);
    assert_eq!(count("client_reset"), of(Act::Reset, true) + of(Act::CloseThenReset, false));
    assert_eq!(count("backend_reset"), of(Act::Reset, false) + of(Act::CloseThenReset, true));
    assert_eq!(metrics.count("proxyd_sessions_closed_total", &[]), plans.len() as u64);
    assert_eq!(metrics.count("proxyd_sessions_total", &[]), plans.len() as u64);
}
