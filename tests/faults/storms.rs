//! Upgrade after upgrade. Long, with `PROXYD_LONG=1`: a thousand back to back, then one each 100 ms for five minutes.

use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Census, Twins, twin_of, until};
use crate::row::{DEADLINE, Row};

/// KiB that the keeper may grow by in the whole storm: what one upgrade kept would be many times that.
const GROWTH: u64 = 2 * 1024;

struct Storm {
    /// Until allocator, caches and the events that are kept have what they will ever need: each upgrade leaves some eight
    /// events, of which the last 1,024 are kept.
    warm_up: u32,
    upgrades: u32,
    /// Between two binaries, with a new keeper each.
    turns: u32,
    paced: Duration,
}

fn storm() -> Storm {
    match std::env::var("PROXYD_LONG").as_deref() {
        Ok("1") => Storm { warm_up: 150, upgrades: 1_000, turns: 200, paced: Duration::from_secs(300) },
        _ => Storm { warm_up: 5, upgrades: 30, turns: 20, paced: Duration::from_secs(2) },
    }
}

/// Not waiting for the old one to go: several drain at once.
fn upgrade(row: &Row) {
    let report = row.proxy.ctl_json(&["upgrade"]);
    assert_eq!(report["result"], "committed", "{report}");
}

fn census(row: &Row) -> Census {
    row.cleaned("the storm");
    Census::of(row.proxy.keeper_pid()).unwrap()
}

#[test]
fn f34_upgrade_storms() {
    let row = Row::start("F34");
    let storm = storm();
    (0..storm.warm_up).for_each(|_| upgrade(&row));
    let before = census(&row);
    (0..storm.upgrades).for_each(|_| upgrade(&row));
    row.serves();
    let (begun, mut paced) = (Instant::now(), 0_u32);
    while begun.elapsed() < storm.paced {
        upgrade(&row);
        paced += 1;
        thread::park_timeout(Duration::from_millis(100));
    }
    row.serves();
    let after = census(&row);
    println!("F34: {} + {paced} upgrades, keeper {:?} -> {:?}", storm.upgrades, before.memory, after.memory);
    assert!(after.memory.private <= before.memory.private + GROWTH, "{:?} after {:?}", after.memory, before.memory);
    until("no thread is left over", DEADLINE, || Census::of(row.proxy.keeper_pid()).unwrap().threads <= before.threads);
    row.ends_well();
}

/// To and fro between two binaries: the keeper becomes a new one each time.
#[test]
fn f34_a_storm_of_keepers() {
    let (mut row, twins) = (Row::start("F34"), Twins::new());
    row.holds_images(2);
    let turn = |name| {
        let report = row.proxy.ctl_json(&["upgrade", "--binary", twins.path(name).to_str().unwrap()]);
        assert_eq!((&report["result"], &report["keeper"]), (&"committed".into(), &"upgraded".into()), "{report}");
        assert!(name.starts_with(twin_of(row.proxy.keeper_pid())));
    };
    let storm = storm();
    ["a", "b"].iter().cycle().take(storm.warm_up as usize).for_each(|name| turn(name));
    let before = census(&row);
    // Another one than before: an even warm-up ends with a `b`, an odd one with an `a`.
    let next = if storm.warm_up.is_multiple_of(2) { ["a", "b"] } else { ["b", "a"] };
    next.iter().cycle().take(storm.turns as usize).for_each(|name| turn(name));
    row.serves();
    let after = census(&row);
    println!("F34: {} keepers, {:?} -> {:?}", storm.turns, before.memory, after.memory);
    assert!(after.memory.private <= before.memory.private + GROWTH, "{:?} after {:?}", after.memory, before.memory);
    row.ends_well();
}
