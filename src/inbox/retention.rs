//! What is removed from the inbox, and when: old records, and the oldest ones if there is no room.
//!
//! Owns: `keep`, `keep_at_least` and `max_size`. Must not know: what a message is.
//!
//! Messages that no rule matched are kept, but only in a part of the room: a sender that makes mistakes must not push
//! out dead letters, nor the records by which messages are recognised.
//!
//! Only records of ended messages are removed. The age of a record is the time since its message ended. A record from
//! the future (the clock was wrong) is not old. If a clock jumps far ahead, all records are old, but `keep_at_least`
//! of them stay.

use super::apply::Work;
use super::ledger::Ledger;
use super::sums::Circumstances;
use crate::config::InboxSettings;

/// Most records that one batch removes because of their age. It is more than a batch can add, so removal
/// catches up.
const MOST_BY_AGE: usize = 512;
/// Most records that one batch removes to make room.
const MOST_FOR_ROOM: usize = 4_096;

/// Messages that no rule matched may take this fraction of `max_size`: one part in so many.
const UNMATCHED_PART: u64 = 4;

impl Work<'_> {
    /// Whether `need` more bytes fit, after the oldest ended records were removed if necessary.
    pub(super) fn make_room(&mut self, need: u64) -> bool {
        let max = self.circumstances.settings.max_size;
        // Freeing space would not help, so keep everything.
        if self.index.bytes() - self.index.ledger.ended_bytes() + need > max {
            return false;
        }
        while self.index.bytes() + need > max {
            let Some(number) = self.index.ledger.first_to_go() else { break };
            if self.gone() >= MOST_FOR_ROOM {
                return false;
            }
            self.remove(number);
            self.notes.forgot = true;
        }
        true
    }

    /// Removes old records. If ended messages have grown past the limit, removes others, too.
    pub(super) fn let_go(&mut self) {
        let Circumstances { settings, now_ms, .. } = *self.circumstances;
        for number in too_old(&self.index.ledger, settings, now_ms, MOST_BY_AGE) {
            self.remove(number);
        }
        while let Some(number) = self.index.ledger.unmatched_beyond(settings.max_size / UNMATCHED_PART)
            && self.gone() < MOST_FOR_ROOM
        {
            self.remove(number);
        }
        if self.index.bytes() > self.circumstances.settings.max_size {
            self.make_room(0);
        }
    }
}

/// Up to `limit` records that are old enough to be removed.
pub(super) fn too_old(ledger: &Ledger, settings: &InboxSettings, now_ms: u64, limit: usize) -> Vec<u64> {
    let keep = u64::try_from(settings.keep.as_millis()).unwrap_or(u64::MAX);
    ledger.too_old(now_ms.saturating_sub(keep), settings.keep_at_least, limit)
}
