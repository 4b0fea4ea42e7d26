//! The process that is counted: a data plane as a worker has it, and nothing else, until its standard input ends.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use handoff::ledger::{Ledger, Sizes};
use proxy::config::plan::{Plan, PlannedPool};
use proxy::config::{Bind, Config, parse};
use proxy::listener::names_of;
use proxy::session::set_listener;
use proxy::worker::Plane;
use socket2::{Domain, Socket, Type};

/// The first word on its command line; the configuration follows.
pub(crate) const WORD: &str = "plane";
/// What it prints when it polls.
pub(crate) const READY: &str = "polling";
/// Threads and the keeper lease a block each.
const BLOCKS: u32 = 4;
/// Above what is opened.
const RECORDS: u32 = 10_000;

pub(crate) fn serve(config: &Path) {
    let text = std::fs::read(config).expect("the bench has written it");
    let config = parse(config, &text).expect("the bench writes no mistakes").config;
    let pools = config.pools.iter().map(|(name, pool)| PlannedPool::from_config(name, pool, 1));
    let plan = config.plan(1, &pools.collect::<Vec<_>>());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    let _plane = runtime.block_on(started(plan, sockets(&config)));
    println!("{READY}");
    // The data threads need nothing of this one.
    let _ended = io::stdin().read_to_end(&mut Vec::new());
}

async fn started(plan: Plan, sockets: Vec<(String, OwnedFd)>) -> Plane {
    let mut ledger = Ledger::create(Sizes::default()).expect("a ledger can be made");
    ledger.ensure(&names_of(&plan), BLOCKS, RECORDS).expect("a ledger can grow");
    let mut plane = Plane::start(plan.clone(), 1, ledger.segments().to_vec()).expect("threads can be started");
    plane.apply(plan, sockets).await.expect("the sockets are as the plan has them");
    plane.poll().await.expect("the sockets can be polled");
    plane
}

fn sockets(config: &Config) -> Vec<(String, OwnedFd)> {
    let of = |bind: &Bind, listener: &proxy::config::Listener| {
        let Bind::Tcp { address, .. } = bind else { panic!("the bench writes addresses only") };
        let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        set_listener(socket.as_fd(), &listener.tcp)?;
        socket.bind(&(*address).into())?;
        socket.listen(i32::try_from(listener.backlog).unwrap_or(i32::MAX))?;
        Ok::<_, io::Error>((bind.id(), socket.into()))
    };
    let all = config.listeners.values().flat_map(|listener| listener.bind.iter().map(move |bind| of(bind, listener)));
    all.collect::<io::Result<_>>().expect("the ports are reserved for us")
}
