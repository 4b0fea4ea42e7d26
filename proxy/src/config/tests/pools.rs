//! Pools, their backends, and the ways that lead back to where they began.

use super::{REST, good, mistakes, pool, refused, warned};

#[test]
fn k5_pools_have_backends_and_listeners_have_pools() {
    refused(&pool("backends = []"), "2:12", &["`pools.app.backends` is empty", "at least one address"]);
    refused(&pool(""), "1:1", &["`pools.app` has no `backends`"]);
    // Each with the warning that nobody uses the pool that is there.
    let told = mistakes(&REST.replace("\"app\"", "\"apq\""));
    assert_eq!(told.len(), 2, "{told:#?}");
    assert_eq!(told[0], "proxyd.toml:3:8: there is no pool `apq` (did you mean `app`?)");
    let told = mistakes(&REST.replace("\"app\"", "\"other\""));
    assert_eq!(told[0], "proxyd.toml:3:8: there is no pool `other` (add `[pools.other]` with `backends`)");
    let told = mistakes(&REST.replace("pool = \"app\"", ""));
    assert!(told[0].starts_with("proxyd.toml:1:1: `listeners.web` has no `pool`"), "{told:#?}");
}

#[test]
fn k5_an_unused_pool_is_a_warning() {
    warned(&format!("{REST}[pools.spare]\nbackends = [\"10.0.0.2:80\"]\n"), "6:8: no listener uses the pool `spare`");
}

#[test]
fn k5_duplicate_backends_name_both_places() {
    let backends = |list: &str| pool(&format!("backends = [{list}]"));
    let same = backends("\"10.0.0.1:80\", \"10.0.0.1:80\"");
    refused(&same, "2:28", &["the pool `app` has 10.0.0.1:80 twice", "first here"]);
    let other_spelling = backends("\"[2001:DB8::1]:80\", \"[2001:db8:0::1]:80\"");
    refused(&other_spelling, "2:33", &["has [2001:db8::1]:80 twice"]);
    let names = backends("{ name = \"b\", address = \"10.0.0.1:80\" }, { name = \"b\", address = \"10.0.0.2:80\" }");
    refused(&names, "2:54", &["has two backends named `b`"]);
    // Names differ in more than case, because there is only one case.
    let case = backends("{ name = \"b\", address = \"10.0.0.1:80\" }, { name = \"B\", address = \"10.0.0.2:80\" }");
    refused(&case, "2:63", &["= \"B\" is not a name"]);
}

#[test]
fn k5_weights_are_from_1_to_256() {
    for weight in ["0", "-1", "257", "99999999999999999999"] {
        let text = pool(&format!("backends = [{{ address = \"10.0.0.1:80\", weight = {weight} }}]"));
        refused(&text, "2:49", &["`pools.app.backends.weight`", "out of range", "1 to 256"]);
    }
}

#[test]
fn k5_a_backend_needs_an_address() {
    refused(&pool("backends = [{ name = \"b\" }]"), "2:13", &["has no `address`"]);
}

/// Listeners on 127.0.0.1:1, :2, ...; the backends of each are given.
fn chain(backends: &[&str]) -> String {
    let one = |(index, backend): (usize, &&str)| {
        let number = index + 1;
        format!(
            "[listeners.l{number}]\nbind = \"127.0.0.1:{number}\"\npool = \"p{number}\"\n[pools.p{number}]\nbackends = [\"{backend}\"]\n"
        )
    };
    backends.iter().enumerate().map(one).collect()
}

#[test]
fn k6_a_listener_does_not_send_to_itself() {
    refused(&chain(&["127.0.0.1:1"]), "5:13", &["listener `l1` sends to itself: 127.0.0.1:1 is listener `l1`"]);
    let wildcard = |bind: &str, backend: &str| chain(&[backend]).replace("bind = \"127.0.0.1:1\"", bind);
    refused(&wildcard("bind = \"0.0.0.0:1\"", "127.0.0.1:1"), "5:13", &["sends to itself"]);
    refused(&wildcard("bind = \"0.0.0.0:1\"", "10.0.0.9:1"), "5:13", &["sends to itself"]);
    refused(&wildcard("bind = \"127.0.0.1:1-9\"", "127.0.0.1:5"), "5:13", &["sends to itself"]);
    refused(&wildcard("v6only = false\nbind = \"[::]:1\"", "127.0.0.1:1"), "6:13", &["sends to itself"]);
    // Another machine, another port, another family.
    good(&wildcard("bind = \"0.0.0.0:1\"", "10.0.0.8:1"));
    good(&wildcard("bind = \"0.0.0.0:1\"", "127.0.0.1:2"));
    good(&wildcard("bind = \"[::]:1\"", "127.0.0.1:1"));
}

#[test]
fn k6_nor_over_others() {
    let told = "listener `l1` sends to itself over others: 127.0.0.1:2 is listener `l2`, whose backend 127.0.0.1:1 is listener `l1`";
    refused(&chain(&["127.0.0.1:2", "127.0.0.1:1"]), "5:13", &[told, "and from here back"]);
    refused(&chain(&["127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:1"]), "5:13", &["127.0.0.1:3 is listener `l3`, whose"]);
    // One that leads into a loop is not part of it.
    refused(
        &chain(&["127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:2"]),
        "10:13",
        &["listener `l2` sends to itself over others"],
    );
    // Two loops are two mistakes.
    assert_eq!(mistakes(&chain(&["127.0.0.1:1", "127.0.0.1:2"])).len(), 2);
    // A chain that ends somewhere is none.
    good(&chain(&["127.0.0.1:2", "127.0.0.1:3", "10.0.0.1:1"]));
}
