//! What a scrape is rendered from.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use admin::view::ConfigView;
use handoff::ledger::{Ledger, Opening, Record, Sizes, Writer};
use prometheus::Registry;
use proxy::observe::metrics::exposition;
use proxy::observe::names;
use proxy::observe::scene::{ListenerScene, Scene, Standing};

use crate::cases::pool;

const LISTENERS: usize = 10;
/// A pool a listener.
const BACKENDS: u16 = 20;
const SESSIONS: usize = 100;

pub(crate) fn rendered(times: u32) {
    let (scene, _sessions) = scene();
    let registry = Registry::new();
    for _ in 0..times {
        black_box(exposition(black_box(&scene), &registry));
    }
}

/// Sessions are records, which live as long as their handles.
fn scene() -> (Scene, Vec<Record>) {
    let pools: Vec<_> = (0..LISTENERS).map(|number| pool(&format!("p{number}"), BACKENDS)).collect();
    let mut specs = vec![names::process(), names::keeper()];
    for (number, pool) in pools.iter().enumerate() {
        let listener = format!("l{number}");
        specs.extend([names::listener(&listener), names::route(&listener, &pool.name), names::pool(&pool.name)]);
        specs.extend(pool.backends.iter().map(|backend| names::backend(&pool.name, &backend.name)));
    }
    let mut ledger = Ledger::create(Sizes::default()).expect("a ledger can be made");
    ledger.ensure(&specs, 2, 256).expect("a ledger can grow");
    let segment = ledger.segments().last().expect("it has one");
    let writer = Writer::lease(Arc::clone(segment), 1, 0).expect("a block is free");
    let session = |number: usize| {
        let (of, client) = (number % LISTENERS, SocketAddr::from(([127, 0, 0, 1], 40_000)));
        let find = |kind, text: &str| segment.find(kind, text).expect("it was entered");
        let listener = find(names::LISTENER, &format!("l{of}"));
        let pool = find(names::POOL, &format!("p{of}"));
        let opening = Opening { listener, pool, client: Some(client), opened_unix_us: 1, opened_ms: 1 };
        let record = writer.claim(&opening).expect("a record is free");
        let backend = names::backend(&format!("p{of}"), "b0");
        record.established(find(backend.kind, &backend.text), client);
        record
    };
    let sessions = (0..SESSIONS).map(session).collect();
    let listener = |number| ListenerScene {
        survive_crash: false,
        name: format!("l{number}"),
        bind: vec!["127.0.0.1:1".into()],
        pool: format!("p{number}"),
    };
    let scene = Scene {
        version: "0",
        started: Instant::now(),
        standing: Standing::Serving,
        generations: Vec::new(),
        listeners: (0..LISTENERS).map(listener).collect(),
        pools,
        config: ConfigView::default(),
        upgrade: None,
        segments: ledger.segments().to_vec(),
    };
    (scene, sessions)
}
