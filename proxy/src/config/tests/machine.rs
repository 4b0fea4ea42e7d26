//! What the machine allows: descriptors, accept queues, paths, exposure.

use std::path::{Path, PathBuf};

use super::super::{Surroundings, parse_in};
use super::{REST, around, good, listener, refused, warned, with};

fn with_limit(descriptors: u64, text: &str) -> Result<usize, String> {
    let around = Surroundings { descriptors, ..around() };
    let parsed = parse_in(Path::new("proxyd.toml"), text.as_bytes(), &around);
    parsed.map(|parsed| parsed.config.runtime.max_sessions).map_err(|mistakes| mistakes.to_string())
}

#[test]
fn k8_more_sessions_than_descriptors_are_refused_with_both_numbers() {
    let text = with("runtime", "max_sessions = 20_000");
    refused(&text, "2:16", &["needs 40,257 descriptors, limit 20,000", "expected at most 9871"]);
    good(&with("runtime", "max_sessions = 9871"));
    refused(&with("runtime", "max_sessions = 9872"), "2:16", &["needs 20,001 descriptors"]);
}

#[test]
fn k8_without_a_number_the_limit_decides() {
    // (limit - 256 - limit / 8) / 2, the room for sockets being at most 4096.
    assert_eq!(with_limit(20_000, REST), Ok(8622));
    assert_eq!(with_limit(1_048_576, REST), Ok(522_112));
    assert_eq!(with_limit(u64::MAX, REST), Ok(1_000_000));
    // A listener more does not change it, so a reload can add one.
    assert_eq!(with_limit(20_000, &listener("bind = \"127.0.0.1:80-180\"")), Ok(8622));
    // Until the sockets need more than was kept for them.
    assert_eq!(with_limit(20_000, &listener("bind = \"127.0.0.1:80-4079\"")), Ok(7872));
    let told = with_limit(200, REST).unwrap_err();
    assert!(told.contains("needs 259 descriptors, limit 200"), "{told}");
}

#[test]
fn k8_a_session_that_outlives_its_worker_has_six_descriptors() {
    let protected = |more: &str| listener(&format!("bind = \"127.0.0.1:80\"\nsurvive_crash = true\n{more}"));
    // (limit - 256 - limit / 8) / 6.
    assert_eq!(with_limit(20_000, &protected("")), Ok(2874));
    // Those that cannot be of that listener have two.
    assert_eq!(with_limit(20_000, &protected("max_sessions = 1000")), Ok(6622));
    let text = |sessions: u64| format!("[runtime]\nmax_sessions = {sessions}\n{}", protected(""));
    assert_eq!(with_limit(20_000, &text(3290)), Ok(3290));
    let told = with_limit(20_000, &text(3291)).unwrap_err();
    assert!(told.contains("needs 20,003 descriptors, limit 20,000"), "{told}");
}

#[test]
fn k8_a_listener_cannot_have_more_than_all() {
    let text = format!("[runtime]\nmax_sessions = 10\n{}", listener("bind = \"127.0.0.1:80\"\nmax_sessions = 11"));
    warned(&text, "5:16: `listeners.web.max_sessions` is never reached");
}

#[test]
fn a_backlog_that_the_kernel_cuts_is_a_warning() {
    warned(&listener("bind = \"127.0.0.1:80\"\nbacklog = 4097"), "backlog` is cut to 4096");
    assert!(super::parse(&listener("bind = \"127.0.0.1:80\"\nbacklog = 4096")).unwrap().warnings.is_empty());
}

#[test]
fn k10_the_admin_socket_is_where_nobody_else_can_put_one() {
    let socket = |path: &str| with("admin", &format!("socket = \"{path}\""));
    refused(&socket(&format!("/{}", "x".repeat(107))), "2:10", &["is 108 bytes long", "at most 107"]);
    refused(&socket("run/admin.sock"), "2:10", &["`admin.socket` is not absolute"]);
    refused(&socket("/tmp/admin.sock"), "2:10", &["its directory can be written by everyone"]);
    refused(&socket("/own-open/admin.sock"), "2:10", &["its directory can be written by everyone"]);
    refused(&socket("/foreign/admin.sock"), "2:10", &["its directory belongs to user 1001; proxyd runs as user 1000"]);
    refused(&socket("/own/foreign-socket"), "2:10", &["belongs to user 1001"]);
    refused(&socket("/own/file"), "2:10", &["exists and is not a socket"]);
    refused(&socket("/own"), "2:10", &["exists and is not a socket"]);
    refused(&socket("/own/file/admin.sock"), "2:10", &["its directory is not a directory"]);
    good(&socket("/own/socket"));
    good(&socket("/run/proxyd-admin.sock"));
}

#[test]
fn k10_the_state_directory_is_ours_alone() {
    let state = |path: &str| with("runtime", &format!("state_dir = \"{path}\""));
    refused(&state("run"), "2:13", &["`runtime.state_dir` is not absolute"]);
    refused(&state("/tmp"), "2:13", &["can be written by everyone"]);
    refused(&state("/foreign"), "2:13", &["belongs to user 1001"]);
    refused(&state("/own/file"), "2:13", &["is not a directory"]);
    refused(&state(&format!("/{}", "x".repeat(84))), "2:13", &["is 85 bytes long", "at most 84 bytes"]);
    good(&state(&format!("/{}", "x".repeat(83))));
    // It is made private at start.
    good(&state("/own-open"));
    assert_eq!(good(&state("/own")).admin.socket, PathBuf::from("/own/admin.sock"));
}

#[test]
fn the_state_directory_follows_the_environment() {
    let state_dir = |runtime: Option<&str>, xdg: Option<&str>| {
        let (runtime_directory, xdg_runtime_dir) = (runtime.map(PathBuf::from), xdg.map(PathBuf::from));
        let around = Surroundings { runtime_directory, xdg_runtime_dir, ..around() };
        let parsed = parse_in(Path::new("proxyd.toml"), REST.as_bytes(), &around).unwrap();
        parsed.config.runtime.state_dir.to_str().unwrap().to_owned()
    };
    assert_eq!(state_dir(Some("/run/unit"), Some("/run/user/1")), "/run/unit");
    assert_eq!(state_dir(None, Some("/run/user/1")), "/run/user/1/proxyd");
    assert_eq!(state_dir(None, None), "/run/proxyd");
}

#[test]
fn k11_metrics_are_exposed_only_if_told() {
    for address in ["0.0.0.0:9900", "10.0.0.9:9900", "[::]:9900", "[2001:db8::1]:9900"] {
        let text = with("admin", &format!("listen = \"{address}\""));
        refused(&text, "2:10", &["can be reached from other machines", "`expose = true`"]);
        good(&with("admin", &format!("listen = \"{address}\"\nexpose = true")));
    }
    for address in ["127.0.0.1:9901", "127.8.8.8:9901", "[::1]:9901", "off"] {
        good(&with("admin", &format!("listen = \"{address}\"")));
    }
}

#[test]
fn this_machine_can_be_read() {
    let real = Surroundings::real();
    assert!(real.cpus >= 1 && real.descriptors >= 3 && real.somaxconn >= 1);
    assert!(real.addresses.contains(&std::net::IpAddr::from([127, 0, 0, 1])));
    assert_eq!(((real.user)("root"), (real.group)("root")), (Some(0), Some(0)));
    assert_eq!((real.user)("no-such-user-here"), None);
    let found = (real.found)(Path::new("/tmp")).unwrap();
    assert_eq!((found.kind, found.mode & 0o002), (super::super::Kind::Directory, 0o002));
    assert!((real.found)(Path::new("/no/such/path")).is_none());
}
