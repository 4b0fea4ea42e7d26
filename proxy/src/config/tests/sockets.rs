//! Listening sockets: duplicates, Unix sockets, keys that belong to some of them only.

use super::super::Bind;
use super::{REST, good, listener, mistakes, refused};

/// Two listeners on `a` and `b`, each with more keys.
fn two(a: &str, b: &str) -> String {
    format!(
        "[listeners.one]\npool = \"app\"\n{a}\n[listeners.two]\npool = \"app\"\n{b}\n[pools.app]\nbackends = [\"10.0.0.1:1\"]\n"
    )
}

fn binds(a: &str, b: &str) -> String {
    two(&format!("bind = \"{a}\""), &format!("bind = \"{b}\""))
}

#[test]
fn k4_the_same_address_twice_names_both_places() {
    let text = binds("127.0.0.1:80", "127.0.0.1:80");
    refused(
        &text,
        "6:8",
        &["127.0.0.1:80 is wanted twice: by listener `one` and by listener `two`", "proxyd.toml:6:8", "3 |"],
    );
    refused(&listener("bind = [\"127.0.0.1:80\", \"127.0.0.1:80\"]"), "2:25", &["is wanted twice"]);
    refused(&binds("unix:/own/a", "unix:/own/./a"), "6:8", &["unix:/own/a is wanted twice"]);
    refused(&binds("[::1]:80", "[0:0::1]:80"), "6:8", &["[::1]:80 is wanted twice"]);
}

#[test]
fn k4_a_wildcard_covers_the_addresses_of_its_family() {
    refused(
        &binds("0.0.0.0:80", "127.0.0.1:80"),
        "6:8",
        &["127.0.0.1:80 of listener `two` and 0.0.0.0:80 of listener `one` overlap"],
    );
    refused(&binds("127.0.0.1:80", "0.0.0.0:80"), "6:8", &["overlap"]);
    refused(&binds("[::]:80", "[::1]:80"), "6:8", &["overlap"]);
    for (a, b) in [("0.0.0.0:80", "127.0.0.1:81"), ("0.0.0.0:80", "[::]:80"), ("0.0.0.0:80", "[::1]:80")] {
        good(&binds(a, b));
    }
    good(&binds("127.0.0.1:80", "127.0.0.2:80"));
}

#[test]
fn k4_a_wildcard_for_both_families_covers_ipv4_too() {
    let both = "bind = \"[::]:80\"\nv6only = false";
    refused(
        &two(both, "bind = \"0.0.0.0:80\""),
        "7:8",
        &["0.0.0.0:80 of listener `two` and [::]:80 of listener `one`"],
    );
    refused(&two(both, "bind = \"127.0.0.1:80\""), "7:8", &["overlap"]);
    refused(&two("bind = \"10.0.0.1:80\"", both), "6:8", &["overlap"]);
    good(&two("bind = \"[::]:80\"\nv6only = true", "bind = \"0.0.0.0:80\""));
}

#[test]
fn k4_overlapping_ranges_are_one_mistake() {
    refused(&binds("127.0.0.1:7000-7099", "127.0.0.1:7050-7150"), "6:8", &["127.0.0.1:7050 is wanted twice"]);
}

#[test]
fn k4_the_admin_addresses_count_too() {
    refused(&listener("bind = \"127.0.0.1:9900\""), "2:8", &["by listener `web` and by `admin.listen`"]);
    refused(&listener("bind = \"0.0.0.0:9900\""), "2:8", &["overlap"]);
    refused(&listener("bind = \"unix:/run/proxyd/admin.sock\""), "2:8", &["and by `admin.socket`"]);
    good(&format!("[admin]\nlisten = \"off\"\n{}", listener("bind = \"127.0.0.1:9900\"")));
}

#[test]
fn at_most_4096_sockets_in_total() {
    let text = binds("127.0.0.1:1000-5094", "127.0.0.1:6000-6000");
    assert_eq!(good(&text).listeners["one"].bind.len(), 4095);
    let text = binds("127.0.0.1:1000-5095", "127.0.0.1:6000");
    refused(&text, "6:8", &["makes 4097 sockets of all listeners", "at most 4096 in total"]);
    refused(&listener("bind = \"127.0.0.1:1-65535\""), "2:8", &["makes 65535 sockets"]);
}

#[test]
fn a_bind_is_needed_and_not_empty() {
    refused(&listener(""), "1:1", &["`listeners.web` has no `bind`", "add `bind = \"0.0.0.0:PORT\"`"]);
    refused(&listener("bind = []"), "2:8", &["`listeners.web.bind` is empty"]);
}

#[test]
fn unix_sockets_have_absolute_short_paths_of_their_own() {
    let bind = |path: &str| listener(&format!("bind = \"unix:{path}\""));
    refused(&bind("run/a.sock"), "2:8", &["is not absolute"]);
    refused(&bind(""), "2:8", &["is not absolute"]);
    refused(&bind("@abstract"), "2:8", &["is not absolute"]);
    refused(&bind("/own/a\\u0007"), "2:8", &["contains a control character"]);
    refused(&bind("/own/file"), "2:8", &["exists and is not a socket"]);
    refused(&bind(&format!("/{}", "x".repeat(107))), "2:8", &["is 108 bytes long", "at most 107 bytes"]);
    good(&bind(&format!("/{}", "x".repeat(106))));
    good(&bind("/own/socket"));
    refused(&listener("bind = \"/run/a.sock\""), "2:8", &["is not an address", "write `unix:/run/a.sock`"]);
}

#[test]
fn modes_are_octal_and_owners_exist() {
    let key = |line: &str| listener(&format!("bind = \"unix:/own/a\"\n{line}"));
    for mode in ["0999", "660x", "", "01000", "66", "0o660", "-660"] {
        refused(&key(&format!("mode = \"{mode}\"")), "3:8", &["is not a file mode", "\"0000\" to \"0777\""]);
    }
    refused(&key("mode = 660"), "3:8", &["is an integer", "an octal number in quotes"]);
    refused(&key("owner = \"nobody-here\""), "3:9", &["there is no such user"]);
    refused(&key("group = \"postgres\""), "3:9", &["there is no such group"]);
    refused(&key("owner = 4294967295"), "3:9", &["is out of range"]);
    refused(&key("owner = \"4294967295\""), "3:9", &["there is no such user"]);
    let config = good(&key("mode = \"600\"\nowner = \"1234\"\ngroup = \"db\""));
    let expected = Bind::Unix { path: "/own/a".into(), mode: 0o600, owner: Some(1234), group: Some(106) };
    assert_eq!(config.listeners["web"].bind, [expected]);
}

#[test]
fn keys_that_no_socket_of_the_listener_can_have_are_refused() {
    for line in ["mode = \"0600\"", "owner = 0", "group = 0"] {
        let text = listener(&format!("bind = \"127.0.0.1:80\"\n{line}"));
        refused(
            &text,
            &format!("3:{}", line.find('=').unwrap() + 3),
            &["has no meaning here", "a Unix socket in `bind`"],
        );
    }
    for bind in ["0.0.0.0:80", "[::1]:80", "unix:/own/a"] {
        let text = listener(&format!("bind = \"{bind}\"\nv6only = false"));
        refused(&text, "3:10", &["`listeners.web.v6only` has no meaning here", "`[::]` in `bind`"]);
    }
    // With one of them it is enough.
    good(&listener("bind = [\"127.0.0.1:80\", \"unix:/own/a\"]\nmode = \"0600\""));
    good(&listener("bind = [\"127.0.0.1:81\", \"[::]:80\"]\nv6only = false"));
    // A bind that could not be read may have been the one.
    let told = mistakes(&listener("bind = \"unix:a\"\nmode = \"0600\""));
    assert_eq!(told.len(), 1, "{told:#?}");
}

#[test]
fn ids_tell_apart_what_are_different_sockets() {
    let ids = |text: &str| -> Vec<String> { good(text).listeners["web"].bind.iter().map(Bind::id).collect() };
    assert_eq!(ids(REST), ["tcp:127.0.0.1:80"]);
    assert_eq!(ids(&listener("bind = \"[::]:80\"")), ["tcp:[::]:80"]);
    assert_eq!(ids(&listener("bind = \"[::]:80\"\nv6only = false")), ["tcp:[::]:80+v4"]);
    assert_eq!(ids(&listener("bind = \"[::1]:80\"")), ["tcp:[::1]:80"]);
    assert_eq!(ids(&listener("bind = \"unix:/own//a\"")), ["unix:/own/a"]);
}
