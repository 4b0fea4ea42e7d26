//! What readers see of the keeper: published after every event, and never waited for.

use std::sync::Arc;

use admin::view::{ConfigView, UpgradeView};

use super::generation::{Generation, State};
use super::owner::Keeper;
use crate::observe::scene::{GenerationScene, ListenerScene, Scene};

impl Keeper {
    pub(super) fn publish(&self) {
        self.scene.store(Arc::new(Scene {
            version: crate::version::VERSION,
            started: self.started,
            standing: self.standing,
            generations: self.generation_scenes(),
            listeners: self.listener_scenes(),
            pools: self.pools.all().cloned().collect(),
            config: ConfigView {
                path: self.loaded.path.display().to_string(),
                version: self.config_version,
                sha256: self.loaded.sha256.clone(),
                pending: self.pending.is_some(),
            },
            upgrade: self.upgrade.as_ref().map(|upgrade| UpgradeView {
                id: upgrade.id,
                step: upgrade.step.into(),
                step_seconds: upgrade.step_started.elapsed().as_secs_f64(),
                from: upgrade.from,
                to: upgrade.to,
            }),
            segments: self.ledger.segments().to_vec(),
        }));
    }

    fn generation_scenes(&self) -> Vec<GenerationScene> {
        let now = tokio::time::Instant::now();
        let silence = |generation: &Generation| {
            generation.silent.then(|| self.watch.silence(&generation.link.heard(), now).as_secs_f64())
        };
        let scene = |generation: &Generation| GenerationScene {
            id: generation.id,
            pid: generation.process.pid,
            version: generation.version.clone(),
            build: generation.build.clone(),
            sha256: generation.sha256.clone(),
            state: generation.state.to_string(),
            drained: generation.deadline.map(|deadline| deadline.drained.into_std()),
            moving_to: self.moves_to(generation.id),
            silent_seconds: silence(generation),
        };
        let nascent = self.nascent.iter().filter(|nascent| nascent.pid != 0).map(|nascent| GenerationScene {
            id: nascent.id,
            pid: nascent.pid,
            version: nascent.pinned.version.clone(),
            build: nascent.pinned.build.clone(),
            sha256: nascent.pinned.sha256.clone(),
            state: State::Starting.to_string(),
            drained: None,
            moving_to: None,
            silent_seconds: None,
        });
        self.generations.values().map(scene).chain(nascent).collect()
    }

    fn listener_scenes(&self) -> Vec<ListenerScene> {
        let listeners = self.config().listeners.iter();
        listeners
            .map(|(name, listener)| ListenerScene {
                survive_crash: listener.survive_crash,
                name: name.clone(),
                bind: listener.bind.iter().map(ToString::to_string).collect(),
                pool: self.pools.route(name).unwrap_or(&listener.pool).into(),
            })
            .collect()
    }

    /// Sessions a generation has now.
    pub(super) fn sessions_of(&self, generation: u32) -> u64 {
        let live = handoff::ledger::sessions(self.ledger.segments());
        live.iter().filter(|session| session.generation == generation).count() as u64
    }

    /// "generation 3 still serving 120 sessions": what is true after something failed.
    pub(super) fn still_serving(&self) -> String {
        match self.serving_generation() {
            Some(Generation { id, state: State::Serving, .. }) => {
                format!("generation {id} still serving {} sessions", self.sessions_of(*id))
            }
            _ => "no generation is serving; connections wait in the backlog".into(),
        }
    }
}
