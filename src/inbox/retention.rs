//! What goes from the inbox, and when: old records, and the oldest ones when there is no room.
//!
//! Owns: `keep`, `keep_at_least` and `max_size`. Must not know: what a message is.
//!
//! Messages that no rule took are kept, but may take a part of the room only: a sender that is mistaken must push out neither
//! dead letters nor what messages are known by.
//!
//! Only records of messages that have ended go. A record is as old as the time since its message ended; one from the
//! future (the clock was wrong) is not old. A clock that jumps far ahead makes all records old: then `keep_at_least` of
//! them stay.

use super::apply::Work;
use super::ledger::Ledger;
use super::store::Circumstances;
use super::trouble::Failure;
use crate::config::InboxSettings;

/// Most records that go by age in one transaction: more than it can add, so that it catches up.
const MOST_BY_AGE: usize = 512;
/// Most records that go for want of room in one transaction.
const MOST_FOR_ROOM: usize = 4_096;

/// Messages that no rule took may take one part in so many of `max_size`.
const UNMATCHED_PART: u64 = 4;

impl Work<'_, '_> {
    /// Whether `need` more bytes fit, once the oldest ended records have made room.
    pub(super) fn make_room(&mut self, need: u64) -> Result<bool, Failure> {
        let max = self.circumstances.settings.max_size;
        // In vain: then nothing goes.
        if self.ledger.bytes() - self.ledger.ended_bytes() + need > max {
            return Ok(false);
        }
        while self.ledger.bytes() + need > max {
            let Some(number) = self.ledger.first_to_go() else { break };
            if self.gone >= MOST_FOR_ROOM {
                return Ok(false);
            }
            self.remove(number)?;
            self.notes.forgot = true;
        }
        Ok(true)
    }

    /// Lets records go that are old, and others when ended messages have grown past the limit.
    pub(super) fn let_go(&mut self) -> Result<(), Failure> {
        let Circumstances { settings, now_ms, .. } = *self.circumstances;
        for number in too_old(self.ledger, settings, now_ms, MOST_BY_AGE) {
            self.remove(number)?;
        }
        while let Some(number) = self.ledger.unmatched_beyond(settings.max_size / UNMATCHED_PART)
            && self.gone < MOST_FOR_ROOM
        {
            self.remove(number)?;
        }
        if self.ledger.bytes() > self.circumstances.settings.max_size {
            self.make_room(0)?;
        }
        Ok(())
    }
}

/// Up to `limit` records that are old enough to go.
pub(super) fn too_old(ledger: &Ledger, settings: &InboxSettings, now_ms: u64, limit: usize) -> Vec<u64> {
    let keep = u64::try_from(settings.keep.as_millis()).unwrap_or(u64::MAX);
    ledger.too_old(now_ms.saturating_sub(keep), settings.keep_at_least, limit)
}
