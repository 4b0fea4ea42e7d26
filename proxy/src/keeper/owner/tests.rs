//! A keeper without workers.

use std::os::unix::net::UnixStream;

use handoff::ledger::{Opening, Record};
use handoff::vault::Belongings;
use tokio::task::LocalSet;

use super::*;
use crate::observe::names;
use crate::observe::reason::{Protection, Unprotected};

const CONFIG: &str = "[runtime]\nstate_dir = \"/run/x\"\n[admin]\nlisten = \"off\"\n[listeners.main]\nbind = \"127.0.0.1:7000\"\npool = \"p\"\n[pools.p]\nbackends = [\"127.0.0.1:7001\"]\n";

fn keeper() -> Keeper {
    let loaded = Loaded::of_text("/etc/proxyd.toml".as_ref(), CONFIG.as_bytes()).unwrap();
    let pools = Pools::from_config(&loaded.config);
    let keeper = Keeper::new(Parts {
        pinned: Rc::new(Pinned::own("/usr/bin/proxyd".as_ref()).unwrap()),
        ledger: Ledger::create(sizes(&loaded.config, &pools, 0)).unwrap(),
        loaded,
        pools,
        sockets: Sockets::default(),
        events: mpsc::channel(1).0,
        reaper: Reaper::default(),
        started: Instant::now(),
        replaceable: false,
        greeting: None,
        is_heir: false,
    });
    keeper.unwrap()
}

/// As a worker has it.
fn session(writer: &Writer) -> Record {
    let segment = writer.segment();
    let name = |spec: handoff::ledger::NameSpec| segment.find(spec.kind, &spec.text).unwrap();
    let (listener, pool) = (name(names::listener("main")), name(names::pool("p")));
    let opening = Opening { listener, pool, client: None, opened_unix_us: 1, opened_ms: 1 };
    let record = writer.claim(&opening).unwrap();
    let address = "127.0.0.1:7001".parse().unwrap();
    record.established(name(names::backend("p", "127.0.0.1:7001")), address);
    record
}

fn belongings() -> Belongings {
    let (client, backend) = UnixStream::pair().unwrap();
    let pipe = || rustix::pipe::pipe().unwrap().0;
    Belongings { client: client.into(), backend: backend.into(), pipes: [pipe(), pipe()] }
}

#[tokio::test]
async fn what_is_held_of_a_generation_that_nobody_saw_die_goes_on() {
    let run = async {
        let mut keeper = keeper();
        let writer = Writer::lease(keeper.ledger.segments()[0].clone(), 5, 0).unwrap();
        let (kept, lost) = (session(&writer), session(&writer));
        let places = [&kept, &lost].map(|record| (record.place(), record.id()));
        keeper.vault.put(kept.id(), kept.place(), belongings());
        // Its process leaves everything as it is.
        std::mem::forget((kept, lost, writer));
        keeper.bury_lost(5, Exit::Unknown);
        let left = places.map(|(place, id)| keeper.ledger.whereabouts(place, id).map(|found| found.generation));
        assert_eq!((left, keeper.is_recovering()), ([Some(5), None], true));
    };
    LocalSet::new().run_until(run).await;
}

/// What becomes of one session of generation 5 that is held, when `look` has looked: who has it, and whether it is to go on.
async fn held(protection: Protection, look: impl FnOnce(&mut Keeper)) -> (Option<u32>, bool) {
    let run = async {
        let mut keeper = keeper();
        let writer = Writer::lease(keeper.ledger.segments()[0].clone(), 5, 0).unwrap();
        let record = session(&writer);
        record.protect(protection.code());
        let (place, id) = (record.place(), record.id());
        keeper.vault.put(id, place, belongings());
        std::mem::forget((record, writer));
        look(&mut keeper);
        (keeper.ledger.whereabouts(place, id).map(|found| found.generation), keeper.is_recovering())
    };
    LocalSet::new().run_until(run).await
}

#[tokio::test]
async fn one_that_was_turned_away_is_not_recovered_from_an_earlier_deposit() {
    let bury = |keeper: &mut Keeper| keeper.bury_lost(5, Exit::Signal(9));
    assert_eq!(held(Protection::Deposited, bury).await, (Some(5), true));
    assert_eq!(held(Protection::No(Unprotected::KeeperAway), bury).await, (Some(5), true), "it only splices");
    assert_eq!(held(Protection::No(Unprotected::KeeperFull), bury).await, (None, false));
}

#[tokio::test]
async fn what_was_given_to_a_dead_worker_is_found_a_moment_later() {
    let now = tokio::time::Instant::now();
    let bury = |at| {
        move |keeper: &mut Keeper| {
            keeper.buried.push((5, Exit::Signal(9), now));
            keeper.bury_latecomers(at);
        }
    };
    assert_eq!(held(Protection::Deposited, bury(now)).await, (Some(5), false), "not yet");
    assert_eq!(held(Protection::Deposited, bury(now + Duration::from_millis(1))).await, (Some(5), true));
}

#[tokio::test]
async fn of_a_ghost_nothing_is_recovered() {
    let bury = |keeper: &mut Keeper| {
        let now = tokio::time::Instant::now();
        keeper.ghosts.push((5, now));
        keeper.bury_ghosts(now + Duration::from_millis(1));
    };
    assert_eq!(held(Protection::Deposited, bury).await, (None, false));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_hangs_holds_the_loop_up_for_a_moment_only() {
    let run = async {
        let mut keeper = keeper();
        let begun = tokio::time::Instant::now();
        keeper.briefly(async {}).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        keeper.briefly(std::future::pending()).await;
        assert!(begun.elapsed() < MOMENT * 2, "{:?}", begun.elapsed());
    };
    LocalSet::new().run_until(run).await;
}
