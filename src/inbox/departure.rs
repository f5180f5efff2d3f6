//! The device has left a hub: what has not ended there is only in the inbox.
//!
//! Owns: what a change of the origin means for records. Must not know: how an origin is named, what a hub is.

use super::apply::Work;
use super::frame::Kind;
use super::index::Index;
use super::record::{Number, Settled, Unfinished};
use super::trouble::Trouble;
use crate::message::Source;

/// The most messages that one change leaves to the inbox, because a batch has a limit. A hub keeps 50 for a device. (Source:
/// wire reference 5.1.)
const MOST_LEFT: usize = 65_536;

impl Work<'_> {
    /// C2D messages come from `name` from now on. If they came from elsewhere before, no hub sends again what has not ended,
    /// so from now on only the inbox has it. Returns these messages, in order of acceptance.
    pub(super) fn comes_from(&mut self, name: &str) -> Result<Vec<Unfinished>, Trouble> {
        let Index { origins, ledger, sums, .. } = &mut *self.index;
        if origins.present() == Some(name) {
            return Ok(Vec::new());
        }
        let is_first = !origins.are_known();
        let next = sums.numbers.last_record + 1;
        let first = ledger.entries.iter().next().map_or(next, |(number, _)| number);
        origins.begin(name, first, next);
        self.journal.put(Kind::Origins, |out| origins.encode(out));
        if is_first {
            return Ok(Vec::new());
        }
        let at_the_hub = ledger
            .entries
            .iter()
            .filter(|(_, entry)| !entry.state.has_ended() && entry.settled == Settled::AfterAction);
        let mut numbers: Vec<u64> = at_the_hub.map(|(number, _)| number).collect();
        if numbers.len() > MOST_LEFT {
            tracing::error!(
                messages = numbers.len(),
                "more messages than {MOST_LEFT} have not ended: the newest of them end as expired, because their hub sends \
                 them no more"
            );
            numbers.truncate(MOST_LEFT);
        }
        let mut left = Vec::new();
        for number in numbers.into_iter().map(Number) {
            let (Some(mut stored), Some(message)) = (self.load(number)?, self.message(number)?) else {
                continue;
            };
            // A module's inputs and calls have doors of their own.
            if message.source() == Source::C2d {
                stored.record.settled = Settled::OnAccept;
                self.store(&stored);
                left.push(Unfinished { record: stored.record, message });
            }
        }
        Ok(left)
    }
}
