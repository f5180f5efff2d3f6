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
pub(super) struct HubFile {
    hub: SharedHub,
    path: PathBuf,
}

impl HubFile {
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

    /// Writes after each change, until `stop` is cancelled. A write that is under way then is finished first: it must
    /// not replace what [`HubFile::write`] writes later.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut changes = self.hub.watch_changes();
        let mut failing = false;
        loop {
            let next = async {
                // The hub holds the sender, so this cannot fail.
                let _changed = changes.changed().await;
                tokio::time::sleep(if failing { RETRY } else { REST }).await;
            };
            if stop.run_until_cancelled(next).await.is_none() {
                return;
            }
            // Mark before the snapshot is taken: a change after this point must cause another write.
            changes.mark_unchanged();
            failing = !self.write(failing).await;
            if failing {
                changes.mark_changed();
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulator::hub::Hub;
    use crate::emulator::registry::{Device, DeviceCredential, Registry};
    use std::cell::Cell;
    use std::sync::OnceLock;
    use std::time::SystemTime;

    /// The clock cancels it. Taking a snapshot reads the clock, so the stop comes in the middle of a write.
    static STOP: OnceLock<CancellationToken> = OnceLock::new();

    fn clock_that_stops() -> SystemTime {
        if let Some(stop) = STOP.get() {
            stop.cancel();
        }
        SystemTime::UNIX_EPOCH
    }

    /// Otherwise an old state could replace that of the last write of a stopping emulator.
    #[test]
    fn a_write_that_a_stop_interrupts_is_finished_first() {
        // One thread for blocking work, and it is busy: the write cannot begin before it is released.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .max_blocking_threads(1)
            .build()
            .expect("a runtime");
        let folder = tempfile::tempdir().expect("a directory");
        let (release, busy) = std::sync::mpsc::sync_channel::<()>(1); // one signal
        let released = Cell::new(false);
        runtime.block_on(async {
            tokio::task::spawn_blocking(move || busy.recv());
            let registry = Registry::new("hub.test", Vec::new());
            let hub = SharedHub::new(Hub::new(registry, Duration::ZERO), clock_that_stops);
            let keeper = HubFile::restore(&hub, folder.path()).expect("no file");
            let stop = CancellationToken::new();
            let run = async {
                keeper.run(stop.clone()).await;
                assert!(released.get(), "it ended during the write");
            };
            let stops = async {
                let credential = DeviceCredential::Thumbprints { primary: String::new(), secondary: None };
                hub.with(|hub, _| hub.add_device(Device { id: "dev1".into(), credential }));
                STOP.set(stop.clone()).expect("only here");
                stop.cancelled().await;
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
                released.set(true);
                release.send(()).expect("the busy thread waits");
            };
            tokio::join!(run, stops);
        });
        assert!(folder.path().join(FILE).exists());
    }
}
