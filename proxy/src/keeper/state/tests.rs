use super::*;

const CONFIG: &str = "[runtime]\nstate_dir = \"/run/x\"\nthreads = 2\n[admin]\nlisten = \"off\"\n[listeners.main]\nbind = \"127.0.0.1:7000\"\npool = \"p\"\n[pools.p]\nbackends = [\"127.0.0.1:7001\"]\n";

fn state() -> KeeperState {
    let config = Loaded::of_text("/etc/proxyd.toml".as_ref(), CONFIG.as_bytes()).unwrap();
    let generation = |id, state, drained_ms| GenerationState {
        id,
        pid: 100 + id,
        state,
        version: "0.1.0".into(),
        build: "a1".into(),
        sha256: "ab".into(),
        since_ms: 5000,
        drained_ms,
        stays: false,
        left: 0,
        parting: None,
    };
    KeeperState {
        version: 1,
        serial: 9,
        started_ms: 1000,
        config: ConfigState { path: config.path.clone(), text: config.text.clone(), version: 4 },
        pools: Pools::from_config(&config.config),
        socket_files: BTreeMap::new(),
        last_generation: 3,
        last_upgrade: 2,
        serving: Some(3),
        generations: vec![generation(2, State::Draining, Some(90_000)), generation(3, State::Serving, None)],
        binaries: vec![BinaryState {
            path: "/usr/bin/proxyd".into(),
            sha256: "ab".into(),
            version: "0.1.0".into(),
            build: "a1".into(),
        }],
        pinned: 0,
        previous: Some(PreviousState {
            binary: 0,
            config: ConfigState { path: config.path.clone(), text: config.text.clone(), version: 0 },
        }),
        on_trial: None,
        stillborn: vec![1],
        failures: 2,
        reports: Vec::new(),
        last_event: 77,
        drains: Vec::new(),
    }
}

#[test]
fn version_1_is_read_and_written_as_it_was_released() {
    let golden = include_str!("../../../golden/keeper_state_v1.json").trim_end();
    assert_eq!(serde_json::to_string(&state()).unwrap(), golden);
    assert_eq!(KeeperState::parse(golden.as_bytes()).unwrap(), state());
    assert_eq!(state().config().unwrap().sha256.len(), 64);
}

#[test]
fn what_is_left_to_do_with_sessions_is_kept() {
    let mut state = state();
    let drain = state.config().unwrap().config.drain;
    (state.generations[0].stays, state.generations[0].parting) = (true, Some(drain));
    state.generations[0].left = 3;
    state.drains = vec![DrainInForce::example()];
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(KeeperState::parse(text.as_bytes()).unwrap(), state);
}

#[test]
fn fields_of_later_versions_are_ignored() {
    let mut later = serde_json::to_value(state()).unwrap();
    later["colour"] = 1.into();
    assert_eq!(KeeperState::parse(later.to_string().as_bytes()).unwrap(), state());
}

#[test]
fn another_version_is_named() {
    for (version, said) in [(0, "version 0"), (2, "version 2"), (u32::MAX, "version 4294967295")] {
        let other = KeeperState { version, ..state() };
        let error = KeeperState::parse(serde_json::to_string(&other).unwrap().as_bytes()).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains("reads 1"), "{error}");
    }
}

#[test]
fn what_contradicts_itself_is_refused() {
    let twice = [state().generations[0].clone(), state().generations[0].clone()].to_vec();
    for (wrong, said) in [
        (KeeperState { serving: Some(4), ..state() }, "generation 4"),
        (KeeperState { serving: Some(0), ..state() }, "generation 0"),
        (KeeperState { last_generation: 2, ..state() }, "generation 3"),
        (KeeperState { generations: twice, ..state() }, "2 generations, 1"),
        (KeeperState { pinned: 1, ..state() }, "binary 1 of 1"),
        (
            KeeperState { previous: state().previous.map(|before| PreviousState { binary: 2, ..before }), ..state() },
            "binary 2 of 1",
        ),
        (KeeperState { binaries: Vec::new(), ..state() }, "binary 0 of 0"),
        (
            KeeperState { config: ConfigState { text: "[runtime]\nx = 1".into(), ..state().config }, ..state() },
            "not accepted",
        ),
    ] {
        let error = KeeperState::parse(serde_json::to_string(&wrong).unwrap().as_bytes()).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn a_state_cut_anywhere_is_an_error() {
    let whole = serde_json::to_string(&state()).unwrap();
    for end in 0..whole.len() {
        assert!(KeeperState::parse(&whole.as_bytes()[..end]).is_err(), "{end}");
    }
}

#[tokio::test]
async fn moments_are_the_same_in_another_process() {
    let now = Instant::now();
    for ahead in [0, 500, 3_600_000] {
        let at = now + std::time::Duration::from_millis(ahead);
        let again = instant_of(ms_of(at));
        let apart = again.checked_duration_since(at).unwrap_or_else(|| at.duration_since(again));
        assert!(apart < std::time::Duration::from_millis(100), "{apart:?}");
    }
    assert!(instant_of(0) <= now);
    let far = instant_of(u64::MAX);
    assert!(far >= now);
}
