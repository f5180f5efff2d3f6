//! A disk for tests that can fail, be full, or lose its power.
//!
//! Owns: what is written, and what of it survives. Must not know: the inbox.
//!
//! After a power cut or a failed sync, only parts of what was written since the last sync survive: each write, or its
//! first sectors, may or may not be there.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use redb::{BackendError, Database, StorageBackend};

use super::super::file::DatabasePlace;
use super::super::trouble::Trouble;

/// A disk writes this much as a whole or not at all.
const SECTOR: usize = 512;

#[derive(Debug, Clone)]
enum Write {
    Length(usize),
    Bytes(usize, Vec<u8>),
}

#[derive(Debug)]
struct State {
    durable: Vec<u8>,
    /// The content as programs see it.
    seen: Vec<u8>,
    unsynced: Vec<Write>,
    /// How many operations succeed before faults begin, and how many faults follow.
    fuse: Option<(u32, u32)>,
    capacity: usize,
    chance: fastrand::Rng,
    aside: Vec<Vec<u8>>,
    /// How often the power was cut.
    boot: u32,
}

/// Clones are the same disk.
#[derive(Debug, Clone)]
pub(super) struct Disk(Arc<Mutex<State>>);

/// The disk as an open file. It cannot be used after a power cut.
#[derive(Debug)]
struct Handle {
    disk: Disk,
    boot: u32,
}

impl Handle {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        if state.boot == self.boot { Ok(state) } else { Err(io::Error::other("no power")) }
    }
}

impl Disk {
    pub(super) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            durable: Vec::new(),
            seen: Vec::new(),
            unsynced: Vec::new(),
            fuse: None,
            capacity: usize::MAX,
            chance: fastrand::Rng::with_seed(seed),
            aside: Vec::new(),
            boot: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics with it")
    }

    fn handle(&self) -> Handle {
        Handle { disk: self.clone(), boot: self.state().boot }
    }

    /// After `operations` writes, `faults` of them fail.
    pub(super) fn fail_after(&self, operations: u32, faults: u32) {
        self.state().fuse = Some((operations, faults));
    }

    /// Ends the faults.
    pub(super) fn heal(&self) {
        self.state().fuse = None;
    }

    pub(super) fn set_capacity(&self, capacity: usize) {
        self.state().capacity = capacity;
    }

    /// The present size.
    pub(super) fn size(&self) -> usize {
        self.state().seen.len()
    }

    /// Cuts the power and restores it.
    pub(super) fn cut_power(&self) {
        let mut state = self.state();
        state.fuse = None;
        state.boot += 1;
        state.keep_parts();
        state.reread();
    }

    /// Overwrites everything that was written.
    pub(super) fn spoil(&self) {
        let mut state = self.state();
        state.durable.fill(0x5a);
        state.reread();
    }

    /// How many damaged files were moved aside.
    pub(super) fn moved_aside(&self) -> usize {
        self.state().aside.len()
    }
}

impl State {
    fn may_write(&mut self) -> io::Result<()> {
        match &mut self.fuse {
            Some((0, 0)) | None => Ok(()),
            Some((0, faults)) => {
                *faults -= 1;
                Err(io::Error::other("injected"))
            }
            Some((operations, _)) => {
                *operations -= 1;
                Ok(())
            }
        }
    }

    /// Keeps only some of what was not synced.
    fn keep_parts(&mut self) {
        for write in std::mem::take(&mut self.unsynced) {
            match (self.chance.u8(0..4), write) {
                (0, _) => {}
                (1, Write::Bytes(at, data)) => {
                    put(&mut self.durable, at, &data[..data.len() / 2 / SECTOR * SECTOR]);
                }
                (_, write) => apply(&mut self.durable, &write),
            }
        }
    }

    fn reread(&mut self) {
        self.seen = self.durable.clone();
        self.unsynced.clear();
    }
}

fn apply(content: &mut Vec<u8>, write: &Write) {
    match write {
        Write::Length(length) => content.resize(*length, 0),
        Write::Bytes(at, data) => put(content, *at, data),
    }
}

fn put(content: &mut Vec<u8>, at: usize, data: &[u8]) {
    if content.len() < at + data.len() {
        content.resize(at + data.len(), 0);
    }
    content[at..at + data.len()].copy_from_slice(data);
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).expect("a small file")
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state()?.seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state()?;
        let from = at(offset);
        let found = state.seen.get(from..from + out.len());
        out.copy_from_slice(found.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state()?;
        state.may_write()?;
        let write = Write::Length(at(len));
        apply(&mut state.seen, &write);
        state.unsynced.push(write);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state()?;
        if let Err(error) = state.may_write() {
            // Linux behaves in this way: what could not be written counts as written from now on.
            state.keep_parts();
            return Err(error);
        }
        for write in std::mem::take(&mut state.unsynced) {
            apply(&mut state.durable, &write);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state()?;
        state.may_write()?;
        if at(offset) + data.len() > state.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let write = Write::Bytes(at(offset), data.to_vec());
        apply(&mut state.seen, &write);
        state.unsynced.push(write);
        Ok(())
    }

    fn try_lock_range(
        &self,
        _start: std::ops::Bound<u64>,
        _end: std::ops::Bound<u64>,
    ) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn unlock_range(
        &self,
        _start: std::ops::Bound<u64>,
        _end: std::ops::Bound<u64>,
    ) -> Result<(), BackendError> {
        Ok(())
    }
}

impl DatabasePlace for Disk {
    fn open(&mut self) -> Result<Database, Trouble> {
        if self.state().seen.is_empty() {
            // A real inbox does this, too: the file is made under another name and renamed when it is whole.
            self.state().may_write().map_err(|error| Trouble::Io("create", error))?;
            let begun = Self::new(0);
            drop(Database::builder().create_with_backend(begun.handle())?);
            let mut state = self.state();
            state.durable = begun.state().durable.clone();
            state.reread();
        }
        let builder = &mut Database::builder();
        Ok(builder
            .set_cache_size(64 * 1024)
            .set_check_integrity_on_open(true)
            .create_with_backend(self.handle())?)
    }

    fn distrust_cache(&self) {
        // After a failed sync, some pages only seem to be on disk. Writes that were never tried still have to be
        // made.
        let mut state = self.state();
        let unsynced = std::mem::take(&mut state.unsynced);
        state.reread();
        for write in &unsynced {
            apply(&mut state.seen, write);
        }
        state.unsynced = unsynced;
    }

    fn set_aside(&mut self, _now: SystemTime) -> Result<PathBuf, Trouble> {
        let mut state = self.state();
        let content = std::mem::take(&mut state.seen);
        state.aside.push(content);
        state.durable.clear();
        state.unsynced.clear();
        Ok(PathBuf::from("aside"))
    }

    fn path(&self) -> &Path {
        Path::new("inbox.redb")
    }
}
