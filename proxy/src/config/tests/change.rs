//! The difference of two configurations.

use super::super::plan::{BackendAdmin, PlannedPool};
use super::super::{Change, PoolChange};
use super::keys::EVERY_KEY;
use super::{REST, good};

/// From [`EVERY_KEY`] to the same with `old` replaced by `new`.
#[track_caller]
fn changed(old: &str, new: &str) -> Change {
    let text = EVERY_KEY.replacen(old, new, 1);
    assert_ne!(text, EVERY_KEY);
    Change::between(&good(EVERY_KEY), &good(&text))
}

#[test]
fn sockets_are_added_removed_and_kept_by_id() {
    let change = changed("127.0.0.1:7000-7001", "127.0.0.1:7001-7002");
    let added: Vec<String> = change.added.iter().map(|(listener, bind)| format!("{listener} {bind}")).collect();
    let removed: Vec<String> = change.removed.iter().map(|(listener, bind)| format!("{listener} {bind}")).collect();
    assert_eq!((added, removed), (vec!["web 127.0.0.1:7002".to_owned()], vec!["web 127.0.0.1:7000".to_owned()]));
    let kept: Vec<String> = change.kept.iter().map(|kept| kept.bind.id()).collect();
    assert_eq!(kept, ["tcp:127.0.0.1:7001", "tcp:[::]:80+v4", "unix:/own/web.sock"]);
    assert_eq!(change.lines(), ["listener web: added 127.0.0.1:7002", "listener web: removed 127.0.0.1:7000"]);
    assert!(change.refusal().is_none() && change.listeners.is_empty());
}

#[test]
fn v6only_makes_another_socket() {
    let change = changed("v6only = false", "v6only = true");
    assert_eq!(change.lines(), ["listener web: added [::]:80", "listener web: removed [::]:80 (with IPv4)"]);
}

#[test]
fn permissions_of_a_kept_socket_are_set_again() {
    for (old, new) in [("mode = \"0600\"", "mode = \"0660\""), ("\"postgres\"", "0"), ("group = 7", "group = 8")] {
        let change = changed(old, new);
        assert_eq!(change.lines(), ["listener web: permissions of unix:/own/web.sock changed"]);
        let again: Vec<String> =
            change.kept.iter().filter(|kept| kept.permissions).map(|kept| kept.bind.to_string()).collect();
        assert_eq!(again, ["unix:/own/web.sock"]);
        assert!(change.added.is_empty() && change.removed.is_empty());
    }
}

#[test]
fn a_renamed_listener_keeps_its_sockets() {
    let change = Change::between(&good(REST), &good(&REST.replace("web", "http")));
    assert_eq!(change.lines(), ["listener http: takes 127.0.0.1:80 from listener web"]);
    let kept = &change.kept[0];
    assert_eq!((kept.was.as_str(), kept.listener.as_str(), kept.permissions), ("web", "http", false));
}

#[test]
fn settings_of_listeners_are_told_with_both_values() {
    let table = [
        ("backlog = 100", "backlog = 200", "backlog 100 -> 200"),
        ("max_sessions = 50", "", "max_sessions 50 -> off"),
        ("survive_crash = true", "", "survive_crash true -> false"),
        ("idle_timeout = \"1s\"", "idle_timeout = \"90s\"", "idle_timeout 1s -> 90s"),
        ("half_close_timeout = \"off\"", "", "half_close_timeout off -> 1m"),
        ("max_lifetime = \"1d\"", "max_lifetime = \"off\"", "max_lifetime 1d -> off"),
        ("user_timeout = \"off\"", "user_timeout = \"5ms\"", "user_timeout off -> 5ms"),
        ("count = 9", "count = 8", "keepalive 5s/1s/9 -> 5s/1s/8"),
    ];
    for (old, new, line) in table {
        let change = changed(old, new);
        assert_eq!(change.lines(), [format!("listener web: {line}")]);
        assert_eq!(change.listeners, ["web"]);
        assert!(change.refusal().is_none());
    }
}

#[test]
fn backends_are_compared_by_name() {
    let change = changed(
        "{ name = \"b\", address = \"10.0.0.2:80\", weight = 256 }",
        "{ name = \"c\", address = \"10.0.0.2:80\", weight = 256 }",
    );
    assert_eq!(change.lines(), ["pool app: backend c added", "pool app: backend b removed"]);
    let change = changed("weight = 256", "weight = 5");
    assert_eq!(change.lines(), ["pool app: backend b is now 10.0.0.2:80 weight 5"]);
    let PoolChange::Changed { added, removed, changed, .. } = &change.pools[0] else { panic!("{change:?}") };
    assert_eq!((added.len(), removed.len(), changed[0].weight), (0, 0, 5));
}

#[test]
fn pools_come_go_and_change() {
    let spare = "[pools.spare]\nbackends = [\"10.0.0.2:80\"]\n";
    let (one, two) = (good(REST), good(&format!("{REST}{spare}")));
    assert_eq!(Change::between(&one, &two).pools, [PoolChange::Added("spare".to_owned())]);
    let back = Change::between(&two, &one);
    assert_eq!(back.pools, [PoolChange::Removed("spare".to_owned())]);
    assert_eq!(back.lines(), ["pool spare: removed"]);
    let settings = [
        ("connect_timeout = \"1s\"", "connect_timeout = \"2s\"", "connect_timeout"),
        ("connect_retries = 0", "connect_retries = 1", "connect_retries"),
        ("source = \"10.0.0.9\"", "", "source"),
    ];
    for (old, new, key) in settings {
        assert_eq!(changed(old, new).lines(), [format!("pool app: {key} changed")]);
    }
    let swapped = REST.replace("\"10.0.0.1:80\"", "\"10.0.0.1:80\", \"10.0.0.2:80\"");
    let turned = REST.replace("\"10.0.0.1:80\"", "\"10.0.0.2:80\", \"10.0.0.1:80\"");
    let change = Change::between(&good(&swapped), &good(&turned));
    assert_eq!(change.lines(), ["pool app: order of backends changed"]);
}

#[test]
fn a_listener_with_another_pool_says_so() {
    let text = format!("{REST}[pools.spare]\nbackends = [\"10.0.0.2:80\"]\n");
    let swapped = text.replacen("pool = \"app\"", "pool = \"spare\"", 1);
    assert_eq!(Change::between(&good(&text), &good(&swapped)).lines(), ["listener web: pool app -> spare"]);
}

#[test]
fn k12_keys_that_a_reload_cannot_change_are_named() {
    let upgrades = [
        ("threads = 3", "threads = 4", "runtime.threads"),
        ("max_sessions = 900", "max_sessions = 901", "runtime.max_sessions"),
        ("on_keeper_death = \"exit\"", "", "runtime.on_keeper_death"),
    ];
    for (old, new, key) in upgrades {
        let change = changed(old, new);
        assert_eq!((change.needs_upgrade(), change.needs_restart()), (&[key][..], &[][..]));
        let told = format!("`{key}` cannot be changed by a reload: use `proxyctl upgrade`");
        assert_eq!(change.refusal(), Some(told));
        assert_eq!(change.lines(), [format!("{key} changed (needs an upgrade)")]);
    }
    let restarts = [
        ("state_dir = \"/own\"", "state_dir = \"/own/state\"", "runtime.state_dir"),
        ("log = \"debug\"", "log = \"info\"", "runtime.log"),
        ("log_format = \"json\"", "", "runtime.log_format"),
        ("socket = \"/own//./a.sock\"", "socket = \"/own/b.sock\"", "admin.socket"),
        ("listen = \"0.0.0.0:9901\"", "listen = \"off\"", "admin.listen"),
    ];
    for (old, new, key) in restarts {
        let change = changed(old, new);
        assert_eq!((change.needs_upgrade(), change.needs_restart()), (&[][..], &[key][..]));
        assert!(change.refusal().unwrap().contains(&format!("`{key}` cannot be changed while proxyd runs")));
    }
}

#[test]
fn the_other_keys_hold_at_once() {
    let table = [
        ("restart_backoff = \"off\"", "restart_backoff = \"1s\"", "runtime.restart_backoff"),
        ("ready_timeout = \"2s\"", "ready_timeout = \"3s\"", "upgrade.ready_timeout"),
        ("probation = \"3s\"", "probation = \"0s\"", "upgrade.probation"),
        ("probe = \"off\"", "probe = \"connect\"", "upgrade.probe"),
        ("max_generations = 32", "max_generations = 31", "upgrade.max_generations"),
        ("timeout = \"off\"\nspread", "timeout = \"5m\"\nspread", "drain.timeout"),
        ("spread = \"2m\"", "spread = \"1m\"", "drain.spread"),
        ("close = \"fin\"", "close = \"reset\"", "drain.close"),
        ("delay = \"500ms\"", "delay = \"0s\"", "shutdown.delay"),
    ];
    for (old, new, key) in table {
        let change = changed(old, new);
        assert_eq!(change.hot, [key]);
        assert_eq!(change.lines(), [format!("{key} changed")]);
        assert!(change.refusal().is_none());
    }
}

#[test]
fn a_plan_holds_what_concerns_a_worker() {
    let config = good(EVERY_KEY);
    let mut pool = PlannedPool::from_config("app", &config.pools["app"], 7);
    assert!(pool.backends.iter().all(|backend| backend.admin == BackendAdmin::Enabled));
    assert_eq!((pool.version, pool.backends[1].name.as_str(), pool.backends[1].weight), (7, "b", 256));
    pool.backends[0].admin = BackendAdmin::Draining;
    let plan = config.plan(4, std::slice::from_ref(&pool));
    assert_eq!((plan.config_version, plan.threads, plan.max_sessions), (4, 3, 900));
    assert_eq!((plan.drain, plan.pools), (config.drain, vec![pool]));
    let [listener] = &plan.listeners[..] else { panic!("{:?}", plan.listeners) };
    assert_eq!((listener.name.as_str(), listener.pool.as_str(), listener.max_sessions), ("web", "app", Some(50)));
    let sockets = ["tcp:[::]:80+v4", "tcp:127.0.0.1:7000", "tcp:127.0.0.1:7001", "unix:/own/web.sock"];
    assert_eq!(listener.sockets, sockets);
    assert_eq!((listener.tcp, listener.timeouts), (config.listeners["web"].tcp, config.listeners["web"].timeouts));
}
