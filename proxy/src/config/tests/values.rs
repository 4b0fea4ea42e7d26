//! Durations, numbers, names, addresses.

use super::{REST, good, listener, mistakes, pool, refused, with};

#[test]
fn k7_durations_name_units_and_range() {
    let units = "a whole number with a unit: ms, s, m, h or d";
    let table = [
        ("\"10\"", "`drain.timeout` has no unit: \"10\""),
        ("10", "`drain.timeout` has no unit: 10"),
        ("\"-1s\"", "`drain.timeout` is negative: \"-1s\""),
        ("-1", "`drain.timeout` is negative: -1"),
        ("\"1y\"", "has the unknown unit `y`: \"1y\""),
        ("\"1S\"", "has the unknown unit `S`"),
        ("\"1 s\"", "has the unknown unit ` s`"),
        ("\"18446744073709551616s\"", "is out of range: \"18446744073709551616s\""),
        ("\"18446744073709551615d\"", "is out of range"),
        ("\"31d\"", "is out of range"),
        ("\"1.5s\"", "is not one whole number and one unit"),
        ("\"1h30m\"", "is not one whole number and one unit"),
        ("\"\"", "is not a duration"),
        ("\"s\"", "is not a duration"),
        ("\"OFF\"", "is not a duration"),
    ];
    for (written, what) in table {
        let text = with("drain", &format!("timeout = {written}"));
        refused(&text, "2:11", &[what, units, "from \"0s\" to \"30d\"", "or \"off\""]);
    }
}

#[test]
fn k7_a_probation_ends_within_a_day() {
    refused(&with("upgrade", "probation = \"25h\""), "2:13", &["from \"0s\" to"]);
    refused(&with("upgrade", "probe = \"ping\""), "2:9", &["\"connect\", \"off\""]);
}

#[test]
fn k7_off_is_refused_where_there_must_be_a_time() {
    refused(&with("upgrade", "ready_timeout = \"off\""), "2:17", &["is not a duration", "from \"1ms\" to \"1h\""]);
    let text = pool("backends = [\"10.0.0.1:80\"]\nconnect_timeout = \"0s\"");
    refused(&text, "3:19", &["`pools.app.connect_timeout` is out of range: \"0s\"", "\"1ms\""]);
}

#[test]
fn k7_keepalive_is_in_whole_seconds() {
    let keepalive = |value: &str| listener(&format!("bind = \"127.0.0.1:80\"\nkeepalive = {value}"));
    refused(&keepalive("{ idle = \"1500ms\" }"), "3:22", &["is not in whole seconds"]);
    refused(&keepalive("{ interval = \"10h\" }"), "3:26", &["is out of range", "\"32767s\""]);
    refused(&keepalive("{ count = 128 }"), "3:23", &["is 128, which is out of range", "from 1 to 127"]);
    refused(&keepalive("\"on\""), "3:13", &["is a string", "or \"off\""]);
    assert!(good(&keepalive("\"off\"")).listeners["web"].tcp.keepalive.is_none());
}

#[test]
fn k7_the_spread_fits_into_the_timeout() {
    let text = with("drain", "timeout = \"4s\"\nspread = \"6s\"");
    refused(&text, "3:10", &["`drain.spread` is longer than `drain.timeout`", "at most 4s"]);
    // What was not written follows.
    let config = good(&with("drain", "timeout = \"2s\""));
    assert_eq!(config.drain.spread.as_secs(), 2);
}

#[test]
fn numbers_out_of_range_show_the_range() {
    let table = [
        (with("runtime", "threads = 0"), "2:11", "is 0, which is out of range", "1 to 256"),
        (with("runtime", "threads = 99999999999999999999"), "2:11", "is 99999999999999999999,", "1 to 256"),
        (with("upgrade", "max_generations = 65"), "2:19", "is 65,", "2 to 64"),
        (with("upgrade", "max_generations = 0x1"), "2:19", "is 0x1,", "2 to 64"),
        (listener("bind = \"127.0.0.1:80\"\nbacklog = -5"), "3:11", "is -5,", "1 to 2147483647"),
        (listener("bind = \"127.0.0.1:80\"\nmax_sessions = 0"), "3:16", "is 0,", "from 1 to"),
        (pool("backends = [\"10.0.0.1:80\"]\nconnect_retries = 101"), "3:19", "is 101,", "0 to 100"),
    ];
    for (text, position, what, expected) in table {
        refused(&text, position, &[what, expected]);
    }
}

#[test]
fn names_keep_to_their_alphabet() {
    let long = "x".repeat(64);
    for name in ["Web", "web.app", "a b", "", "ä", "a/b", &long] {
        let text = format!("[pools.\"{name}\"]\nbackends = [\"10.0.0.1:80\"]\n{REST}");
        refused_with_warning(&text, "is not a name");
    }
    let text = format!("[pools.\"a\\u0007\"]\nbackends = [\"10.0.0.1:80\"]\n{REST}");
    refused_with_warning(&text, "`a\\u{7}` is not a name");
    let text = "[listeners.web]\nbind = \"127.0.0.1:80\"\npool = \"App\"\n[pools.app]\nbackends = [\"10.0.0.1:80\"]\n";
    assert!(mistakes(text)[0].starts_with("proxyd.toml:3:8: `listeners.web.pool` = \"App\" is not a name"));
    let most = "x".repeat(63);
    good(&REST.replace("app", &most));
    good(&REST.replace("app", "a_b-9"));
}

/// Beside the one error there is the warning that nobody uses the pool.
#[track_caller]
fn refused_with_warning(text: &str, part: &str) {
    let told = mistakes(text);
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(told.iter().any(|mistake| mistake.contains(part)), "{told:#?}");
}

#[test]
fn k3_bad_addresses_name_field_and_value() {
    let table = [
        ("127.0.0.1:0", "port 0"),
        ("127.0.0.1:65536", "port 65536 is above 65535"),
        ("127.0.0.1:99999999999999999999", "is above 65535"),
        ("127.0.0.1:http", "port `http` is not a number"),
        ("127.0.0.1:+80", "port `+80` is not a number"),
        ("127.0.0.1:-80", "port `-80` is not a number"),
        ("127.0.0.1", "the port is missing"),
        ("127.0.0.1:", "the port is missing"),
        ("[::1]", "write `[::1]:PORT`"),
        ("[::1]:", "the port is missing"),
        ("[::1]80", "the port is missing"),
        ("[::1:80", "the closing `]` is missing"),
        ("::1]:80", "the brackets are not in their places"),
        ("::1", "write `[::1]:PORT`"),
        ("::1:80", "an IPv6 address needs brackets"),
        ("fe80::1:0:0:1:80", "an IPv6 address needs brackets"),
        ("[fe80::1%eth0]:80", "scope ids"),
        ("[::g]:80", "`::g` is not an IPv6 address"),
        ("[127.0.0.1]:80", "`127.0.0.1` is not an IPv6 address"),
        ("[::ffff:10.0.0.1]:80", "write `10.0.0.1`"),
        ("256.1.1.1:80", "`256.1.1.1` is not an IPv4 address"),
        ("1.2.3:80", "`1.2.3` is not an IPv4 address"),
        ("010.0.0.1:80", "`010.0.0.1` is not an IPv4 address"),
        ("localhost:80", "host names are not available in this version"),
        ("db.example.org:5432", "write the IP address"),
        (":80", "write `0.0.0.0:80` or `[::]:80`"),
        ("*:80", "the IP address is missing"),
        ("", "the port is missing"),
    ];
    for (address, part) in table {
        let bind = format!("`listeners.web.bind` = \"{address}\"");
        refused(&listener(&format!("bind = \"{address}\"")), "2:8", &[&bind, part]);
        let backend = format!("`pools.app.backends` = \"{address}\"");
        refused(&pool(&format!("backends = [\"{address}\"]")), "2:13", &[&backend, part]);
        refused(&with("admin", &format!("listen = \"{address}\"")), "2:10", &["`admin.listen`", part]);
    }
}

#[test]
fn k3_ranges_of_ports_run_forward_and_inside_the_ports() {
    let bind = |text: &str| listener(&format!("bind = \"{text}\""));
    refused(&bind("127.0.0.1:90-80"), "2:8", &["the range 90-80 runs backwards", "write `80-90`"]);
    refused(&bind("127.0.0.1:0-80"), "2:8", &["port 0"]);
    refused(&bind("127.0.0.1:80-65536"), "2:8", &["port 65536 is above"]);
    refused(&bind("127.0.0.1:80-"), "2:8", &["port `` is not a number"]);
    refused(&bind("127.0.0.1:80-90-100"), "2:8", &["port `90-100` is not a number"]);
    assert_eq!(good(&bind("127.0.0.1:65534-65535")).listeners["web"].bind.len(), 2);
    refused(&pool("backends = [\"10.0.0.1:80-81\"]"), "2:13", &["port `80-81` is not a number"]);
}

#[test]
fn k3_a_source_is_an_address_without_a_port() {
    let source = |text: &str| pool(&format!("backends = [\"10.0.0.1:80\"]\nsource = \"{text}\""));
    refused(&source("10.0.0.9:0"), "3:10", &["a port does not belong here", "write `10.0.0.9`"]);
    refused(&source("eth0"), "3:10", &["`eth0` is not an IP address"]);
    refused(&source("::1"), "2:13", &["cannot be reached from the source ::1", "other address family"]);
}

#[test]
fn k3_a_backend_is_an_address_to_connect_to() {
    refused(&pool("backends = [\"0.0.0.0:80\"]"), "2:13", &["write `127.0.0.1:80`"]);
    refused(&pool("backends = [\"[::]:80\"]"), "2:13", &["write `[::1]:80`"]);
    refused(&pool("backends = [\"unix:/run/x\"]"), "2:13", &["cannot be a Unix socket in this version"]);
}
