//! What the journal holds, in memory: the records and their origins, the reports that wait, the pins, the sums.
//!
//! Owns: what each frame means for it. Must not know: how frames are read and written.

use std::collections::BTreeMap;

use super::codec;
use super::frame::{Kind, Place};
use super::ledger::{EARLIER_PROCESS, Ledger};
use super::origins::Origins;
use super::record::Counts;
use super::sums::Sums;

#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) ledger: Ledger,
    pub(super) origins: Origins,
    pub(super) reports: WaitingReports,
    /// The newest frame of the pins that are on.
    pub(super) pins_on: Place,
    /// The same in the file that a compaction is writing.
    moved_pins: Place,
    pub(super) sums: Sums,
}

/// The reports that wait for the hub, with their frames, and their frames in the file that a compaction is writing.
#[derive(Debug, Default)]
pub(super) struct WaitingReports {
    places: BTreeMap<u64, (Place, Place)>,
    bytes: u64,
}

impl WaitingReports {
    pub(super) fn len(&self) -> u64 {
        self.places.len() as u64
    }

    /// Bytes of their frames.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn insert(&mut self, number: u64, place: Place) {
        self.bytes += u64::from(place.size());
        if let Some((earlier, _)) = self.places.insert(number, (place, Place::NONE)) {
            self.bytes -= u64::from(earlier.size());
        }
    }

    /// True if it was there.
    pub(super) fn remove(&mut self, number: u64) -> bool {
        let Some((place, _)) = self.places.remove(&number) else { return false };
        self.bytes -= u64::from(place.size());
        true
    }

    pub(super) fn first(&self) -> Option<u64> {
        self.places.keys().next().copied()
    }

    /// Those with a number above `after`, oldest first.
    pub(super) fn after(&self, after: u64) -> impl Iterator<Item = (u64, Place)> {
        let from = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        self.places.range(from).map(|(number, (place, _))| (*number, *place))
    }

    /// The first with a number above `after`.
    pub(super) fn first_after(&self, after: u64) -> Option<(u64, Place)> {
        self.after(after).next()
    }

    fn moved(&mut self, number: u64, to: Place) {
        self.places.get_mut(&number).into_iter().for_each(|(_, moved)| *moved = to);
    }
}

impl Index {
    /// What counts towards `max_size`.
    pub(super) fn bytes(&self) -> u64 {
        self.ledger.bytes() + self.reports.bytes()
    }

    /// Bytes of all frames that are needed. The others are dead.
    pub(super) fn frame_bytes(&self) -> u64 {
        self.ledger.frame_bytes() + self.reports.bytes() + u64::from(self.pins_on.size())
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            records: self.ledger.records(),
            unfinished: self.ledger.unfinished(),
            dead: self.ledger.dead(),
            bytes: self.bytes(),
            reports: self.reports.len(),
            reports_dropped: self.sums.reports_dropped,
            totals: self.sums.totals.clone(),
        }
    }

    /// Takes over what an earlier process wrote. An error is a reason for a sentence about a damaged file.
    pub(super) fn replay(&mut self, kind: Kind, payload: &[u8], place: Place) -> Result<(), String> {
        match kind {
            Kind::Record => self.ledger.record(&codec::facts(payload)?, place, EARLIER_PROCESS),
            Kind::Message => self.ledger.change(codec::number(payload), |entry| entry.message = place),
            Kind::Confirmed => {
                for number in codec::decode_numbers(payload) {
                    self.ledger.change(number, |entry| entry.confirmed = true);
                }
            }
            Kind::Removed => codec::decode_numbers(payload).for_each(|number| self.ledger.remove(number)),
            Kind::Report => self.reports.insert(codec::valid(codec::number(payload))?, place),
            Kind::ReportsDone => codec::decode_numbers(payload).for_each(|number| {
                self.reports.remove(number);
            }),
            Kind::PinsOn => self.pins_on = place,
            Kind::Origins => self.origins = Origins::decode(payload)?,
            Kind::End => self.sums = codec::decode_end(payload).ok_or("a batch has no end")?.sums,
        }
        Ok(())
    }

    /// Makes sure that new numbers follow those that are there, whatever the sums say.
    pub(super) fn correct_numbers(&mut self) {
        let last = self.ledger.entries.iter().next_back().map_or(0, |(number, _)| number);
        let numbers = &mut self.sums.numbers;
        numbers.last_record = numbers.last_record.max(last);
        let last = self.reports.places.keys().next_back().copied().unwrap_or_default();
        numbers.last_report = numbers.last_report.max(last);
    }

    /// Notes where a frame is in the file that a compaction is writing.
    pub(super) fn moved(&mut self, kind: Kind, number: u64, to: Place) {
        match kind {
            Kind::Record => {
                self.ledger.entries.get_mut(number).into_iter().for_each(|entry| entry.moved_record = to);
            }
            Kind::Message => {
                self.ledger.entries.get_mut(number).into_iter().for_each(|entry| entry.moved_message = to);
            }
            Kind::Report => self.reports.moved(number, to),
            Kind::PinsOn => self.moved_pins = to,
            Kind::Confirmed | Kind::Removed | Kind::ReportsDone | Kind::Origins | Kind::End => {}
        }
    }

    /// The file that a compaction wrote is the inbox now.
    pub(super) fn move_over(&mut self) {
        for entry in self.ledger.entries.iter_mut() {
            entry.record = entry.moved_record;
            entry.message = if entry.message.is_some() { entry.moved_message } else { Place::NONE };
        }
        self.reports.places.values_mut().for_each(|(place, moved)| *place = *moved);
        self.pins_on = if self.pins_on.is_some() { self.moved_pins } else { Place::NONE };
    }
}
