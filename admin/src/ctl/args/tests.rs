//! Command lines and the commands they become.

use super::*;

fn parse(line: &str) -> Result<Verb, clap::Error> {
    Args::try_parse_from(line.split(' ')).map(|args| args.verb)
}

fn command(line: &str) -> Command {
    parse(line).unwrap().command().unwrap()
}

#[test]
fn the_definition_is_sound() {
    use clap::CommandFactory;
    Args::command().debug_assert();
}

#[test]
fn verbs_become_commands() {
    let one = |name: Option<&str>, weight| NewBackend {
        name: name.map(str::to_owned),
        address: "10.0.0.1:80".into(),
        weight,
    };
    let change = |change| Command::Backend { pool: "p".into(), backend: "b".into(), change, if_version: None };
    for (line, wanted) in [
        ("proxyctl reload", Command::Reload),
        ("proxyctl shutdown", Command::Shutdown),
        (
            "proxyctl pool swap l p --if-version 3",
            Command::PoolSwap { listener: "l".into(), pool: "p".into(), if_version: Some(3) },
        ),
        (
            "proxyctl pool add p b=10.0.0.1:80*2",
            Command::PoolAdd { pool: "p".into(), backend: one(Some("b"), Some(2)), if_version: None },
        ),
        ("proxyctl pool remove p b", Command::PoolRemove { pool: "p".into(), backend: "b".into(), if_version: None }),
        (
            "proxyctl pool set p 10.0.0.1:80 --create",
            Command::PoolSet { pool: "p".into(), backends: vec![one(None, None)], create: true, if_version: None },
        ),
        ("proxyctl backend enable p b", change(BackendChange::Enable)),
        ("proxyctl backend drain p b", change(BackendChange::Drain)),
        ("proxyctl backend disable p b", change(BackendChange::Disable)),
        ("proxyctl backend weight p b 256", change(BackendChange::Weight(256))),
    ] {
        assert_eq!(command(line), wanted, "{line}");
    }
}

#[test]
fn upgrade_paths_are_absolute() {
    let Command::Upgrade(upgrade) = command("proxyctl upgrade --binary ./new --config /etc/p.toml --no-wait") else {
        panic!("not an upgrade");
    };
    assert!(upgrade.binary.unwrap().starts_with('/'));
    assert_eq!(upgrade.config.as_deref(), Some("/etc/p.toml"));
    assert!(upgrade.no_wait && !upgrade.dry_run);
}

#[test]
fn what_becomes_of_the_sessions_is_said_only_if_it_was_asked_for() {
    for (line, wanted) in [
        ("proxyctl upgrade", None),
        ("proxyctl upgrade --sessions move", Some(command::Sessions::Move)),
        ("proxyctl upgrade --sessions drain", Some(command::Sessions::Drain)),
    ] {
        let asked = command(line);
        assert_eq!(asked, Command::Upgrade(Upgrade { sessions: wanted, ..Upgrade::default() }));
        // An older keeper refuses a field that it does not know.
        let said = serde_json::to_string(&asked).unwrap();
        assert_eq!(said.contains("sessions"), wanted.is_some(), "{said}");
    }
}

#[test]
fn kill_wants_to_know_which() {
    assert!(parse("proxyctl kill").unwrap().command().is_err());
    assert!(parse("proxyctl kill --all --pool p").unwrap().command().is_err());
    assert_eq!(command("proxyctl kill --all"), Command::Kill(Kill::default()));
    let filter = Filter {
        id: vec![1, 2, 3],
        client: Some("10.0.0.1/32".parse().unwrap()),
        idle: Some(90.0),
        ..Filter::default()
    };
    assert_eq!(
        command("proxyctl kill --id 1,2 --id 3 --client 10.0.0.1 --idle 1m30s --rate 5 --dry-run"),
        Command::Kill(Kill { filter, dry_run: true, rate: Some(5) })
    );
}

#[test]
fn a3_wrong_words_are_usage_errors() {
    for line in [
        "proxyctl",
        "proxyctl explode",
        "proxyctl rollback 3",
        "proxyctl rollback --probation soon",
        "proxyctl upgrade --last --binary /b",
        "proxyctl upgrade --sessions keep",
        "proxyctl wait",
        "proxyctl wait generation-gone",
        "proxyctl wait generation-gone x",
        "proxyctl wait backend-empty p",
        "proxyctl events --since -1",
        "proxyctl pool swap l",
        "proxyctl pool swap l p q",
        "proxyctl pool set p",
        "proxyctl pool add p db:80",
        "proxyctl backend weight p b 0",
        "proxyctl backend weight p b 257",
        "proxyctl kill --all --rate 0",
        "proxyctl sessions --idle 10",
        "proxyctl sessions --client 10.0.0.0/33",
        "proxyctl sessions --generation -1",
        "proxyctl --timeout 0s status",
        "proxyctl upgrade --dry-run --no-wait",
    ] {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

#[test]
fn a9_ranges_are_named() {
    let error = parse("proxyctl sessions --idle 5").unwrap_err().to_string();
    assert!(error.contains("no unit; say 5s or 5m"), "{error}");
}
