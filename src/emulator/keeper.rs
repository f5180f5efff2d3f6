//! Stores what the hub holds in a file, so that a restart loses nothing but connections.
//!
//! Owns: when the file is written, and what an older version's file becomes. Must not know: what a piece contains,
//! keys.
//!
//! A change is on disk a quarter of a second later, and at an orderly stop at once. So a `kill -9` can lose the last
//! changes. An emulator does not need to write each message before it accepts it; only a real hub does. Only the pieces
//! that have changed are written; `hub::snapshot` says what a piece is, and `journal` how the file is laid out.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::hub::{Piece, Snapshot};
use super::journal::{Changes, Journal};
use super::shared::SharedHub;
use super::state_dir::StateDirError;

/// The file in the state directory.
const FILE: &str = "hub.jsonl";
/// The form of its pieces.
const FORMAT: u32 = 2;
/// The file of older versions: everything in one piece. It is read once.
const OLD_FILE: &str = "hub.json";
/// Its name once its content is in [`FILE`].
const MOVED_FILE: &str = "hub.json.moved";
/// Changes within this time are written together.
const REST: Duration = Duration::from_millis(250);
/// The pause after a failed write.
const RETRY: Duration = Duration::from_secs(5);

/// The file that stores a hub.
#[derive(Clone)]
pub(super) struct HubFile {
    hub: SharedHub,
    path: PathBuf,
    store: Arc<Mutex<Store>>,
    /// Changes are written in the order in which they were taken.
    order: Arc<tokio::sync::Mutex<()>>,
}

/// The file, and the changes that a failed write has left.
struct Store {
    journal: Journal,
    unwritten: Changes,
}

impl HubFile {
    /// Loads what an earlier emulator stored in the state directory.
    ///
    /// # Errors
    /// Fails if the file exists and cannot be read. The file is not changed then.
    pub(super) fn restore(hub: &SharedHub, state_dir: &Path) -> Result<Self, StateDirError> {
        let (path, old) = (state_dir.join(FILE), state_dir.join(OLD_FILE));
        let (journal, pieces) =
            Journal::open(&path, FORMAT).map_err(|error| StateDirError::of_hub(&path, error))?;
        let store = Store { journal, unwritten: Changes::new() };
        let keeper = Self {
            hub: hub.clone(),
            path: path.clone(),
            store: Arc::new(Mutex::new(store)),
            order: Arc::default(),
        };
        if path.exists() {
            let restored = hub.with(|hub, _| hub.restore(pieces));
            restored.map_err(|error| StateDirError::Hub { path, reason: error.to_string() })?;
        } else if let Some(snapshot) = read_old(&old)? {
            let unusable = |reason| StateDirError::Hub { path: old.clone(), reason };
            hub.with(|hub, _| hub.restore_snapshot(snapshot)).map_err(|error| unusable(error.to_string()))?;
            keeper.write_now(hub.with(|hub, _| hub.take_changes()))?;
        }
        // The new file has all that was in the old one, also if an earlier start was interrupted here. An earlier version
        // that was installed again may have written it anew, so it is not removed.
        match std::fs::rename(&old, state_dir.join(MOVED_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StateDirError::Io { verb: "move", path: old, reason: error })
            }
            _ => Ok(keeper),
        }
    }

    /// Writes after each change, until `stop` is cancelled. A write that is under way then is finished first: it must
    /// not come after what [`HubFile::write`] writes later.
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
            // Mark before the changes are taken: a change after this point must cause another write.
            changes.mark_unchanged();
            let failed_before = failing;
            failing = !self.write(failed_before).await;
            if failing {
                changes.mark_changed();
            } else if failed_before {
                tracing::info!("the hub's state is saved again");
            }
        }
    }

    /// Writes what has changed, and returns whether that worked. The log has the reason of a failure. With `quietly`, a
    /// failure is not logged again, because the last write failed as well. The next write repeats what failed.
    pub(super) async fn write(&self, quietly: bool) -> bool {
        let in_order = Arc::clone(&self.order).lock_owned().await;
        let (keeper, changes) = (self.clone(), self.hub.with(|hub, _| hub.take_changes()));
        let written = tokio::task::spawn_blocking(move || {
            let written = keeper.write_now(changes);
            drop(in_order);
            written
        });
        let failed = match written.await {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        if !quietly {
            tracing::error!(
                "the hub's state cannot be saved, and is lost if it still cannot when the emulator ends: {failed}"
            );
        }
        false
    }

    fn write_now(&self, changes: Vec<(String, Option<Piece>)>) -> Result<(), StateDirError> {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let Store { journal, unwritten } = &mut *store;
        for (key, piece) in changes {
            let text = piece.map(|piece| serde_json::value::to_raw_value(&piece)).transpose();
            let text = text.map_err(|error| StateDirError::Hub {
                path: self.path.clone(),
                reason: format!("{key}: {error}"),
            })?;
            // What is neither in the file nor in the hub needs no memory while the file cannot be written.
            if text.is_some() || journal.has(&key) {
                unwritten.insert(key, text);
            } else {
                unwritten.remove(&key);
            }
        }
        let failed = |reason| StateDirError::Io { verb: "write", path: self.path.clone(), reason };
        journal.append(unwritten).map_err(failed)?;
        unwritten.clear();
        Ok(())
    }
}

/// The file of an older version, if there is one.
fn read_old(path: &Path) -> Result<Option<Snapshot>, StateDirError> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| StateDirError::Hub { path: path.to_owned(), reason: error.to_string() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(reason) => Err(StateDirError::Io { verb: "read", path: path.to_owned(), reason }),
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

    fn hub() -> SharedHub {
        let mut registry = Registry::new("hub.test", Vec::new());
        let credential = DeviceCredential::Thumbprints { primary: String::new(), secondary: None };
        registry.add_device(Device { id: "dev1".into(), credential });
        SharedHub::new(Hub::new(registry, Duration::ZERO), || SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn the_file_of_the_version_before_is_read_once_and_replaced() {
        let folder = tempfile::tempdir().expect("a directory");
        let old = folder.path().join(OLD_FILE);
        let text =
            r#"{"format":1,"devices":{"dev1":{"twin":{"reported":{"led":"on"}}},"gone":{}},"feedback":[]}"#;
        let led = |hub: &SharedHub| {
            HubFile::restore(hub, folder.path()).expect("restored");
            hub.with(|hub, _| hub.twin_properties("dev1")).expect("a twin")["reported"]["led"].clone()
        };
        std::fs::write(&old, text).expect("written");
        assert_eq!(led(&hub()), "on");
        assert!(!old.exists());
        // A start that was killed between the two files has left the old one: the new one counts.
        std::fs::write(&old, text.replace("on", "off")).expect("written");
        assert_eq!(led(&hub()), "on");
        assert!(!old.exists());
        let kept = std::fs::read_to_string(folder.path().join(FILE)).expect("text");
        assert!(kept.starts_with("{\"format\":2}\n") && kept.contains("device/gone"), "{kept}");
    }
}
