//! The door of a keeper at which another installation knocks.

use std::io;
use std::path::{Path, PathBuf};

use handoff::door::{self, Door};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::super::event::Event;
use super::entrance_of;

/// Open until it is dropped; then its file is gone, too.
#[derive(Debug)]
pub(in super::super) struct Entrance {
    path: PathBuf,
    _task: AbortOnDropHandle<()>,
}

impl Entrance {
    pub(in super::super) fn open(state_dir: &Path, events: mpsc::Sender<Event>) -> io::Result<Self> {
        let path = entrance_of(state_dir);
        let door = Door::new(door::bind(&path)?)?;
        let task = tokio::task::spawn_local(async move {
            loop {
                match door.accept().await {
                    Ok(channel) => {
                        if events.send(Event::Knocked(channel)).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        // Out of descriptors, most likely: some may be free again a little later.
                        tracing::warn!(%error, "nobody can be let in to take over");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        });
        Ok(Self { path, _task: AbortOnDropHandle::new(task) })
    }
}

impl Drop for Entrance {
    fn drop(&mut self) {
        if let Err(error) = door::remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the take-over socket is left");
        }
    }
}

const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);
