//! Stores what the hub holds in a file, so that a restart loses nothing but connections.
//!
//! Owns: when the file is written, and the file. Must not know: what a snapshot contains, keys.
//!
//! A change is on disk a quarter of a second later, and at an orderly stop at once. So a `kill -9` can lose the last
//! changes. An emulator does not need to write each message before it accepts it; only a real hub does.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::hub::Snapshot;
use super::shared::SharedHub;
use super::state_dir::{StateDirError, write_private};

/// The file in the state directory.
const FILE: &str = "hub.json";
/// Changes within this time are written together.
const REST: Duration = Duration::from_millis(250);
/// The pause after a failed write.
const RETRY: Duration = Duration::from_secs(5);

/// The file that stores a hub.
#[derive(Clone)]
pub(super) struct Keeper {
    hub: SharedHub,
    path: PathBuf,
}

impl Keeper {
    /// Loads what an earlier emulator stored in the state directory.
    ///
    /// # Errors
    /// Fails if the file exists and cannot be read. The file is not changed then.
    pub(super) fn restore(hub: &SharedHub, state_dir: &Path) -> Result<Self, StateDirError> {
        let path = state_dir.join(FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self { hub: hub.clone(), path });
            }
            Err(reason) => return Err(StateDirError::Io { verb: "read", path, reason }),
        };
        let unusable = |reason: String| StateDirError::Hub { path: path.clone(), reason };
        let snapshot: Snapshot =
            serde_json::from_slice(&text).map_err(|error| unusable(error.to_string()))?;
        hub.with(|hub, _| hub.restore(snapshot)).map_err(|error| unusable(error.to_string()))?;
        Ok(Self { hub: hub.clone(), path })
    }

    /// Writes after each change, until `stop` is cancelled. It ends earlier only if the runtime ends.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut changes = self.hub.watch_changes();
        let mut failing = false;
        let follow = async {
            // The hub holds the sender, so this cannot fail.
            while changes.changed().await.is_ok() {
                tokio::time::sleep(if failing { RETRY } else { REST }).await;
                // Mark before the snapshot is taken: a change after this point must cause another write.
                changes.mark_unchanged();
                failing = !self.write(failing).await;
                if failing {
                    changes.mark_changed();
                }
            }
        };
        stop.run_until_cancelled(follow).await;
    }

    /// Writes what the hub holds now, and returns whether that worked. The log has the reason of a failure. With
    /// `quietly`, a failure is not logged again, because the last write failed as well.
    pub(super) async fn write(&self, quietly: bool) -> bool {
        let snapshot = self.hub.with(|hub, _| hub.snapshot());
        let path = self.path.clone();
        let write = move || -> Result<(), StateDirError> {
            let text = serde_json::to_vec(&snapshot)
                .map_err(|error| StateDirError::Hub { path: path.clone(), reason: error.to_string() })?;
            write_private(&path, &text)
        };
        let failed = match tokio::task::spawn_blocking(write).await {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        if !quietly {
            tracing::error!(
                "the hub's state cannot be saved, so it is lost when the emulator ends: {failed}"
            );
        }
        false
    }
}
