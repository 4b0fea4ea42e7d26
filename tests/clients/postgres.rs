//! PostgreSQL: pgbench, which gives up a client whose connection breaks.

use std::process::{Output, Stdio};
use std::thread;

use nix::sys::signal::Signal;

use crate::harness::child::send;
use crate::harness::{peer, service, until};
use crate::journey::{DEADLINE, Journey, Trial};

const CLIENTS: u64 = 8;

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn the_books_of_pgbench_balance_after_upgrades() {
    books(Trial::Upgrades);
}

#[test]
fn the_books_of_pgbench_balance_after_kills() {
    books(Trial::Kills);
}

fn books(trial: Trial) {
    let (Some(postgres), Some(_)) = (service::Postgres::start(), peer("pgbench")) else { return };
    let own = postgres.address();
    let ask = |sql: &str| text(&postgres.client("psql", own, &["-qAtc", sql]).unwrap().output().unwrap());
    text(&postgres.client("pgbench", own, &["-i", "-s", "1", "-q"]).unwrap().output().unwrap());
    let journey = Journey::start(own, CLIENTS, trial);
    let words = ["-c", &CLIENTS.to_string(), "-j", "1", "-T", "3600", "-n", "--random-seed=7"];
    let mut bench = postgres.client("pgbench", journey.address(), &words).unwrap();
    let bench = bench.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = bench.id();
    let made = || ask("select count(*) from pgbench_history").parse::<u64>().unwrap();
    let output = thread::scope(|scope| {
        let waiting = scope.spawn(|| bench.wait_with_output().unwrap());
        let end = End(pid);
        journey.go(|| {
            let goal = made() + 40;
            until("transactions are made", DEADLINE, || {
                assert!(!waiting.is_finished(), "pgbench has ended");
                made() >= goal
            });
        });
        drop(end);
        waiting.join().unwrap()
    });
    let said = text(&output);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!errors.contains("abort") && !errors.contains("error:"), "{errors}");
    let columns =
        ["pgbench_accounts.abalance", "pgbench_tellers.tbalance", "pgbench_branches.bbalance", "pgbench_history.delta"];
    let sums = columns.map(|column| {
        let (table, column) = column.split_once('.').unwrap();
        ask(&format!("select coalesce(sum({column}), 0) from {table}"))
    });
    assert!(sums.iter().all(|sum| *sum == sums[0]), "the books do not balance: {sums:?}");
    let processed = "number of transactions actually processed: ";
    let processed = said.lines().find_map(|line| line.strip_prefix(processed)).unwrap();
    assert_eq!(processed.split('/').next().unwrap().trim(), made().to_string());
}

/// Ends pgbench in order, as its own clock would (`-T` is an alarm), also while a failed test unwinds.
struct End(u32);

impl Drop for End {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _gone = send(self.0, Signal::SIGALRM);
    }
}
