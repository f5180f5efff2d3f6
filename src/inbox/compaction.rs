//! Compaction: what is needed of a journal, written to a new file that then takes its place.
//!
//! Owns: the order of copying. Must not know: when it is due, paths.
//!
//! It goes in steps, so that no message waits long. The journal stays the inbox until the new file has its name, so a
//! crash at any moment leaves one that is right.
//!
//! A record is copied as the index knows it at that time, so the copy has all changes before. A later change of it goes to
//! both files.

use super::codec;
use super::frame::Kind;
use super::index::Index;
use super::journal::Journal;
use super::trouble::Trouble;
use super::window::Window;

#[derive(Debug)]
pub(super) struct Compaction {
    journal: Journal,
    /// Records up to this number are copied, and reports up to this one.
    records: u64,
    reports: u64,
    /// Whether what is not numbered is copied: the origins and the pins.
    has_others: bool,
    /// The part of the journal that was read last.
    window: Window,
    /// Why the new file cannot be written to.
    failed: Option<Trouble>,
}

impl Compaction {
    /// `journal` is an empty one.
    pub(super) fn new(journal: Journal) -> Self {
        Self { journal, records: 0, reports: 0, has_others: false, window: Window::default(), failed: None }
    }

    /// Copies the next part, about `most` bytes. True if there is more to do; else all is in the new file, and on disk.
    pub(super) fn step(&mut self, from: &Journal, index: &mut Index, most: usize) -> Result<bool, Trouble> {
        if let Some(failure) = self.failed.take() {
            return Err(failure);
        }
        // A step that has copied much is not the last one, which has more to do than to copy.
        let is_more = self.copy(from, index, most)? || self.journal.gathered() > most / 2;
        if !is_more {
            self.journal.finish();
        }
        self.journal.commit(&index.sums)?;
        Ok(is_more)
    }

    /// Gathers the next part. True if something is left after it.
    fn copy(&mut self, from: &Journal, index: &mut Index, most: usize) -> Result<bool, Trouble> {
        if !std::mem::replace(&mut self.has_others, true) {
            if index.origins.are_known() {
                self.journal.put(Kind::Origins, |out| index.origins.encode(out));
            }
            if index.pins_on.is_some() {
                let pins = from.read_in_order(index.pins_on, &mut self.window)?;
                let pins = self.journal.put(Kind::PinsOn, |out| out.extend_from_slice(&pins));
                index.moved(Kind::PinsOn, 0, pins);
            }
        }
        while let Some((number, entry)) = index.ledger.entries.first_after(self.records) {
            if self.journal.gathered() >= most {
                return Ok(true);
            }
            let (message, confirmed) = (entry.message, entry.confirmed);
            let record = from.read_in_order(entry.record, &mut self.window)?;
            let record = self.journal.put(Kind::Record, |out| {
                let begin = out.len();
                out.extend_from_slice(&record);
                if confirmed {
                    codec::confirm(out.get_mut(begin..).unwrap_or_default());
                }
            });
            index.moved(Kind::Record, number, record);
            if message.is_some() {
                let bytes = from.read_in_order(message, &mut self.window)?;
                let message = self.journal.put(Kind::Message, |out| out.extend_from_slice(&bytes));
                index.moved(Kind::Message, number, message);
            }
            self.records = number;
        }
        while let Some((number, place)) = index.reports.first_after(self.reports) {
            if self.journal.gathered() >= most {
                return Ok(true);
            }
            let report = from.read_in_order(place, &mut self.window)?;
            let report = self.journal.put(Kind::Report, |out| out.extend_from_slice(&report));
            index.moved(Kind::Report, number, report);
            self.reports = number;
        }
        Ok(false)
    }

    /// Writes what a batch changes of copied records to the new file, too. It is on disk after the next step.
    pub(super) fn follow(&mut self, from: &Journal, index: &mut Index) {
        if self.failed.is_some() {
            return;
        }
        for frame in from.drafted() {
            let number = codec::number(frame.payload);
            let is_copied = match frame.kind {
                Kind::Record | Kind::Message => number <= self.records,
                Kind::Report => number <= self.reports,
                _ => true,
            };
            // It is copied in its turn. So the records of the new file are in order, and opening it inserts none before
            // others.
            if !is_copied {
                continue;
            }
            let place = self.journal.put(frame.kind, |out| out.extend_from_slice(frame.payload));
            index.moved(frame.kind, number, place);
        }
        self.failed = self.journal.write(&index.sums).err();
    }

    pub(super) fn into_journal(self) -> Journal {
        self.journal
    }
}
