//! A disk for tests that can fail, be full, or lose its power.
//!
//! Owns: two files and their names, what is written, and what of it survives. Must not know: the inbox.
//!
//! After a power cut or a failed sync, only parts of what was written since the last sync survive: each write, or some
//! of its sectors, may or may not be there. After a failed sync, what was written can still be read, as Linux does
//! it, although it will never be on the disk.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use super::super::file::JournalPlace;
use super::super::journal::{NewFile, write_header};
use super::super::journal_file::JournalFile;
use super::super::trouble::Trouble;

/// A disk writes this much as a whole or not at all.
const SECTOR: usize = 512;

/// Which file: they are numbered as they are created.
type Id = u32;

#[derive(Debug)]
enum Change {
    Bytes(usize, Vec<u8>),
    Length(usize),
}

#[derive(Debug, Default)]
struct Content {
    durable: Vec<u8>,
    /// The content as programs see it.
    seen: Vec<u8>,
    unsynced: Vec<Change>,
}

/// Which file has which name.
#[derive(Debug, Clone, Copy, Default)]
struct Names {
    journal: Option<Id>,
    begun: Option<Id>,
}

#[derive(Debug)]
struct State {
    files: BTreeMap<Id, Content>,
    names: Names,
    /// The names after the last sync of the directory.
    durable: Names,
    /// How many operations succeed before faults begin, and how many faults follow.
    fuse: Option<(u32, u32)>,
    capacity: usize,
    chance: fastrand::Rng,
    aside: Vec<Vec<u8>>,
    /// How often the power was cut.
    boot: u32,
    /// How many changes were made.
    operations: u32,
    names_fail: bool,
    reads_fail: bool,
}

/// Clones are the same disk.
#[derive(Debug, Clone)]
pub(super) struct Disk(Arc<Mutex<State>>);

/// A file on the disk. It cannot be used after a power cut.
#[derive(Debug)]
struct Handle {
    disk: Disk,
    id: Id,
    boot: u32,
}

impl Disk {
    pub(super) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            files: BTreeMap::new(),
            names: Names::default(),
            durable: Names::default(),
            fuse: None,
            capacity: usize::MAX,
            chance: fastrand::Rng::with_seed(seed),
            aside: Vec::new(),
            boot: 0,
            operations: 0,
            names_fail: false,
            reads_fail: false,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics with it")
    }

    fn handle(&self, id: Id) -> Box<dyn JournalFile> {
        let boot = self.state().boot;
        Box::new(Handle { disk: self.clone(), id, boot })
    }

    /// After `operations` writes, `faults` of them fail.
    pub(super) fn fail_after(&self, operations: u32, faults: u32) {
        self.state().fuse = Some((operations, faults));
    }

    /// The next sync of names fails.
    pub(super) fn fail_names(&self) {
        self.state().names_fail = true;
    }

    /// The next read fails.
    pub(super) fn fail_read(&self) {
        self.state().reads_fail = true;
    }

    /// Ends the faults.
    pub(super) fn heal(&self) {
        self.state().fuse = None;
    }

    pub(super) fn set_capacity(&self, capacity: usize) {
        self.state().capacity = capacity;
    }

    /// The present size of all files.
    pub(super) fn size(&self) -> usize {
        self.state().size()
    }

    /// How many writes, syncs and changes of names there were.
    pub(super) fn operations(&self) -> u32 {
        self.state().operations
    }

    /// Cuts the power and restores it.
    pub(super) fn cut_power(&self) {
        let mut state = self.state();
        state.fuse = None;
        state.boot += 1;
        // Each change of a name is there or not.
        if state.chance.bool() {
            state.names = state.durable;
        }
        state.durable = state.names;
        state.sweep(None);
        let State { files, chance, .. } = &mut *state;
        for content in files.values_mut() {
            content.keep_parts(chance);
            content.seen = content.durable.clone();
        }
    }

    /// Overwrites everything that was written.
    pub(super) fn spoil(&self) {
        for content in self.state().files.values_mut() {
            content.seen.fill(0x5a);
            content.durable.fill(0x5a);
        }
    }

    /// Overwrites a byte of the journal.
    pub(super) fn spoil_byte(&self, at: usize) {
        let mut state = self.state();
        let id = state.names.journal.expect("a journal");
        let content = state.files.get_mut(&id).expect("its file");
        for bytes in [&mut content.seen, &mut content.durable] {
            bytes[at] ^= 0x10;
        }
    }

    /// Makes a file with this content the journal.
    pub(super) fn set_journal(&self, bytes: &[u8]) {
        let mut state = self.state();
        let content = Content { durable: bytes.to_vec(), seen: bytes.to_vec(), unsynced: Vec::new() };
        state.files = BTreeMap::from([(0, content)]);
        state.names = Names { journal: Some(0), begun: None };
        state.durable = state.names;
    }

    /// The journal as programs see it.
    pub(super) fn journal(&self) -> Vec<u8> {
        let state = self.state();
        state.names.journal.map(|id| state.files[&id].seen.clone()).unwrap_or_default()
    }

    /// How many damaged files were moved aside.
    pub(super) fn moved_aside(&self) -> usize {
        self.state().aside.len()
    }
}

impl State {
    fn may_write(&mut self) -> io::Result<()> {
        self.operations += 1;
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

    fn size(&self) -> usize {
        self.files.values().map(|content| content.seen.len()).sum()
    }

    /// A file without a name is gone; with None, all of them.
    fn sweep(&mut self, which: Option<Id>) {
        let named = [self.names.journal, self.names.begun, self.durable.journal, self.durable.begun];
        self.files.retain(|id, _| named.contains(&Some(*id)) || which.is_some_and(|which| which != *id));
    }
}

impl Content {
    /// Keeps only some of what was not synced.
    fn keep_parts(&mut self, chance: &mut fastrand::Rng) {
        for change in std::mem::take(&mut self.unsynced) {
            match (chance.u8(0..5), change) {
                (0, _) => {}
                (1, Change::Bytes(at, data)) => put(&mut self.durable, at, &data[..data.len() / 2]),
                (2, Change::Bytes(at, data)) => {
                    // Sectors go to the disk in any order.
                    let mut from = 0;
                    while from < data.len() {
                        let to = data.len().min((at + from) / SECTOR * SECTOR + SECTOR - at);
                        if chance.bool() {
                            put(&mut self.durable, at + from, &data[from..to]);
                        }
                        from = to;
                    }
                }
                (_, change) => apply(&mut self.durable, change),
            }
        }
    }
}

fn apply(content: &mut Vec<u8>, change: Change) {
    match change {
        Change::Bytes(at, data) => put(content, at, &data),
        Change::Length(length) => content.truncate(length),
    }
}

fn put(content: &mut Vec<u8>, at: usize, data: &[u8]) {
    if content.len() < at + data.len() {
        content.resize(at + data.len(), 0);
    }
    content[at..at + data.len()].copy_from_slice(data);
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).expect("a small file")
}

impl Handle {
    fn with<T>(&self, work: impl FnOnce(&mut State, Id) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.state();
        if state.boot != self.boot {
            return Err(io::Error::other("no power"));
        }
        work(&mut state, self.id)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // A file without a name goes with its last handle.
        self.disk.state().sweep(Some(self.id));
    }
}

impl JournalFile for Handle {
    fn len(&self) -> io::Result<u64> {
        self.with(|state, id| Ok(state.files[&id].seen.len() as u64))
    }

    fn read(&self, out: &mut [u8], at: u64) -> io::Result<()> {
        self.with(|state, id| {
            if std::mem::take(&mut state.reads_fail) {
                return Err(io::Error::from_raw_os_error(5));
            }
            let found = state.files[&id].seen.get(place(at)..place(at) + out.len());
            out.copy_from_slice(found.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
            Ok(())
        })
    }

    fn write(&self, data: &[u8], at: u64) -> io::Result<()> {
        self.with(|state, id| {
            state.may_write()?;
            let (size, capacity) = (state.size(), state.capacity);
            let content = state.files.get_mut(&id).expect("an open file is there");
            let grown = (place(at) + data.len()).saturating_sub(content.seen.len());
            if grown > 0 && size + grown > capacity {
                return Err(io::ErrorKind::StorageFull.into());
            }
            put(&mut content.seen, place(at), data);
            content.unsynced.push(Change::Bytes(place(at), data.to_vec()));
            Ok(())
        })
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        self.with(|state, id| {
            state.may_write()?;
            let content = state.files.get_mut(&id).expect("an open file is there");
            content.seen.truncate(place(length));
            content.unsynced.push(Change::Length(place(length)));
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|state, id| {
            let result = state.may_write();
            let State { files, chance, .. } = state;
            let content = files.get_mut(&id).expect("an open file is there");
            match result {
                Ok(()) => {
                    for change in std::mem::take(&mut content.unsynced) {
                        apply(&mut content.durable, change);
                    }
                }
                // What could not be written counts as written from now on.
                Err(_) => content.keep_parts(chance),
            }
            result
        })
    }
}

impl JournalPlace for Disk {
    fn open(&mut self) -> Result<Box<dyn JournalFile>, Trouble> {
        let id = self.state().names.journal;
        let id = match id {
            Some(id) => id,
            None => {
                drop(self.begin()?);
                self.replace()?;
                self.state().names.journal.expect("it was replaced")
            }
        };
        self.discard();
        self.sync_name()?;
        Ok(self.handle(id))
    }

    fn begin(&mut self) -> Result<NewFile, Trouble> {
        let failed = |error| Trouble::Io("create", error);
        let id = {
            let mut state = self.state();
            state.may_write().map_err(failed)?;
            let id = state.files.keys().max().map_or(0, |last| last + 1);
            state.files.insert(id, Content::default());
            state.names.begun = Some(id);
            id
        };
        let file = self.handle(id);
        let salt = write_header(&*file).map_err(failed).inspect_err(|_| self.discard())?;
        Ok((file, salt))
    }

    fn replace(&mut self) -> Result<(), Trouble> {
        let mut state = self.state();
        state.may_write().map_err(|error| Trouble::Io("replace", error))?;
        state.names = Names { journal: state.names.begun, begun: None };
        Ok(())
    }

    fn sync_name(&mut self) -> Result<(), Trouble> {
        let mut state = self.state();
        let names_fail = std::mem::take(&mut state.names_fail);
        let may = if names_fail { Err(io::Error::other("injected")) } else { state.may_write() };
        may.map_err(|error| Trouble::Io("create", error))?;
        state.durable = state.names;
        Ok(())
    }

    fn discard(&mut self) {
        let mut state = self.state();
        if let Some(begun) = state.names.begun.take() {
            state.sweep(Some(begun));
        }
    }

    fn set_aside(&mut self, _now: SystemTime) -> Result<PathBuf, Trouble> {
        let mut state = self.state();
        state.may_write().map_err(|error| Trouble::Io("move aside", error))?;
        if let Some(content) = state.names.journal.take().and_then(|id| state.files.remove(&id)) {
            state.aside.push(content.seen);
        }
        state.durable = state.names;
        Ok(PathBuf::from("aside"))
    }

    fn path(&self) -> &Path {
        Path::new("inbox.journal")
    }
}
