//! Unknown keys, keys of later versions, types, defaults.

use std::time::Duration;

use super::super::{
    Bind, ForcedClose, Keepalive, LogFormat, LogLevel, OnKeeperDeath, Probe, SessionsOnUpgrade, TcpSettings, Timeouts,
};
use super::{REST, good, listener, mistakes, pool, refused, with};

#[test]
fn k2_an_unknown_key_gets_a_suggestion() {
    refused(&with("admin", "lisen = \"off\""), "2:1", &["unknown key `lisen` in `admin`; did you mean `listen`?"]);
    refused(&with("runtime", "thread = 1"), "2:1", &["did you mean `threads`?"]);
    refused(&listener("bind = \"127.0.0.1:80\"\nidle-timeout = \"5s\""), "3:1", &["did you mean `idle_timeout`?"]);
    refused(
        &format!("[listener.x]\n{REST}"),
        "1:2",
        &["unknown key `listener` in the file; did you mean `listeners`?"],
    );
    refused(&with("shutdown", "zzz = 1"), "2:1", &["unknown key `zzz` in `shutdown`", "its keys are delay"]);
    let nested = "bind = \"127.0.0.1:80\"\nkeepalive = { idel = \"5s\" }";
    refused(&listener(nested), "3:15", &["unknown key `idel` in `listeners.web.keepalive`; did you mean `idle`?"]);
}

#[test]
fn k2_keys_of_later_versions_are_refused_by_name() {
    let tables = [("runtime", &["io", "access_log"][..])];
    for (table, keys) in tables {
        for key in keys {
            let told = format!("`{table}.{key}` is not available in this version");
            refused(&with(table, &format!("{key} = \"10s\"")), "2:1", &[&told]);
        }
    }
    let of_listener = [
        "server_first",
        "preset",
        "max_sessions_per_client",
        "accept_rate",
        "allow",
        "deny",
        "proxy_protocol",
        "peek_timeout",
        "routes",
        "on_no_match",
        "transparent",
        "fast_open",
        "mptcp",
        "priority",
        "bandwidth",
    ];
    for key in of_listener {
        let text = listener(&format!("bind = \"127.0.0.1:80\"\n{key} = 1"));
        refused(&text, "3:1", &[&format!("`listeners.web.{key}` is not available in this version")]);
    }
    let of_pool = ["send_proxy_protocol", "queue", "slow_start", "on_down", "on_removed", "health", "eject"];
    for key in of_pool {
        let text = pool(&format!("backends = [\"10.0.0.1:80\"]\n{key} = {{ x = 1 }}"));
        refused(&text, "3:1", &[&format!("`pools.app.{key}` is not available in this version")]);
    }
    for key in ["max_sessions", "tier"] {
        let text = pool(&format!("backends = [{{ address = \"10.0.0.1:80\", {key} = 1 }}]"));
        refused(&text, "2:40", &[&format!("`pools.app.backends.{key}` is not available in this version")]);
    }
    refused(&with("overload", "grace = \"1s\""), "1:2", &["`overload` is not available in this version"]);
}

#[test]
fn k2_values_of_later_versions_are_refused_by_name() {
    for balance in ["least_sessions", "two_choices", "random", "source_hash", "maglev"] {
        let text = pool(&format!("backends = [\"10.0.0.1:80\"]\nbalance = \"{balance}\""));
        refused(&text, "3:11", &[&format!("= \"{balance}\" is not available in this version")]);
    }
}

#[test]
fn k2_a_wrong_type_names_what_is_expected() {
    let table = [
        (with("runtime", "threads = \"two\""), "2:11", "is a string", "a whole number from 1 to 256"),
        (with("runtime", "threads = 1.5"), "2:11", "is a float", "a whole number"),
        (with("runtime", "log = 3"), "2:7", "is an integer", "one of \"error\", \"warn\""),
        (with("admin", "expose = \"yes\""), "2:10", "is a string", "true or false"),
        (with("admin", "listen = true"), "2:10", "is a boolean", "an IP address and a port"),
        (with("drain", "timeout = [1]"), "2:11", "is an array", "or \"off\""),
        (with("shutdown", "delay = 1979-05-27"), "2:9", "is a datetime", "a whole number with a unit"),
        (format!("runtime = 3\n{REST}"), "1:11", "`runtime` is an integer", "a table"),
        (format!("{REST}[listeners]\nx = 1\n"), "7:5", "`listeners.x` is an integer", "`bind` and `pool`"),
        (format!("[[upgrade]]\nsessions = \"drain\"\n{REST}"), "1:1", "`upgrade` is an array", "a table"),
        (listener("bind = 80"), "2:8", "is an integer", "\"unix:/PATH\""),
        (listener("bind = [\"127.0.0.1:80\", 81]"), "2:25", "is an integer", "\"IP:PORT\""),
        (pool("backends = \"10.0.0.1:80\""), "2:12", "is a string", "a list of addresses"),
        (pool("backends = [[]]"), "2:13", "is an array", "an IP address and a port"),
    ];
    for (text, position, what, expected) in table {
        refused(&text, position, &[what, expected]);
    }
}

#[test]
fn k2_words_that_are_not_known_name_those_that_are() {
    refused(&with("runtime", "log = \"inof\""), "2:7", &["does not know \"inof\"", "did you mean \"info\"?"]);
    refused(&with("drain", "close = \"abort\""), "2:9", &["one of \"reset\", \"fin\""]);
    refused(&with("upgrade", "sessions = \"keep\""), "2:12", &["one of \"move\", \"drain\""]);
}

#[test]
fn all_mistakes_of_a_file_are_told_at_once_in_their_order() {
    let text =
        "[runtime]\nthreads = 0\nlgo = 1\n[admin]\nlisten = \"x\"\n[listeners.A]\nbind = \"1.2.3.4\"\n[pools.p]\n";
    let told = mistakes(text);
    let positions: Vec<&str> = told.iter().map(|mistake| mistake.split(' ').next().unwrap()).collect();
    let expected = ["2:11", "3:1", "5:10", "6:1", "6:12", "7:8", "8:1", "8:8"];
    assert_eq!(positions, expected.map(|at| format!("proxyd.toml:{at}:")), "{told:#?}");
}

#[test]
fn defaults_are_those_of_the_contract() {
    let config = good(REST);
    assert_eq!((config.runtime.threads, config.runtime.state_dir.to_str()), (2, Some("/run/proxyd")));
    assert_eq!((config.runtime.log, config.runtime.log_format), (LogLevel::Info, LogFormat::Text));
    assert_eq!(config.runtime.on_keeper_death, OnKeeperDeath::Serve);
    assert_eq!(config.runtime.restart_backoff, Some(Duration::from_secs(2)));
    assert_eq!(config.admin.socket.to_str(), Some("/run/proxyd/admin.sock"));
    assert_eq!((config.admin.listen, config.admin.expose), (Some("127.0.0.1:9900".parse().unwrap()), false));
    let upgrade = config.upgrade;
    assert_eq!((upgrade.probation, upgrade.probe), (Duration::from_secs(10), Probe::Connect));
    assert_eq!((upgrade.sessions, upgrade.max_generations), (SessionsOnUpgrade::Move, 4));
    assert_eq!(upgrade.ready_timeout, Duration::from_secs(30));
    assert_eq!(config.drain.timeout, Some(Duration::from_secs(30)));
    assert_eq!((config.drain.spread, config.drain.close), (Duration::from_secs(5), ForcedClose::Reset));
    assert_eq!(config.shutdown.delay, Duration::ZERO);
    let listener = &config.listeners["web"];
    assert_eq!((listener.backlog, listener.max_sessions, listener.survive_crash), (4096, None, false));
    let (minute, quarter) = (Duration::from_secs(60), Duration::from_secs(15));
    let keepalive = Some(Keepalive { idle: minute, interval: quarter, count: 4 });
    assert_eq!(listener.tcp, TcpSettings { keepalive, user_timeout: Some(minute) });
    assert_eq!(listener.timeouts, Timeouts { idle: None, half_close: Some(minute), max_lifetime: None });
    let pool = &config.pools["app"];
    assert_eq!((pool.connect_timeout, pool.connect_retries, pool.source), (Duration::from_secs(5), 2, None));
    let backend = &pool.backends[0];
    assert_eq!((backend.name.as_str(), backend.weight), ("10.0.0.1:80", 1));
}

#[test]
fn every_key_is_read() {
    let config = good(EVERY_KEY);
    assert_eq!((config.runtime.threads, config.runtime.max_sessions), (3, 900));
    assert_eq!(config.runtime.state_dir.to_str(), Some("/own"));
    assert_eq!((config.runtime.log, config.runtime.log_format), (LogLevel::Debug, LogFormat::Json));
    assert_eq!((config.runtime.on_keeper_death, config.runtime.restart_backoff), (OnKeeperDeath::Exit, None));
    assert_eq!(config.admin.socket.to_str(), Some("/own/a.sock"));
    assert_eq!((config.admin.listen, config.admin.expose), (Some("0.0.0.0:9901".parse().unwrap()), true));
    assert_eq!((config.upgrade.probation, config.upgrade.probe), (Duration::from_secs(3), Probe::Off));
    assert_eq!((config.upgrade.ready_timeout, config.upgrade.max_generations), (Duration::from_secs(2), 32));
    assert_eq!(config.upgrade.sessions, SessionsOnUpgrade::Drain);
    assert_eq!(config.drain.timeout, None);
    assert_eq!((config.drain.spread, config.drain.close), (Duration::from_secs(120), ForcedClose::Fin));
    assert_eq!(config.shutdown.delay, Duration::from_millis(500));
    let listener = &config.listeners["web"];
    let ids: Vec<String> = listener.bind.iter().map(Bind::id).collect();
    assert_eq!(ids, ["tcp:[::]:80+v4", "tcp:127.0.0.1:7000", "tcp:127.0.0.1:7001", "unix:/own/web.sock"]);
    let unix = Bind::Unix { path: "/own/web.sock".into(), mode: 0o600, owner: Some(105), group: Some(7) };
    assert_eq!(listener.bind[3], unix);
    assert_eq!((listener.backlog, listener.max_sessions, listener.survive_crash), (100, Some(50), true));
    let second = Duration::from_secs(1);
    assert_eq!(
        listener.timeouts,
        Timeouts { idle: Some(second), half_close: None, max_lifetime: Some(24 * 3600 * second) }
    );
    let keepalive = Some(Keepalive { idle: 5 * second, interval: second, count: 9 });
    assert_eq!(listener.tcp, TcpSettings { keepalive, user_timeout: None });
    let pool = &config.pools["app"];
    assert_eq!((pool.connect_timeout, pool.connect_retries), (second, 0));
    assert_eq!(pool.source, Some("10.0.0.9".parse().unwrap()));
    let backends: Vec<(&str, u32)> = pool.backends.iter().map(|one| (one.name.as_str(), one.weight)).collect();
    assert_eq!(backends, [("10.0.0.1:80", 1), ("b", 256), ("10.0.0.3:80", 2)]);
}

pub(super) const EVERY_KEY: &str = r#"
[runtime]
threads = 3
max_sessions = 900
state_dir = "/own"
log = "debug"
log_format = "json"
on_keeper_death = "exit"
restart_backoff = "off"
[admin]
socket = "/own//./a.sock"
listen = "0.0.0.0:9901"
expose = true
[upgrade]
sessions = "drain"
ready_timeout = "2s"
probation = "3s"
probe = "off"
max_generations = 32
[drain]
timeout = "off"
spread = "2m"
close = "fin"
[shutdown]
delay = "500ms"
[listeners.web]
bind = ["[::]:80", "127.0.0.1:7000-7001", "unix:/own/web.sock"]
pool = "app"
v6only = false
mode = "0600"
owner = "postgres"
group = 7
backlog = 100
max_sessions = 50
survive_crash = true
idle_timeout = "1s"
half_close_timeout = "off"
max_lifetime = "1d"
keepalive = { idle = "5s", interval = "1s", count = 9 }
user_timeout = "off"
[pools.app]
balance = "round_robin"
backends = [
    "10.0.0.1:80",
    { name = "b", address = "10.0.0.2:80", weight = 256 },
    { address = "10.0.0.3:80", weight = 2 },
]
connect_timeout = "1s"
connect_retries = 0
source = "10.0.0.9"
"#;
