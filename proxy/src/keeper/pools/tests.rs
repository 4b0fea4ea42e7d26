//! What the file says against what the operator says.

use std::path::Path;

use admin::command::{BackendChange, FailureKind, NewBackend};

use super::*;
use crate::config;

fn config(pool: &str) -> Config {
    let text = format!(
        "[runtime]\nstate_dir = \"/tmp/proxyd-pools-test\"\n\
         [listeners.web]\nbind = \"127.0.0.1:8080\"\npool = \"blue\"\n\
         [pools.blue]\n{pool}\n[pools.green]\nbackends = [\"127.0.0.9:1\"]\n"
    );
    config::parse(Path::new("test.toml"), text.as_bytes()).expect("a valid configuration").config
}

fn two() -> Config {
    config(r#"backends = [{ name = "a", address = "127.0.0.1:1" }, { name = "b", address = "127.0.0.1:2" }]"#)
}

fn backend(address: &str) -> NewBackend {
    NewBackend { name: None, address: address.into(), weight: None }
}

fn pool<'a>(pools: &'a Pools, name: &str) -> &'a PlannedPool {
    pools.all().find(|pool| pool.name == name).expect("the pool is there")
}

fn names(pools: &Pools, name: &str) -> Vec<String> {
    pool(pools, name).backends.iter().map(|backend| backend.name.clone()).collect()
}

#[test]
fn every_change_raises_the_version_and_a_change_of_nothing_does_not() {
    let mut pools = Pools::from_config(&two());
    assert_eq!(pools.add("blue", &backend("127.0.0.1:3"), Some(1)).unwrap().version, 2);
    assert_eq!(pools.backend("blue", "a", BackendChange::Drain, None).unwrap().version, 3);
    let again = pools.backend("blue", "a", BackendChange::Drain, None).unwrap();
    assert_eq!((again.version, again.changes.len()), (3, 0));
}

#[test]
fn a8_a_stale_version_or_an_empty_or_invalid_pool_changes_nothing() {
    let before = Pools::from_config(&two());
    let mut pools = before.clone();
    let stale = pools.swap("web", "green", Some(7)).unwrap_err();
    assert_eq!(stale.kind, FailureKind::Conflict);
    assert!(stale.message.contains("version 1, not 7"), "{stale}");
    assert!(pools.swap("web", "grey", None).unwrap_err().message.contains("blue, green"));
    assert!(pools.swap("wab", "green", None).unwrap_err().message.contains("web"));
    assert!(pools.set("blue", &[], false, None).is_err());
    assert!(pools.set("blue", &[backend("localhost:1")], false, None).is_err());
    assert!(pools.set("blue", &[backend("127.0.0.1:1"), backend("127.0.0.1:1")], false, None).is_err());
    assert!(pools.add("blue", &backend("127.0.0.1:0"), None).is_err());
    assert!(pools.add("blue", &backend("127.0.0.1:2"), None).is_err());
    assert!(pools.backend("blue", "a", BackendChange::Weight(0), None).is_err());
    assert!(pools.backend("blue", "a", BackendChange::Weight(257), None).is_err());
    assert!(pools.remove("green", "127.0.0.9:1", None).unwrap_err().message.contains("cannot be empty"));
    assert_eq!(pools, before);
}

#[test]
fn a_new_file_wins_where_it_changed_and_the_operator_elsewhere() {
    let old = two();
    let mut pools = Pools::from_config(&old);
    pools.swap("web", "green", None).unwrap();
    pools.add("green", &backend("127.0.0.9:2"), None).unwrap();
    pools.backend("blue", "a", BackendChange::Disable, None).unwrap();

    let (same, notes) = pools.merged(&old, &old);
    assert_eq!(same, pools, "a file that has not changed changes nothing");
    assert!(notes.is_empty());

    let new =
        config(r#"backends = [{ name = "a", address = "127.0.0.1:1" }, { name = "c", address = "127.0.0.1:3" }]"#);
    let (merged, _) = pools.merged(&old, &new);
    assert_eq!(names(&merged, "blue"), ["a", "c"]);
    assert_eq!(pool(&merged, "blue").backends[0].admin, BackendAdmin::Disabled, "what was said of a stays with it");
    assert!(pool(&merged, "blue").version > pool(&pools, "blue").version);
    assert_eq!(names(&merged, "green"), ["127.0.0.9:1", "127.0.0.9:2"]);
    assert_eq!(merged.route("web"), Some("green"));
    assert_eq!(pools.retired(&merged), [Retired { pool: "blue".into(), backend: "b".into() }]);
}

#[test]
fn a_listener_swapped_to_a_pool_that_the_new_file_drops_goes_where_the_file_says() {
    let old = two();
    let mut pools = Pools::from_config(&old);
    pools.swap("web", "green", None).unwrap();
    let mut new = two();
    new.pools.remove("green");
    let (merged, notes) = pools.merged(&old, &new);
    assert_eq!(merged.route("web"), Some("blue"));
    assert_eq!(notes, ["listener web: pool blue of the file replaces green"]);
}

#[test]
fn k6_a_loop_made_at_run_time_is_found() {
    let config = two();
    let mut pools = Pools::from_config(&config);
    assert_eq!(pools.find_loop(&config), None);
    pools.add("blue", &backend("127.0.0.1:8080"), None).unwrap();
    assert!(pools.find_loop(&config).unwrap().contains("listener `web` sends to itself"));
    pools.swap("web", "green", None).unwrap();
    assert_eq!(pools.find_loop(&config), None, "nobody goes to that pool any more");
}

#[test]
fn a_pool_made_at_run_time_outlives_a_reload() {
    let old = two();
    let mut pools = Pools::from_config(&old);
    assert!(pools.set("red", &[backend("127.0.0.1:7")], false, None).is_err());
    pools.set("red", &[backend("127.0.0.1:7")], true, None).unwrap();
    pools.swap("web", "red", Some(1)).unwrap();
    let (merged, _) = pools.merged(&old, &old);
    assert_eq!(merged.route("web"), Some("red"));
}
