//! Pools changed at run time: what each verb does to new sessions and to those that exist, versions and conflicts, and what
//! outlives a worker, an upgrade and a reload.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::process::Output;
use std::time::Duration;

use harness::child::send;
use harness::{Client, Conf, End, Port, Proxy, Tagged, until};
use nix::sys::signal::Signal;
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(20);

/// Three tagged backends; `a` and `b` are in the pool, `c` is not.
struct Scene {
    a: Tagged,
    b: Tagged,
    c: Tagged,
    bind: Port,
    proxy: Proxy,
}

impl Scene {
    fn start(more: impl FnOnce(Conf) -> Conf) -> Self {
        let [a, b, c] = ["a", "b", "c"].map(Tagged::start);
        let bind = Port::reserve();
        let proxy = Proxy::start(&more(Self::conf(&bind, &a, &b)));
        Self { a, b, c, bind, proxy }
    }

    fn conf(bind: &Port, a: &Tagged, b: &Tagged) -> Conf {
        let backends = format!(
            "backends = [{{ name = \"a\", address = \"{}\" }}, {{ name = \"b\", address = \"{}\" }}]",
            a.address(),
            b.address()
        );
        Conf::new().listener("main", &bind.to_string(), "pool").with("pools.pool", &backends)
    }

    /// Who serves so many new connections, and how often.
    fn tags(&self, connections: usize) -> BTreeMap<String, usize> {
        tags(self.bind.address(), connections)
    }

    /// An established session with this backend.
    fn session_with(&self, tag: &str) -> Client {
        (0..100).map(|_| Client::greeted(self.bind.address())).find(|(_, got)| got == tag).unwrap().0
    }

    fn ok(&self, words: &[&str]) -> Value {
        self.proxy.ctl_json(words)
    }

    fn pool(&self, name: &str) -> Option<Value> {
        let status = self.proxy.status();
        status["pools"].as_array().unwrap().iter().find(|pool| pool["name"] == name).cloned()
    }

    fn version(&self) -> u64 {
        self.pool("pool").unwrap()["version"].as_u64().unwrap()
    }
}

fn tags(address: SocketAddr, connections: usize) -> BTreeMap<String, usize> {
    let mut tags = BTreeMap::new();
    for _ in 0..connections {
        *tags.entry(Client::greeted(address).1).or_insert(0) += 1;
    }
    tags
}

fn only(tag: &str, count: usize) -> BTreeMap<String, usize> {
    BTreeMap::from([(tag.to_owned(), count)])
}

/// Refused with this exit code, saying this.
#[track_caller]
fn refused(output: &Output, code: i32, parts: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for part in parts {
        assert!(said.contains(part), "{part:?} is missing in {said}");
    }
}

fn short_drain(conf: Conf) -> Conf {
    conf.with("drain", "timeout = \"300ms\"")
}

#[test]
fn an_added_backend_gets_its_share_of_new_sessions() {
    let scene = Scene::start(|conf| conf);
    assert_eq!(scene.tags(20).into_keys().collect::<Vec<_>>(), ["a", "b"]);
    let version = scene.version();
    let changed = scene.ok(&["pool", "add", "pool", &format!("c={}*2", scene.c.address())]);
    assert_eq!(changed["version"], version + 1, "{changed}");
    let shares = scene.tags(80);
    // Two data threads have a schedule each.
    assert!((38..=42).contains(&shares["c"]) && (18..=22).contains(&shares["a"]), "{shares:?}");
    let pool = scene.pool("pool").unwrap();
    assert_eq!((&pool["backends"][2]["name"], &pool["backends"][2]["weight"]), (&"c".into(), &2.into()), "{pool}");
    assert_eq!(pool["version"], version + 1);
}

#[test]
fn a_removed_backend_gets_no_session_and_those_it_has_drain() {
    let scene = Scene::start(short_drain);
    let (mut on_a, mut on_b) = (scene.session_with("a"), scene.session_with("b"));
    scene.ok(&["pool", "remove", "pool", "b"]);
    assert_eq!(scene.tags(10), only("a", 10));
    assert_eq!(on_b.wait_end(), End::Reset);
    on_a.echo("not meant");
    let closed = |reason| scene.proxy.metrics().count("proxyd_sessions_closed_total", &[("reason", reason)]);
    assert_eq!(closed("backend_removed"), 1);
    assert!(scene.pool("pool").unwrap()["backends"].as_array().unwrap().len() == 1);
}

#[test]
fn a_pool_is_set_as_a_whole_and_made_if_it_is_wished() {
    let scene = Scene::start(short_drain);
    let c = scene.c.address().to_string();
    scene.ok(&["pool", "set", "pool", &format!("c={c}")]);
    assert_eq!(scene.tags(10), only("c", 10));
    refused(&scene.proxy.ctl(&["pool", "set", "fresh", &c]), 1, &["fresh", "pool"]);
    assert_eq!(scene.pool("fresh"), None);
    scene.ok(&["pool", "set", "fresh", &format!("a={}", scene.a.address()), "--create"]);
    assert_eq!(scene.pool("fresh").unwrap()["version"], 1);
    scene.ok(&["pool", "swap", "main", "fresh"]);
    assert_eq!(scene.tags(10), only("a", 10));
}

#[test]
fn a_swap_leaves_the_sessions_that_exist() {
    let scene = Scene::start(|conf| conf.with("drain", "timeout = \"200ms\""));
    let mut before = scene.session_with("a");
    scene.ok(&["pool", "set", "other", &format!("c={}", scene.c.address()), "--create"]);
    let changed = scene.ok(&["pool", "swap", "main", "other"]);
    assert_eq!(changed["changes"][0], "listener main: pool pool -> other", "{changed}");
    assert_eq!(scene.tags(10), only("c", 10));
    assert_eq!(scene.proxy.status()["listeners"][0]["pool"], "other");
    scene.ok(&["pool", "swap", "main", "pool"]);
    before.echo("as before");
    assert_eq!(scene.tags(10).into_keys().collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn a_draining_backend_keeps_its_sessions_and_a_disabled_one_loses_them() {
    let scene = Scene::start(short_drain);
    let (mut on_a, mut on_b) = (scene.session_with("a"), scene.session_with("b"));
    scene.ok(&["backend", "drain", "pool", "a"]);
    assert_eq!(scene.tags(10), only("b", 10));
    assert_eq!(scene.pool("pool").unwrap()["backends"][0]["admin"], "draining");
    scene.ok(&["backend", "enable", "pool", "a"]);
    scene.ok(&["backend", "disable", "pool", "b"]);
    assert_eq!(scene.tags(10), only("a", 10));
    assert_eq!(on_b.wait_end(), End::Reset);
    on_a.echo("drained, not cut");
    scene.ok(&["backend", "enable", "pool", "b"]);
    assert_eq!(scene.tags(20).into_keys().collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn without_an_enabled_backend_a_client_is_reset_and_the_next_is_served_after_enable() {
    let scene = Scene::start(|conf| conf);
    for backend in ["a", "b"] {
        scene.ok(&["backend", "drain", "pool", backend]);
    }
    match Client::try_connect(scene.bind.address()) {
        Ok(mut client) => assert_eq!(client.wait_end(), End::Reset),
        // The reset may be there before `connect` has looked.
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    let closed = |reason| scene.proxy.metrics().count("proxyd_sessions_closed_total", &[("reason", reason)]);
    until("it is counted", DEADLINE, || closed("no_backend") == 1);
    scene.ok(&["backend", "enable", "pool", "b"]);
    assert_eq!(scene.tags(5), only("b", 5));
}

#[test]
fn a_weight_changes_the_share_of_new_sessions() {
    let scene = Scene::start(|conf| conf);
    scene.ok(&["backend", "weight", "pool", "a", "3"]);
    let shares = scene.tags(80);
    assert!((56..=64).contains(&shares["a"]), "{shares:?}");
    refused(&scene.proxy.ctl(&["backend", "weight", "pool", "a", "0"]), 2, &["1..=256"]);
}

#[test]
fn a8_a_stale_version_is_a_conflict_and_changes_nothing() {
    let scene = Scene::start(|conf| conf);
    let version = scene.version();
    let stale = (version + 7).to_string();
    let c = scene.c.address().to_string();
    let verbs: [&[&str]; 5] = [
        &["pool", "swap", "main", "pool"],
        &["pool", "add", "pool", &c],
        &["pool", "remove", "pool", "a"],
        &["pool", "set", "pool", &c],
        &["backend", "disable", "pool", "a"],
    ];
    for verb in verbs {
        let output = scene.proxy.ctl(&[verb, &["--if-version", &stale]].concat());
        refused(&output, 4, &[&format!("version {version}")]);
    }
    assert_eq!(scene.version(), version);
    assert_eq!(scene.tags(10).into_keys().collect::<Vec<_>>(), ["a", "b"]);
    scene.ok(&["pool", "add", "pool", &c, "--if-version", &version.to_string()]);
    refused(&scene.proxy.ctl(&["pool", "remove", "pool", "b", "--if-version", &version.to_string()]), 4, &[]);
    assert_eq!(scene.version(), version + 1);
}

#[test]
fn a8_what_cannot_be_is_refused_and_names_what_there_is() {
    let scene = Scene::start(|conf| conf);
    let version = scene.version();
    let a = scene.a.address().to_string();
    let proxy = &scene.proxy;
    refused(&proxy.ctl(&["pool", "swap", "main", "poole"]), 1, &["poole", "pool"]);
    refused(&proxy.ctl(&["pool", "swap", "mian", "pool"]), 1, &["mian", "main"]);
    refused(&proxy.ctl(&["pool", "remove", "pool", "z"]), 1, &["named z", "a, b"]);
    refused(&proxy.ctl(&["pool", "add", "pool", &a]), 1, &["already has backend a"]);
    refused(&proxy.ctl(&["pool", "add", "pool", "db:80"]), 2, &["ip:port"]);
    refused(&proxy.ctl(&["pool", "set", "pool"]), 2, &[]);
    refused(&proxy.ctl(&["backend", "disable", "pool", "z"]), 1, &["named z", "a, b"]);
    assert_eq!(scene.version(), version);
    scene.ok(&["pool", "remove", "pool", "b"]);
    refused(&proxy.ctl(&["pool", "remove", "pool", "a"]), 1, &["only one", "cannot be empty"]);
    assert_eq!(scene.tags(4), only("a", 4));
}

/// What was changed at run time is still in force.
#[track_caller]
fn still_changed(scene: &Scene, after: &str) {
    let pool = scene.pool("pool").unwrap();
    let admin: Vec<&str> =
        pool["backends"].as_array().unwrap().iter().map(|backend| backend["admin"].as_str().unwrap()).collect();
    assert_eq!(admin, ["draining", "enabled", "enabled"], "after {after}: {pool}");
    assert_eq!(pool["backends"][2]["weight"], 2, "after {after}: {pool}");
    let shares = scene.tags(30);
    assert!(!shares.contains_key("a") && shares["c"] > shares["b"], "after {after}: {shares:?}");
}

#[test]
fn what_was_changed_outlives_a_worker_an_upgrade_and_a_reload_of_the_same_file() {
    let scene = Scene::start(|conf| conf);
    scene.ok(&["pool", "add", "pool", &format!("c={}*2", scene.c.address())]);
    scene.ok(&["backend", "drain", "pool", "a"]);
    still_changed(&scene, "the change");

    let killed = scene.proxy.serving_pid();
    send(killed, Signal::SIGKILL).unwrap();
    until("another worker serves", DEADLINE, || {
        let serving = scene.proxy.serving().and_then(|id| scene.proxy.worker_pid(id));
        serving.is_some_and(|pid| pid != killed)
    });
    still_changed(&scene, "kill -9 of the worker");
    scene.proxy.upgrade();
    still_changed(&scene, "an upgrade");
    scene.ok(&["reload"]);
    still_changed(&scene, "a reload of the same file");
}

#[test]
fn where_the_file_has_changed_the_file_wins_and_the_answer_says_so() {
    let scene = Scene::start(|conf| conf.pool("spare", &[([127, 0, 0, 1], 9).into()]));
    let Scene { a, b, c, bind, proxy } = &scene;
    scene.ok(&["pool", "add", "pool", &format!("c={}", c.address())]);
    scene.ok(&["pool", "set", "other", &format!("a={}", a.address()), "--create"]);
    scene.ok(&["pool", "swap", "main", "other"]);
    // Another pool changes in the file: what was said of this one stays.
    let conf = Scene::conf(bind, a, b);
    proxy.write_config(&conf.clone().pool("spare", &[([127, 0, 0, 1], 10).into()]));
    scene.ok(&["reload"]);
    assert_eq!(scene.tags(4), only("a", 4));
    assert_eq!(scene.pool("pool").unwrap()["backends"].as_array().unwrap().len(), 3);
    // Now this pool changes.
    let second = Port::reserve();
    let conf = conf.with("pools.pool", "connect_retries = 1").listener("second", &second.to_string(), "pool");
    proxy.write_config(&conf);
    let changed = scene.ok(&["reload"]);
    let told = changed["changes"].to_string();
    assert!(told.contains("replace those set at run time"), "{told}");
    assert_eq!(scene.pool("pool").unwrap()["backends"].as_array().unwrap().len(), 2);
    assert_eq!(tags(second.address(), 10).into_keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(scene.tags(4), only("a", 4), "the route of the first listener has not changed in the file");
}
