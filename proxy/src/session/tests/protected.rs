//! Sessions that outlive their process: nothing is left of them but what a keeper holds, and what their records say.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use handoff::vault::{self, Belongings, Custodian, Deposit, Depositor, Word};

use super::*;
use crate::observe::reason::{Protection, Unprotected};

/// As far as it holds sessions.
struct Keeper {
    custodian: Custodian,
    held: RefCell<HashMap<u64, (Deposit, Belongings)>>,
    is_full: Cell<bool>,
}

struct Protected {
    world: World,
    keeper: Keeper,
}

impl Keeper {
    fn start() -> Self {
        let (ours, theirs) = vault::pair().unwrap();
        let depositor = Arc::new(Depositor::new(theirs).unwrap());
        custody::of_thread().turn_to(THREAD, Some(depositor));
        let custodian = Custodian::new(ours).unwrap();
        Self { custodian, held: RefCell::default(), is_full: Cell::new(false) }
    }

    /// Everything that was said by now.
    fn hear(&self) {
        let mut held = self.held.borrow_mut();
        while let Some(word) = self.custodian.try_next().unwrap() {
            match word {
                Word::Deposit(deposit, _) if self.is_full.get() => self.custodian.refuse(&deposit),
                Word::Deposit(deposit, belongings) => {
                    self.custodian.keep();
                    held.insert(deposit.id, (deposit, belongings));
                }
                Word::Withdraw { id, .. } => drop(held.remove(&id)),
                word => panic!("{word:?}"),
            }
        }
        self.custodian.settle().unwrap();
    }

    fn holds(&self) -> usize {
        self.hear();
        self.held.borrow().len()
    }
}

async fn protected(timeouts: Timeouts) -> Protected {
    let keeper = Keeper::start();
    Protected { world: world_of(timeouts, true).await, keeper }
}

impl Protected {
    /// The process of an owner dies, in so far as all it knew is gone; the other owner has its sessions from the keeper.
    async fn crash(&self, from: usize) {
        let (dead, heir) = (&self.world.owners[from], &self.world.owners[1 - from]);
        let lost = dead.table.freeze(64, Duration::ZERO, &HashSet::new()).carried;
        let ids: Vec<u64> = lost.iter().map(|carried| carried.id).collect();
        drop(lost);
        self.keeper.hear();
        pause().await;
        for id in &ids {
            heir.hold(self.recovered(*id));
        }
        pause().await;
        // As the keeper gives away what a dead owner had.
        let named: Vec<(u64, u16)> = ids.iter().map(|id| (*id, THREAD)).collect();
        assert_eq!(dead.table.release(&named, heir.generation), ids);
        assert_eq!(heir.table.start(&ids), ids.len() as u64);
    }

    fn recovered(&self, id: u64) -> Carried {
        let held = self.keeper.held.borrow();
        let (deposit, Belongings { client, backend, pipes }) = held.get(&id).expect("deposited before its first byte");
        let place = deposit.place;
        let snapshot = self.world.ledger.look(place, id).unwrap();
        let terms = KeptTerms::read(deposit.terms.as_deref().expect("left with it")).unwrap();
        let began = &self.world.owners[0].terms;
        assert_eq!((terms.timeouts, terms.tcp), (began.timeouts, began.tcp));
        let state = SessionState::recovered(&snapshot, terms, [client, backend], pipes).unwrap();
        let copy = |fd: &OwnedFd| fd.try_clone().unwrap();
        let pipes = pipes.each_ref().map(|pipe| Some(copy(pipe)));
        let hand = [Vec::new(), Vec::new()];
        let writers = [None, None];
        Carried { id, place, state, hand, client: copy(client), backend: copy(backend), pipes, writers }
    }

    fn protections(&self) -> Vec<Option<Protection>> {
        let sessions = handoff::ledger::sessions(self.world.ledger.segments());
        sessions.iter().map(|session| Protection::of_code(session.protection)).collect()
    }
}

#[test]
fn streams_arrive_whole_however_often_their_owner_dies() {
    on_a_data_thread(async {
        let scene = protected(NO_TIMEOUTS).await;
        let world = &scene.world;
        let mut peers = tokio::task::JoinSet::new();
        for seed in 0..6 {
            let (client, server) = world.session().await;
            let (to_server, to_client) = (seeded(seed, 3_000_000), seeded(!seed, 2_000_000));
            let (client_in, client_out) = client.into_split();
            let (server_in, server_out) = server.into_split();
            peers.spawn_local(send(client_out, Rc::clone(&to_server)));
            peers.spawn_local(send(server_out, Rc::clone(&to_client)));
            peers.spawn_local(check(server_in, to_server));
            peers.spawn_local(check(client_in, to_client));
        }
        let mut turns = 0_u64;
        let turning = async {
            while world.owners.iter().any(|owner| owner.census.live() > 0) {
                let from = usize::from(turns % 2 == 1);
                match fastrand::u32(0..4) {
                    0 => world.transfer(from, fastrand::bool()).await,
                    _ => scene.crash(from).await,
                }
                turns += 1;
                pause().await;
            }
        };
        tokio::join!(turning, peers.join_all());
        assert!(turns > 20, "{turns} crashes and moves while the streams ran");
        until(|| handoff::ledger::sessions(world.ledger.segments()).is_empty()).await;
        assert_eq!(world.closed(Reason::ClientClosed) + world.closed(Reason::BackendClosed), 6, "each counted once");
        assert_eq!(scene.keeper.holds(), 0);
    });
}

/// Descriptors of this process for the pipes of a session, by number.
fn descriptors(pipes: &[u64]) -> Vec<(u64, i32)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let named = std::fs::read_link(entry.path()).ok();
        let pipe = named.and_then(|to| to.to_str()?.strip_prefix("pipe:[")?.strip_suffix(']')?.parse().ok());
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        found.extend(pipe.filter(|pipe| pipes.contains(pipe)).zip(number));
    }
    found.sort_unstable();
    found
}

#[test]
fn one_that_is_taken_back_needs_no_descriptor() {
    on_a_data_thread(async {
        let scene = protected(NO_TIMEOUTS).await;
        let (mut client, mut server) = scene.world.session().await;
        assert_eq!(scene.keeper.holds(), 1);
        let pipes: Vec<u64> = {
            let held = scene.keeper.held.borrow();
            let pipes = held.values().flat_map(|(_, belongings)| &belongings.pipes);
            pipes.map(|pipe| rustix::fs::fstat(pipe).unwrap().st_ino).collect()
        };
        let before = descriptors(&pipes);
        assert_eq!(before.len(), 6, "both ends of two pipes, and what the keeper has: {before:?}");
        let table = &scene.world.owners[0].table;
        let carried = table.freeze(64, Duration::ZERO, &HashSet::new()).carried;
        assert_eq!(descriptors(&pipes), before, "on its way");
        table.resume(carried);
        assert_eq!(descriptors(&pipes), before, "and back");
        client.write_all(b"on").await.unwrap();
        server.read_exact(&mut [0; 2]).await.unwrap();
        drop((client, server));
        until(|| scene.keeper.holds() == 0).await;
    });
}

#[test]
fn each_end_is_told_though_the_keeper_holds_duplicates() {
    on_a_data_thread(async {
        let scene = protected(NO_TIMEOUTS).await;
        for crashed in [false, true] {
            let (client, mut server) = scene.world.session().await;
            let (mut other, gone) = scene.world.session().await;
            let (killed, mut sees) = scene.world.session().await;
            assert_eq!(scene.keeper.holds(), 3);
            if crashed {
                scene.crash(0).await;
            }
            drop(client);
            assert_eq!(read_out(&mut server).await.1.unwrap(), 0, "an end of file");
            reset(gone);
            assert!(is_reset(&read_out(&mut other).await.1));
            drop(server);
            until(|| scene.keeper.holds() == 1).await;
            for owner in &scene.world.owners {
                let ids: Vec<u64> = scene.keeper.held.borrow().keys().copied().collect();
                owner.table.close(&ids, KILLED);
            }
            assert!(is_reset(&read_out(&mut sees).await.1));
            drop(killed);
            until(|| scene.keeper.holds() == 0).await;
        }
        let ended = [(Reason::ClientClosed, 2), (Reason::BackendReset, 2), (Reason::AdminKilled, 2)];
        scene.world.is_empty_with(&ended).await;
    });
}

#[test]
fn a_session_that_both_have_ended_leaves_the_keeper_though_its_peers_linger() {
    on_a_data_thread(async {
        let scene = protected(NO_TIMEOUTS).await;
        let (mut client, mut server) = scene.world.session().await;
        client.write_all(b"last words").await.unwrap();
        client.shutdown().await.unwrap();
        server.shutdown().await.unwrap();
        assert_eq!(read_out(&mut server).await.0, b"last words");
        assert_eq!(read_out(&mut client).await.1.unwrap(), 0);
        until(|| scene.keeper.holds() == 0).await;
        scene.world.is_empty_with(&[(Reason::ClientClosed, 1)]).await;
    });
}

#[test]
fn half_closed_sessions_end_in_order_after_a_crash() {
    on_a_data_thread(async {
        let scene = protected(NO_TIMEOUTS).await;
        let (mut client, mut server) = scene.world.session().await;
        client.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 0);
        for from in [0, 1] {
            scene.crash(from).await;
            server.write_all(b"answer").await.unwrap();
        }
        // Both have ended by then, and the last bytes are on their way to one that does not read.
        fill(&server).await;
        server.shutdown().await.unwrap();
        scene.crash(0).await;
        scene.crash(1).await;
        let (bytes, end) = read_out(&mut client).await;
        assert!(bytes.starts_with(b"answeranswer") && bytes.len() > 12, "{}", bytes.len());
        end.unwrap();
        scene.world.is_empty_with(&[(Reason::ClientClosed, 1)]).await;
        assert_eq!(scene.keeper.holds(), 0);
    });
}

#[test]
fn a_reset_that_the_dead_process_was_told_of_is_a_reset_afterwards() {
    on_a_data_thread(async {
        let scene = protected(NO_TIMEOUTS).await;
        let (mut client, server) = scene.world.session().await;
        fill(&server).await;
        reset(server);
        tokio::time::sleep(Duration::from_millis(50)).await;
        for from in [0, 1, 0] {
            scene.crash(from).await;
        }
        let (bytes, end) = read_out(&mut client).await;
        assert!(!bytes.is_empty() && is_reset(&end), "{} bytes, then {end:?}", bytes.len());
        scene.world.is_empty_with(&[(Reason::BackendReset, 1)]).await;
    });
}

#[test]
fn without_the_keeper_a_session_is_served_and_says_why_it_would_not_survive() {
    on_a_data_thread(async {
        let scene = protected(NO_TIMEOUTS).await;
        let serves = async |client: &mut TcpStream, server: &mut TcpStream| {
            client.write_all(b"hello").await.unwrap();
            server.read_exact(&mut [0; 5]).await.unwrap();
        };
        let table = &scene.world.owners[0].table;
        // Away, and then there: those that came meanwhile are deposited.
        table.deposit_with(THREAD, None);
        let (mut client, mut server) = scene.world.session().await;
        assert_eq!(scene.protections(), [Some(Protection::No(Unprotected::KeeperAway))]);
        serves(&mut client, &mut server).await;
        let keeper = Keeper::start();
        custody::of_thread().await_room();
        tokio::select! {
            () = table.keep_up() => {}
            () = until(|| scene.protections() == [Some(Protection::Deposited)]) => {}
        }
        assert_eq!(keeper.holds(), 1);
        serves(&mut client, &mut server).await;
        // Full: told later, and the session goes on as any other.
        keeper.is_full.set(true);
        let (mut second, mut its_server) = scene.world.session().await;
        keeper.hear();
        let id = handoff::ledger::sessions(scene.world.ledger.segments()).iter().map(|it| it.id).max().unwrap();
        table.turn_away(id);
        let full = Some(Protection::No(Unprotected::KeeperFull));
        assert_eq!(scene.protections(), [Some(Protection::Deposited), full]);
        serves(&mut second, &mut its_server).await;
        // The next one does not even ask.
        let (mut third, mut its_server_too) = scene.world.session().await;
        serves(&mut third, &mut its_server_too).await;
        assert_eq!((scene.protections()[2], keeper.holds()), (full, 1));
        // No pipe is to be had.
        custody::of_thread().turn_to(THREAD, None);
        allow_pipes(0);
        let (mut fourth, mut its_server_as_well) = scene.world.session().await;
        serves(&mut fourth, &mut its_server_as_well).await;
        assert_eq!(scene.protections()[3], Some(Protection::No(Unprotected::NoPipe)));
        drop((client, server, second, its_server, third, its_server_too, fourth, its_server_as_well));
        until(|| scene.world.owners.iter().all(|owner| owner.census.live() == 0)).await;
    });
}

#[test]
fn the_longest_terms_of_a_configuration_fit_into_a_deposit() {
    let most = Duration::from_millis(30 * 86_400_000 - 1);
    let keepalive = crate::config::Keepalive { idle: most, interval: most, count: u32::MAX };
    let terms = KeptTerms {
        timeouts: Timeouts { idle: Some(most), half_close: Some(most), max_lifetime: Some(most) },
        tcp: TcpSettings { keepalive: Some(keepalive), user_timeout: Some(most) },
    };
    let text = terms.write().expect("short enough");
    assert!(text.matches('"').count() * 7 <= vault::TERMS, "as many quotes as there is room for");
    assert_eq!(KeptTerms::read(&text), Some(terms));
    assert_eq!(KeptTerms::read("{}"), None);
}

#[test]
fn what_another_worker_has_deposited_is_deposited_again() {
    on_a_data_thread(async {
        let scene = protected(NO_TIMEOUTS).await;
        scene.keeper.is_full.set(true);
        let (mut client, mut server) = scene.world.session().await;
        // Refused; but the word comes when the session has gone.
        scene.keeper.hear();
        let id = handoff::ledger::sessions(scene.world.ledger.segments())[0].id;
        scene.keeper.is_full.set(false);
        scene.world.transfer(0, false).await;
        scene.world.owners[0].table.turn_away(id);
        assert_eq!((scene.protections(), scene.keeper.holds()), (vec![Some(Protection::Deposited)], 1));
        // Back again, and refused for good: who has it hears of it.
        scene.keeper.is_full.set(true);
        scene.keeper.held.borrow_mut().clear();
        scene.world.transfer(1, false).await;
        assert_eq!(scene.keeper.holds(), 0);
        scene.world.owners[0].table.turn_away(id);
        assert_eq!(scene.protections(), [Some(Protection::No(Unprotected::KeeperFull))]);
        client.write_all(b"on").await.unwrap();
        server.read_exact(&mut [0; 2]).await.unwrap();
        drop((client, server));
        scene.world.is_empty_with(&[(Reason::ClientClosed, 1)]).await;
    });
}
