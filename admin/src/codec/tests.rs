//! Tables and properties of the codec.

use proptest::prelude::*;

use super::*;
use crate::command::{BackendChange, FailureKind, Kill, NewBackend, Upgrade};

fn every_command() -> Vec<Command> {
    let backend = NewBackend { name: Some("b".into()), address: "10.0.0.2:5432".into(), weight: Some(2) };
    vec![
        Command::Upgrade(Upgrade { binary: Some("/opt/p".into()), dry_run: true, ..Upgrade::default() }),
        Command::Reload,
        Command::PoolSwap { listener: "l".into(), pool: "p".into(), if_version: Some(3) },
        Command::PoolAdd { pool: "p".into(), backend: backend.clone(), if_version: None },
        Command::PoolRemove { pool: "p".into(), backend: "b".into(), if_version: None },
        Command::PoolSet { pool: "p".into(), backends: vec![backend], create: true, if_version: None },
        Command::Backend { pool: "p".into(), backend: "b".into(), change: BackendChange::Weight(7), if_version: None },
        Command::Kill(Kill { filter: full_filter(), dry_run: true, rate: Some(10) }),
        Command::Shutdown,
    ]
}

fn full_filter() -> Filter {
    Filter {
        id: vec![1, u64::MAX],
        listener: Some("l".into()),
        pool: Some("p".into()),
        backend: Some("[::1]:80 & co=%".into()),
        client: Some("10.0.0.0/8".parse().unwrap()),
        idle: Some(0.25),
        older: Some(3600.0),
        generation: Some(4),
    }
}

fn pairs(query: &str) -> Vec<(String, String)> {
    let uri: axum::http::Uri = format!("/?{query}").parse().unwrap();
    axum::extract::Query::try_from_uri(&uri).unwrap().0
}

#[test]
fn every_command_comes_back_as_it_went() {
    for wanted in every_command() {
        let bytes = serde_json::to_vec(&wanted).unwrap();
        assert_eq!(command(&bytes), Ok(wanted));
    }
}

#[test]
fn a_filter_survives_its_query() {
    assert_eq!(filter(&pairs(&query(&full_filter()))), Ok(full_filter()));
    assert_eq!(query(&Filter::default()), "");
}

#[test]
fn a_bare_client_address_is_one_host() {
    let filter = filter(&pairs("client=10.1.2.3")).unwrap();
    assert_eq!(filter.client.unwrap().to_string(), "10.1.2.3/32");
}

#[test]
fn bad_queries_name_the_key() {
    for (query, word) in [
        ("idle=NaN", "idle"),
        ("older=inf", "older"),
        ("idle=-1", "idle"),
        ("id=1,x", "id"),
        ("generation=-1", "generation"),
        ("client=10.0.0.0/33", "client"),
        ("colour=red", "known: id"),
        ("listener=", "listener"),
    ] {
        let failure = filter(&pairs(query)).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Usage, "{query}");
        assert!(failure.message.contains(word), "{query}: {failure}");
    }
}

#[test]
fn a3_wrong_words_name_what_exists() {
    for (body, word) in [
        (r#"{"verb":"explode"}"#, "expected one of `upgrade`, `rollback`"),
        (r#"{"verb":"pool-swap","pool":"p"}"#, "listener"),
        (r#"{"verb":"reload","now":true}"#, "now"),
        (r#"{"verb":"upgrade","fast":true}"#, "fast"),
        (r#"{"verb":"pool-swap","listener":1,"pool":"p"}"#, "string"),
        (r#"{"pool":"p"}"#, "verb"),
        (r#"{"verb":"reload"} x"#, "trailing"),
        (r#"[1]"#, "not a command"),
        ("", "empty"),
        ("\u{feff}{}", "not a command"),
    ] {
        let failure = command(body.as_bytes()).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Usage, "{body}");
        assert!(failure.message.contains(word), "{body}: {failure}");
    }
}

#[test]
fn a4_nesting_is_bounded_before_parsing() {
    for depth in [33, 1_000, 100_000] {
        let body = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(command(body.as_bytes()).unwrap_err().message.contains("32 levels"), "{depth}");
    }
    let in_a_string = format!(r#"{{"verb":"{}\"["}}"#, "[".repeat(100));
    assert!(command(in_a_string.as_bytes()).unwrap_err().message.contains("unknown variant"));
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = command(&bytes);
    }

    #[test]
    fn no_query_panics(key in "(id|listener|client|idle|older|generation|since|follow|x)", value in "\\PC{0,40}") {
        let pair = [(key, value)];
        let _ = (filter(&pair), events(&pair));
    }

    #[test]
    fn names_survive_the_query(name in "[^\\p{Cc}]{1,60}") {
        let wanted = Filter { backend: Some(name), ..Filter::default() };
        prop_assert_eq!(filter(&pairs(&query(&wanted))), Ok(wanted));
    }
}
